"""Training steps: tokens/s, memory and share of the peak matrix product, compared with Llama.

    python -m benchmarks.training

A step is forward, loss, backward, clipping and AdamW on 2,048 tokens of 6 layers; bf16 is autocast. Llama has the same
width, depth, heads and vocabulary, and as many parameters: its feed-forward block is larger by the size of our
relative embeddings. Before timing, the loss and all gradients of our step are checked against those with eager
attention. Models run in turns; medians are reported.

- Share of peak: the operations of a step (forward, and twice as many backward) per second, relative to the fastest
  large matrix product of the same dtype in the same run. Attention counts its causal half, relative logits the
  distances that occur; recomputation to save memory is not counted.
- Peak memory: what weights, gradients, optimizer and two steps add at most to a fresh process.
- Waiting: the share of the time that the training process spends on augmented crops of synthetic pieces.
"""

import functools
import sys
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from benchmarks import measure
from benchmarks.measure import DTYPES
from benchmarks.models import llama, music_tx, num_parameters
from benchmarks.tokenization import piano_score
from corpus.dataset import Crops, CropTransform
from tokenization import MusicTxTokenizer


def make_model(who: str, width: int, device: str) -> PreTrainedModel:
    """A new model, ours or Llama."""
    ours = music_tx(width, device)
    return ours if who == "ours" else llama(ours.config, device)


def make_batches(length: int, batch_size: int, device: str) -> Iterator[dict[str, torch.Tensor]]:
    """An infinite iterator of random augmented crops of synthetic pieces."""
    rng, tokenizer = np.random.default_rng(0), MusicTxTokenizer()
    ids = [
        np.array(
            [tokenizer.bos_token_id, *tokenizer.encode(piano_score(rng, 2000)), tokenizer.eos_token_id], np.uint16
        )
        for _ in range(8)
    ]
    pieces = Dataset.from_dict({"name": [str(number) for number in range(len(ids))], "input_ids": ids})
    crops = Crops(pieces, length, transform=CropTransform(tokenizer, length))
    while True:
        for batch in DataLoader(crops, batch_size, drop_last=True, pin_memory=device == "cuda"):
            yield {name: tensor.to(device) for name, tensor in batch.items()}


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW in one fused pass, as in train.py."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: dict, dtype: torch.dtype):
    """One optimizer step."""
    loss_of(model, batch, dtype).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def loss_of(model: PreTrainedModel, batch: dict, dtype: torch.dtype) -> torch.Tensor:
    """The mean loss per token."""
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        return model(**batch, use_cache=False).loss


def operations(model: PreTrainedModel, batch: int, length: int) -> int:
    """Floating-point operations of one step; a multiplication with its addition is two."""
    config = model.config
    weights = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)  # the tied embedding as head
    pairs = length * (length + 1)  # queries with keys and weights with values, half a square each
    if hasattr(config, "max_relative_distance"):
        pairs += sum(min(place + 1, config.max_relative_distance) for place in range(length))
    attention = config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
    return 3 * 2 * batch * (weights * length + attention)


# ---------------------------------------------------------------------------------------------------------------------
# Checks and measurements
# ---------------------------------------------------------------------------------------------------------------------


def check_step(width: int, dtype: torch.dtype, device: str, length: int = 301):
    """Check loss and gradients of one step, of more than one block, against eager attention in fp32."""
    model = music_tx(width, device)
    ids = torch.randint(3, model.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0)).to(device)
    batch = {"input_ids": ids, "labels": ids}

    def loss_and_gradients(dtype):
        loss = loss_of(model, batch, dtype)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    loss, gradients = loss_and_gradients(dtype)
    model.set_attn_implementation("eager")
    expected_loss, expected_gradients = loss_and_gradients(torch.float32)
    measure.must_equal(f"width {width}: the loss", loss, expected_loss, dtype)
    measure.must_equal(f"width {width}: the gradients", gradients, expected_gradients, dtype)


def timed(model, optimizer, batches, dtype, device) -> tuple[float, float]:
    """Seconds of one step, and of waiting for its batch."""
    batch = []
    waiting = measure.seconds_of(lambda: batch.append(next(batches)), device)
    return measure.seconds_of(lambda: train_step(model, optimizer, batch[0], dtype), device), waiting


