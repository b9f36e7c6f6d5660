"""Decoding speed in tokens/s at a given length of the cache, compared with Llama and with no cache.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --corpus data/maestro     also the likelihood in lower precision

Models: `shipped` is checkpoints/maestro-small (6 layers, width 256); 256 and 512 are new models of that width. Caches,
filled with random keys and values to the measured length:

- dynamic: Transformers' default, which grows by concatenation; ours grows in place.
- static: allocated once.
- compiled: static, with `torch.compile(model.forward, fullgraph=True, dynamic=False)` and without guards on modules,
  at batch size 1.
- sliding: a window of 1,024 tokens at any length (ours only).
- onnx: the program of `hub.decoder_program` in onnxruntime, its window as long as the cache, at batch size 1.
- none: no cache, a pass over the whole sequence for every token, at batch size 1.

The model's forward pass for one new token of each sequence is timed, without sampling. Models and caches run in turns;
medians are reported. A step reads its weights, the rows of the relative embeddings that it needs, and the cache; the
table compares these bytes with the bandwidth of reading a large array, measured in the same run. Weights that fit into
the processor's caches can be read faster.

Before timing, the logits with every kind of cache are checked, token by token, against eager attention without a
cache, and compiled logits against the same step uncompiled. Cells whose caches would take more than 60 percent of the
memory are skipped.
"""

import copy
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import Subset
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from benchmarks import measure
from benchmarks.models import llama, music_tx, num_parameters
from corpus.dataset import EvaluationWindows, load_corpus
from evaluation.likelihood import negative_log_likelihood
from modeling_music_tx import MusicTxForCausalLM
from modeling_music_tx.buffered_cache import use_buffers

try:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
except ImportError:
    quantize_ = None
try:
    from hub.decoder_program import DecoderProgram, ProgramSession, export_program
except ImportError:  # onnxruntime is not installed
    DecoderProgram = None

CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "maestro-small"

# MAESTRO's training split holds 23,164,558 events in 161.2 hours.
EVENTS_PER_SECOND = 40

WINDOW = 1024
CACHES = ("dynamic", "static", "compiled", "onnx", "sliding", "none")
ONE_SEQUENCE = ("compiled", "onnx", "none")
LLAMAS_CACHES = ("dynamic", "static")
BY_PRECISION = "shipped, by precision"


# ---------------------------------------------------------------------------------------------------------------------
# Models and caches
# ---------------------------------------------------------------------------------------------------------------------


def make_model(name: str, device: str) -> MusicTxForCausalLM:
    """One of ours, by the name it has on the command line."""
    if name == "shipped":
        return MusicTxForCausalLM.from_pretrained(CHECKPOINT).eval().to(device)
    return music_tx(int(name), device).eval()


def make_cache(kind: str, model: PreTrainedModel, batch: int, length: int, spare: int) -> Cache | None:
    """A cache that holds random keys and values for `length` tokens and has room for `spare` more."""
    config = model.config
    config.sliding_window = WINDOW if kind == "sliding" else None
    if kind in ("none", "onnx"):
        return None
    static = kind in ("static", "compiled")
    cache = StaticCache(config=config, max_cache_len=length + spare) if static else DynamicCache(config=config)
    if isinstance(model, MusicTxForCausalLM):
        use_buffers(cache)  # as generate() does
    # One sequence's keys and values serve the whole batch: their bytes are copied, and the draw is short.
    shape = (2, 1, config.num_attention_heads, length, config.head_dim)
    generator = torch.Generator(model.device).manual_seed(0)
    for layer in range(config.num_hidden_layers):
        both = torch.randn(shape, generator=generator, device=model.device).to(model.dtype)
        cache.update(*both.expand(-1, batch, -1, -1, -1), layer)
    return cache


def rewind(cache: Cache, length: int):
    """Crop a cache to the first `length` tokens; a window, whose size is constant, stays as it is."""
    if isinstance(cache, StaticCache):
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)
    elif not cache.is_sliding[0]:
        cache.crop(length - cache.get_seq_length())


def cache_bytes(model: PreTrainedModel, kind: str, batch: int, length: int) -> int:
    """Size in bytes of the keys and values for one step."""
    if kind == "none":
        return 0
    config = model.config
    kept = min(length, WINDOW) if kind == "sliding" else length
    width = config.num_attention_heads * config.head_dim
    return 2 * config.num_hidden_layers * batch * kept * width * model.dtype.itemsize