def peak_of(who: str, width: int, length: int, batch: int, dtype: str, device: str, threads: int) -> int:
    """Peak memory of training in bytes, weights included."""
    torch.set_num_threads(threads)

    def steps(width, length, batch):
        model = make_model(who, width, device)
        optimizer = make_optimizer(model)
        ids = torch.randint(3, model.config.vocab_size, (batch, length), device=device)
        for _ in range(2):
            train_step(model, optimizer, {"input_ids": ids, "labels": ids}, DTYPES[dtype])

    steps(64, 64, 1)  # loads libraries and starts threads
    return measure.peak_memory(lambda: steps(width, length, batch), device)[0]


def measured(args, width: int, length: int, dtype: str, peak: float) -> list[dict]:
    """The rows of one width, length and dtype: ours and Llama's."""
    batch = max(args.tokens // length, 1)
    rows, competitors = {}, {}
    in_process = functools.partial(measure.in_fresh_process, peak_of) if args.device == "cpu" else peak_of
    for who in ("ours", "llama"):
        rows[who] = {
            "device": args.device,
            "dtype": dtype,
            "width": width,
            "length": length,
            "batch": batch,
            "who": who,
        }
        rows[who]["peak_bytes"] = in_process(who, width, length, batch, dtype, args.device, args.threads)
    for who, row in rows.items():
        model = make_model(who, width, args.device)
        row |= {"parameters": num_parameters(model), "operations": operations(model, batch, length)}
        batches = make_batches(length, batch, args.device)
        competitors[who] = functools.partial(timed, model, make_optimizer(model), batches, DTYPES[dtype], args.device)
        competitors[who]()  # warms up
    for who, (turns, (seconds, waiting)) in measure.take_turns(competitors, args.seconds).items():
        row = rows[who]
        row["step_ms"] = measure.rounded(seconds * 1000)
        row["tokens_per_second"] = measure.rounded(batch * length / seconds)
        row["share_of_peak"] = measure.rounded(row["operations"] / seconds / peak)
        row["share_waiting"] = measure.rounded(waiting / (waiting + seconds))
        row["turns"] = turns
    return list(rows.values())


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    """A row for each measurement."""
    header = ("width", "length", "dtype", "", "parameters", "tokens/s", "step", "peak memory", "of peak", "waiting")
    body = (
        (
            *(row[name] for name in ("width", "length", "dtype", "who")),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['step_ms']:,.0f} ms",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['share_of_peak']:.0%}",
            f"{row['share_waiting']:.1%}",
        )
        for row in rows
    )
    return measure.markdown(header, body)


def ratios(rows: list[dict]) -> list[str]:
    """Time and memory of our step relative to Llama's."""
    found = {(row["width"], row["length"], row["dtype"], row["who"]): row for row in rows}
    lines = []
    for (width, length, dtype, who), row in found.items():
        if who == "ours":
            other = found[width, length, dtype, "llama"]
            time, memory, parameters = (row[key] / other[key] for key in ("step_ms", "peak_bytes", "parameters"))
            lines.append(
                f"width {width}, L = {length:,}, {dtype}: {time:.2f}x the time of Llama's step, {memory:.2f}x its "
                f"memory, {parameters:.3f}x its parameters"
            )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = measure.parser(__doc__)
    flags.add_argument("--widths", type=int, nargs="+", default=[256, 512])
    flags.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    flags.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    flags.add_argument("--tokens", type=int, default=2048, help="tokens in one step (default: %(default)s)")
    flags.set_defaults(seconds=12.0)
    quick = {"widths": [128], "lengths": [32], "tokens": 64, "seconds": 0.1}
    args = measure.parsed(flags, argv, quick=quick)

    about = measure.machine(args)
    peaks = {dtype: measure.matmul_peak(DTYPES[dtype], args.device, args.quick) for dtype in args.dtypes}
    about["matrix product"] = ", ".join(f"{dtype} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    print(about["matrix product"], flush=True)
    rows = []
    for width in args.widths:
        for dtype in args.dtypes:
            check_step(width, DTYPES[dtype], args.device)
        print(f"width {width}: loss and gradients equal those of eager attention", flush=True)
        for length in args.lengths:
            for dtype in args.dtypes:
                rows += measured(args, width, length, dtype, peaks[dtype])
                path = measure.write_results(args, "training", about, rows)
                print(f"measured width {width}, L = {length:,}, {dtype}", flush=True)
    measure.print_results(args, table(rows), ratios(rows), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