def step_bytes(model: PreTrainedModel, kind: str, weights: str, batch: int, length: int) -> int:
    """Bytes that one step reads: every weight once, the rows of the relative embeddings, and the cache."""
    total = cache_bytes(model, kind, batch, length)
    kept = min(length, WINDOW) if kind == "sliding" else length
    for name, weight in model.named_parameters():
        if name.endswith("relative_embeddings"):
            total += weight[:, :kept].numel() * weight.itemsize
        elif name == "model.embed_tokens.weight" and model.lm_head.weight is not weight:
            continue  # a row of it is read
        else:
            total += weight.numel() * (1 if weights == "int8" and weight.ndim == 2 else weight.itemsize)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Checks and measurements
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_cache(kind: str, model: MusicTxForCausalLM, length: int = 40, window: int = 16):
    """Check that the logits of single tokens equal those of one pass without a cache, also beyond a window."""
    config, ours = model.config, model.config._attn_implementation
    shipped_window, config.sliding_window = config.sliding_window, window if kind == "sliding" else None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (2, length), generator=generator).to(model.device)
    model.set_attn_implementation("eager")
    expected = model(ids, use_cache=False).logits
    model.set_attn_implementation(ours)

    cache = StaticCache(config=config, max_cache_len=length) if kind == "static" else DynamicCache(config=config)
    parts = [ids[:, :7], *ids[:, 7:].split(1, dim=1)]
    found = torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)
    measure.must_equal(f"{kind} cache", found, expected, torch.float32)
    config.sliding_window = shipped_window


def step_with(call: Callable, ids: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """The logits [B, 1, V] of one more token."""
    if cache is None:
        return call(ids, use_cache=False, logits_to_keep=1).logits
    return call(ids[:, -1:], past_key_values=cache).logits


@torch.no_grad()
def timed(model, window, call, ids, cache, steps: int, device: str) -> tuple[float]:
    """Seconds of one step, the median of up to `steps` consecutive ones from the same length on."""
    model.config.sliding_window = window
    taken = []
    while len(taken) < (steps if cache is not None else 1) and sum(taken) < 0.5:  # slow steps need no median
        taken.append(measure.seconds_of(lambda: step_with(call, ids, cache), device))
    if cache is not None:
        rewind(cache, ids.shape[1])
    return (median(taken),)


@torch.no_grad()
def ready(kind: str, model: PreTrainedModel, ids: torch.Tensor, cache: Cache | None) -> Callable:
    """Return the function to time, warmed up; a compiled one is checked against the same step uncompiled."""
    length = ids.shape[1]
    if cache is None:
        return model
    expected = step_with(model, ids, cache)
    rewind(cache, length)
    if kind != "compiled":
        return model
    unchecked = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, options=unchecked)
    for _ in range(2):
        found = step_with(compiled, ids, cache)
        rewind(cache, length)
    measure.must_equal("the compiled step", found, expected, model.dtype)
    return compiled


@torch.no_grad()
def ready_onnx(model: MusicTxForCausalLM, length: int, spare: int, threads: int) -> "ProgramSession":
    """Return the model in onnxruntime with room for `length + spare` tokens; its logits are checked first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decoder.onnx")
        model.config.sliding_window = None
        export_program(DecoderProgram(copy.deepcopy(model), length + spare), path)
        session = ProgramSession(path, threads)
    ids = torch.randint(3, model.config.vocab_size, (16,), generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(session([*ids[:12].tolist(), int(ids[12])]))
    measure.must_equal("the program", found, model(ids[None, :13].to(model.device)).logits[0].cpu(), torch.float32)
    return session


def timed_onnx(session: "ProgramSession", length: int, steps: int) -> tuple[float]:
    """Seconds of one step, as `timed` measures them."""
    session.position, taken = length, []
    while len(taken) < steps and sum(taken) < 0.5:
        taken.append(measure.seconds_of(lambda: session([5]), "cpu"))
    return (median(taken),)


def measured(
    args, group: str, models: dict, kinds: list[str], length: int, batch: int, bandwidth: float
) -> list[dict]:
    """The rows of one length and batch size.

    Args:
        args: The command line.
        group: Name of these models in the rows.
        models: Models by (maker, precision of the weights).
        kinds: Caches for each; those limited to a batch of one, or to our models, are skipped elsewhere.
        length: Tokens in the cache.
        batch: Sequences.
        bandwidth: Read bandwidth in bytes per second.
    """
    kinds = [kind for kind in kinds if batch == 1 or kind not in ONE_SEQUENCE]
    rows = {
        (who, weights, kind): {"device": args.device, "model": group, "who": who, "weights": weights, "cache": kind}
        | {"length": length, "batch": batch, "parameters": num_parameters(model)}
        | EMPTY
        for (who, weights), model in models.items()
        for kind in kinds
        if who == "ours" or kind in LLAMAS_CACHES
    }
    if DecoderProgram is None:
        rows = {key: row for key, row in rows.items() if key[2] != "onnx"}
    # Our models' caches of one kind and dtype are alike: they share one.
    shared = {(who, kind, models[who, weights].dtype): models[who, weights] for who, weights, kind in rows}
    held = sum(cache_bytes(model, kind, batch, length) for (_, kind, _), model in shared.items())
    if held > 0.6 * measure.memory_bytes(args.device):
        return [row | {"note": "left out: the caches need too much memory"} for row in rows.values()]

    caches = {key: make_cache(key[1], model, batch, length, args.steps) for key, model in shared.items()}
    ids = torch.randint(3, next(iter(models.values())).config.vocab_size, (batch, length), device=args.device)
    competitors = {}
    for who, weights, kind in rows:
        model = models[who, weights]
        if kind == "onnx":
            session = ready_onnx(model, length, args.steps, args.threads)
            competitors[who, weights, kind] = functools.partial(timed_onnx, session, length, args.steps)
            continue
        cache = caches[who, kind, model.dtype]
        window = model.config.sliding_window = WINDOW if kind == "sliding" else None
        call = ready(kind, model, ids, cache)
        run = functools.partial(timed, model, window, call, ids, cache, args.steps, args.device)
        competitors[who, weights, kind] = run
    for (who, weights, kind), (turns, (seconds,)) in measure.take_turns(competitors, args.seconds).items():
        row, speed = rows[who, weights, kind], batch / seconds
        row["step_ms"] = measure.rounded(seconds * 1000)
        row["tokens_per_second"] = measure.rounded(speed)
        row["music_seconds_per_second"] = measure.rounded(speed / EVENTS_PER_SECOND)
        row["turns"] = turns
        if kind != "none":
            row["bytes_per_step"] = step_bytes(models[who, weights], kind, weights, batch, length)
            row["gigabytes_per_second"] = measure.rounded(row["bytes_per_step"] / seconds / 1e9)
            row["share_of_bandwidth"] = measure.rounded(row["bytes_per_step"] / seconds / bandwidth)
    torch.compiler.reset()
    return list(rows.values())


MEASURES = ("step_ms", "tokens_per_second", "music_seconds_per_second", "bytes_per_step", "gigabytes_per_second")
EMPTY = dict.fromkeys((*MEASURES, "share_of_bandwidth", "nats_per_token", "turns", "note"))


def in_lower_precision(model: MusicTxForCausalLM) -> dict[tuple[str, str], MusicTxForCausalLM]:
    """The model in bfloat16 and, where torchao is installed, with int8 weights."""
    models = {("ours", "fp32"): model, ("ours", "bf16"): copy.deepcopy(model).to(torch.bfloat16)}
    if quantize_:
        models["ours", "int8"] = copy.deepcopy(model)
        quantize_(models["ours", "int8"], Int8WeightOnlyConfig())
    return models


def add_likelihoods(rows: list[dict], models: dict, corpus: Path, num_windows: int):
    """Write nats per token into the rows: windows of 1,024 tokens, evenly spread over the validation split."""
    windows = EvaluationWindows(load_corpus(corpus)["validation"], 1024)
    windows = Subset(windows, range(0, len(windows), -(-len(windows) // num_windows)))
    for (_, weights), model in models.items():
        model.config.sliding_window = WINDOW
        nats = measure.rounded(negative_log_likelihood(model, windows, batch_size=4).nats_per_token, 5)
        for row in rows:
            if row["weights"] == weights:
                row["nats_per_token"] = nats


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    """Tokens a second, and the share of the bandwidth at batch size 1."""
    columns = sorted({(row["length"], row["batch"]) for row in rows})
    lines = {}
    for row in rows:
        text = "left out" if row["note"] else measure.short(row["tokens_per_second"])
        if row["share_of_bandwidth"] and row["batch"] == 1:
            text += f" ({row['share_of_bandwidth']:.0%})"
        key = (row["model"], row["who"], row["cache"], row["weights"])
        lines.setdefault(key, {})[row["length"], row["batch"]] = text
    body = ([*key, *(cells.get(place, "") for place in columns)] for key, cells in lines.items())
    header = ["model", "", "cache", "weights", *(f"L {length:,}, B {batch}" for length, batch in columns)]
    return measure.markdown(header, body)


def ratios(rows: list[dict]) -> list[str]:
    """Ours against Llama, compiled against dynamic, caches against none, lower against single precision."""
    found = {}
    for row in rows:
        if not row["note"]:
            place = (row["model"], row["length"], row["batch"])
            found.setdefault(place, {})[row["who"], row["weights"], row["cache"]] = row
    lines = []
    for (model, length, batch), cells in found.items():
        speeds = {key: row["tokens_per_second"] for key, row in cells.items()}
        dynamic = ("ours", "fp32", "dynamic")
        pairs = [
            (dynamic, ("llama", "fp32", "dynamic")),
            (("ours", "fp32", "static"), ("llama", "fp32", "static")),
            (("ours", "fp32", "compiled"), dynamic),
            (("ours", "fp32", "onnx"), ("ours", "fp32", "compiled")),
            (dynamic, ("ours", "fp32", "none")),
            (("ours", "fp32", "compiled"), ("ours", "fp32", "none")),
            (("ours", "bf16", "dynamic"), dynamic),
            (("ours", "bf16", "compiled"), ("ours", "fp32", "compiled")),
            (("ours", "int8", "compiled"), ("ours", "fp32", "compiled")),
        ]
        texts = [
            f"{' '.join(ours)} / {' '.join(other)} = {speeds[ours] / speeds[other]:.2f}"
            for ours, other in pairs
            if ours in speeds and other in speeds
        ]
        if texts:
            lines.append(f"{model}, length {length:,}, batch {batch}: {'; '.join(texts)}")
    likelihoods = {row["weights"]: row["nats_per_token"] for row in rows if row["nats_per_token"]}
    if likelihoods:
        texts = (f"{weights} {nats:.4f}" for weights, nats in likelihoods.items())
        lines.append(f"shipped, validation nats per token: {', '.join(texts)}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = measure.parser(__doc__)
    flags.add_argument("--models", nargs="+", choices=("shipped", "256", "512"), default=["shipped", "512"])
    flags.add_argument("--lengths", type=int, nargs="+", default=[256, 2048, 8192])
    flags.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    flags.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    flags.add_argument("--steps", type=int, default=8, help="consecutive tokens to measure (default: %(default)s)")
    flags.add_argument("--corpus", type=Path, help="prepared corpus for likelihoods (default: skip)")
    flags.add_argument(
        "--windows", type=int, default=16, help="windows of 1,024 tokens to score (default: %(default)s)"
    )
    flags.set_defaults(seconds=4.0)
    quick = {"models": ["shipped"], "lengths": [32], "batches": [1, 2], "steps": 2, "seconds": 0.1, "windows": 1}
    args = measure.parsed(flags, argv, quick=quick | {"caches": [name for name in CACHES if name != "compiled"]})

    about = measure.machine(args)
    bandwidth = measure.read_bandwidth(args.device, args.quick)
    if DecoderProgram is None:
        print("onnxruntime is not installed: the program is not measured")
    about["read bandwidth"] = f"{bandwidth / 1e9:.1f} GB/s"
    print(about["read bandwidth"], flush=True)
    rows = []
    for name in args.models:
        shape = name if name == "shipped" else f"width {name}"
        ours = make_model(name, args.device)
        for kind in ("dynamic", "static", "sliding"):
            check_cache(kind, ours)
        print(f"{name}: cached logits equal uncached ones", flush=True)
        models = {("ours", "fp32"): ours, ("llama", "fp32"): llama(ours.config, args.device).eval()}
        for length in args.lengths:
            for batch in args.batches:
                start = time.perf_counter()
                rows += measured(args, shape, models, args.caches, length, batch, bandwidth)
                path = measure.write_results(args, "decoding", about, rows)
                taken = time.perf_counter() - start
                print(f"measured {name}, length {length:,}, batch {batch}: {taken:.0f} s", flush=True)
        if name == "shipped":
            lower = in_lower_precision(ours)
            kinds = [kind for kind in ("dynamic", "compiled") if kind in args.caches]
            # One after the other: a compiled step without guards would use the weights of the next model, in the
            # precision of its own.
            more = []
            for precision, model in lower.items():
                more += measured(args, BY_PRECISION, {precision: model}, kinds, args.lengths[0], 1, bandwidth)
            if args.corpus:
                add_likelihoods(more, lower, args.corpus, args.windows)
            else:
                print("no --corpus: the likelihood in lower precision is not measured")
            if not quantize_:
                print("torchao is not installed: int8 weights are not measured")
            rows += more
            path = measure.write_results(args, "decoding", about, rows)
    measure.print_results(args, table(rows), ratios(rows), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
