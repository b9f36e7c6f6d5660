"""Time and memory of one layer's attention, forward and backward, against length, compared with other methods.

    python -m benchmarks.attention
    python -m benchmarks.attention --device cuda --batch 8 --dtypes bf16 --lengths 2048 4096 8192

- blocked: `blocked_relative_attention`, the default on a CPU.
- triton: `triton_relative_attention`, on a GPU.
- causal: PyTorch's causal attention with no relative term at all (on a GPU in half precision its flash kernel).
- skewing: the paper's procedure as published, the whole L x L matrix written and reshaped.
- bias: the relative term as a bias for PyTorch's attention.
- flex: the same inside PyTorch's flex attention, compiled; on a CPU it has no backward, so only its forward runs.

The table of relative embeddings has as many distances as the sequence is long. Before timing, the outputs and all four
gradients of every backend are checked against the equation at a small length, and the outputs of the last queries at
the measured length. Backends run in turns; medians are reported. Extra memory is what forward and backward need beyond
query, key, value, embeddings and the incoming gradient: on a CPU the peak resident memory of a fresh process for each
measurement (less what it held before), on a GPU that of PyTorch's allocator. A backend that writes whole L x L
matrices is skipped if they would take more than 60 percent of the memory.
"""

import functools
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from benchmarks import measure
from benchmarks.measure import DTYPES
from modeling_music_tx.relative_attention import blocked_relative_attention, relative_attention, relative_logits

try:
    from modeling_music_tx.relative_attention_triton import triton_relative_attention
except ImportError:
    triton_relative_attention = None


# ---------------------------------------------------------------------------------------------------------------------
# Backends: query, key, value [B, H, L, D] and embeddings [H, L, D] to [B, H, L, D]
# ---------------------------------------------------------------------------------------------------------------------


def blocked(query, key, value, embeddings):
    """Blocks of queries."""
    return blocked_relative_attention(query, key, value, embeddings, scaling(query))


def triton(query, key, value, embeddings):
    """One kernel."""
    return triton_relative_attention(query, key, value, embeddings, scaling(query))


def causal(query, key, value, embeddings):
    """No relative term."""
    flash = query.is_cuda and query.dtype != torch.float32
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else nullcontext():
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling(query))


def skewing(query, key, value, embeddings):
    """Pad a column on the left, read the rows as one shorter, drop the first; Huang et al. 2018, section 3.4.1."""
    batch, heads, length, _ = query.shape
    products = pad(query @ embeddings.transpose(1, 2), (1, 0))  # [B, H, L, 1 + L]
    relative = products.reshape(batch, heads, length + 1, length)[:, :, 1:]
    logits = (query @ key.transpose(2, 3) + relative) * scaling(query)
    return logits.masked_fill(future(length, query.device), -torch.inf).softmax(-1) @ value


def bias(query, key, value, embeddings):
    """The relative term, masked, as the additive mask of PyTorch's attention."""
    length = query.shape[2]
    relative = relative_logits(query, embeddings, length, 0) * scaling(query)
    relative = relative.masked_fill(future(length, query.device), -torch.inf)
    return scaled_dot_product_attention(query, key, value, attn_mask=relative, scale=scaling(query))


def flex(query, key, value, embeddings):
    """Products of all queries with all embeddings, looked up by distance inside the compiled kernel."""
    products = query @ embeddings.transpose(1, 2) * scaling(query)  # [B, H, L, L]
    return _flex(query, key, value, products, _causal_blocks(query.shape[2], query.device))


@functools.partial(torch.compile, dynamic=False)
def _flex(query, key, value, products, blocks):
    farthest = products.shape[-1] - 1

    def add_relative(score, batch, head, row, column):
        return score + products[batch, head, row, farthest - (row - column).clamp(min=0)]

    return flex_attention(query, key, value, add_relative, blocks, scale=scaling(query))


@functools.cache
def _causal_blocks(length, device):
    return create_block_mask(lambda batch, head, row, column: row >= column, None, None, length, length, device)


def scaling(query):
    """The paper's factor on the logits."""
    return query.shape[-1] ** -0.5


def future(length, device):
    """True where a key lies after its query, [L, L]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


BACKENDS = {function.__name__: function for function in (blocked, triton, causal, skewing, bias, flex)}
# How many L x L matrices for each head a backend holds at its peak, forward and backward, as measured with this file.
MATRICES = {"skewing": 6, "bias": 6, "flex": 2}


def available(device: str) -> list[str]:
    """The backends that can run on a device."""
    return [name for name in BACKENDS if name != "triton" or (device == "cuda" and triton_relative_attention)]


def forward_only(backend: str, device: str) -> bool:
    """Whether a backend has no backward pass on a device."""
    return backend == "flex" and device == "cpu"


# ---------------------------------------------------------------------------------------------------------------------
# Checks and measurements
# ---------------------------------------------------------------------------------------------------------------------


def inputs(batch, heads, length, dim, dtype, device) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Query, key, value and embeddings with logits large enough that a wrong distance shows; and a gradient."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(batch, heads, length, dim)] * 3 + [(heads, length, dim), (batch, heads, length, dim)]
    *tensors, grad = (torch.randn(shape, generator=generator, dtype=dtype, device=device) for shape in shapes)
    return [tensor.requires_grad_() for tensor in tensors], grad


def check_small(backend: str, dtype: torch.dtype, device: str, dim: int, length: int = 301):
    """Check outputs and all gradients at a length that the equation can handle, odd and of more than one block."""
    tensors, grad = inputs(2, 2, length, dim, dtype, device)
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    if backend == "causal":
        exact[3] = torch.zeros_like(exact[3], requires_grad=True)
    expected = relative_attention(*exact, scaling(exact[0]))
    if forward_only(backend, device):
        tensors = [tensor.detach() for tensor in tensors]
    output = BACKENDS[backend](*tensors)
    measure.must_equal(f"{backend}: the output", output, expected, dtype)
    if not forward_only(backend, device):
        names = ("query", "key", "value", "embeddings")[: 3 if backend == "causal" else 4]
        expected_grads = torch.autograd.grad(expected, exact[: len(names)], grad.float())
        grads = torch.autograd.grad(output, tensors[: len(names)], grad)
        for name, found, right in zip(names, grads, expected_grads, strict=True):
            measure.must_equal(f"{backend}: the gradient of {name}", found, right, dtype)


@torch.no_grad()
def check_last_queries(backend: str, tensors: list[torch.Tensor], count: int = 4):
    """Check the outputs of the last queries at full length, which also warms up the backend."""
    tensors = [tensor.detach() for tensor in tensors]
    output = BACKENDS[backend](*tensors)[:, :, -count:]
    query, key, value, embeddings = (tensor.float() for tensor in tensors)
    if backend == "causal":
        embeddings = torch.zeros_like(embeddings)
    offset = query.shape[2] - count
    expected = relative_attention(query[:, :, -count:], key, value, embeddings, scaling(query), offset)
    measure.must_equal(f"{backend}: the last queries of {query.shape[2]}", output, expected, tensors[0].dtype)


def forward_and_backward(backend: str, tensors, grad, device: str) -> tuple[float, float]:
    """Seconds of one forward pass and of one backward pass; NaN if there is no backward pass."""
    output = []
    if forward_only(backend, device):
        tensors = [tensor.detach() for tensor in tensors]
        return measure.seconds_of(lambda: BACKENDS[backend](*tensors), device), float("nan")
    forward = measure.seconds_of(lambda: output.append(BACKENDS[backend](*tensors)), device)
    wanted = tensors[:3] if backend == "causal" else tensors
    return forward, measure.seconds_of(lambda: torch.autograd.grad(output.pop(), wanted, grad), device)


def peak_of(backend: str, batch, heads, length, dim, dtype: str, device: str, threads: int) -> tuple[int, int]:
    """Peak memory of one forward and backward pass in bytes, beyond the inputs and in total."""
    torch.set_num_threads(threads)
    small, full = (inputs(batch, heads, size, dim, DTYPES[dtype], device) for size in (64, length))
    forward_and_backward(backend, *small, device)  # loads libraries and starts threads
    return measure.peak_memory(lambda: forward_and_backward(backend, *full, device), device)


def measured(args, dtype: str, length: int) -> list[dict]:
    """The rows of one length and dtype, a row for each backend."""
    common = {"device": args.device, "dtype": dtype, "length": length, "batch": args.batch, "heads": args.heads}
    rows = {name: common | {"head_dim": args.head_dim, "backend": name} | EMPTY for name in args.backends}
    shape = (args.batch, args.heads, length, args.head_dim)
    for name, row in rows.items():
        # On a CPU, PyTorch's attention with a bias that wants a gradient computes in single precision.
        itemsize = 4 if name == "bias" and args.device == "cpu" else DTYPES[dtype].itemsize
        matrices_bytes = MATRICES.get(name, 0) * args.batch * args.heads * length**2 * itemsize
        if matrices_bytes > 0.6 * measure.memory_bytes(args.device):
            row["note"] = "left out: its L x L matrices need too much memory"
        elif args.device == "cuda":
            row["extra_bytes"], row["process_bytes"] = peak_of(name, *shape, dtype, args.device, args.threads)
        elif not forward_only(name, args.device):  # compiling flex would count as its memory
            try:
                row["extra_bytes"], row["process_bytes"] = measure.in_fresh_process(
                    peak_of, name, *shape, dtype, args.device, args.threads
                )
            except BrokenProcessPool:
                row["note"] = "left out: its process was killed, most likely for want of memory"

    tensors, grad = inputs(*shape, DTYPES[dtype], args.device)
    competitors = {}
    for name in [name for name, row in rows.items() if not row["note"]]:
        check_last_queries(name, tensors)
        competitors[name] = functools.partial(forward_and_backward, name, tensors, grad, args.device)
    for name, (turns, (forward, backward)) in measure.take_turns(competitors, args.seconds).items():
        rows[name]["forward_ms"] = measure.rounded(forward * 1000)
        rows[name]["backward_ms"] = measure.rounded(backward * 1000) if backward == backward else None
        rows[name]["turns"] = turns
    return list(rows.values())


EMPTY = dict.fromkeys(("forward_ms", "backward_ms", "extra_bytes", "process_bytes", "turns", "note"))


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def total_ms(row: dict | None) -> float | None:
    """Forward and backward together."""
    return row["forward_ms"] + row["backward_ms"] if row and row["backward_ms"] else None


def table(rows: list[dict]) -> str:
    """Milliseconds forward + backward and megabytes of extra memory, a row for each backend and dtype."""
    lengths = sorted({row["length"] for row in rows})
    lines = {}
    for row in rows:
        parts = ["left out"] if row["note"] else [measure.short(row["forward_ms"])]
        if row["backward_ms"]:
            parts[0] += f" + {measure.short(row['backward_ms'])} ms"
        elif not row["note"]:
            parts[0] += " ms forward"
        if row["extra_bytes"] is not None:
            parts.append(f"{row['extra_bytes'] / 1e6:,.0f} MB")
        lines.setdefault((row["dtype"], row["backend"]), {})[row["length"]] = ", ".join(parts)
    body = ([*key, *(cells.get(length, "") for length in lengths)] for key, cells in lines.items())
    return measure.markdown(["dtype", "backend", *(f"L = {length:,}" for length in lengths)], body)


def ratios(rows: list[dict]) -> list[str]:
    """Ours compared with each of the others, forward + backward, and the memory of the longest sequence."""
    found = {(row["dtype"], row["length"], row["backend"]): row for row in rows}
    lines = []
    for (dtype, length, backend), row in found.items():
        ours = found.get((dtype, length, "triton")) or found.get((dtype, length, "blocked"))
        if ours is None or backend in ("blocked", "triton") or not total_ms(row) or not total_ms(ours):
            continue
        speed = total_ms(row) / total_ms(ours)
        text = f"takes {1 / speed:.2f}x the time of" if backend == "causal" else f"is {speed:.2f}x as fast as"
        lines.append(f"{dtype}, L = {length:,}: {ours['backend']} {text} {backend}")
        if backend != "causal" and row["extra_bytes"] and ours["extra_bytes"]:
            lines[-1] += f", with 1/{row['extra_bytes'] / ours['extra_bytes']:.1f} of its extra memory"
    longest = max(row["length"] for row in rows)
    for row in rows:
        if row["backend"] == "blocked" and row["length"] == longest and row["process_bytes"]:
            lines.append(
                f"{row['dtype']}, L = {row['length']:,}: blocked runs forward + backward in a process of "
                f"{row['process_bytes'] / 1e9:.2f} GB, {row['extra_bytes'] / 1e9:.2f} GB beyond its inputs"
            )
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    flags = measure.parser(__doc__)
    flags.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384], help="tokens")
    flags.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    flags.add_argument("--backends", nargs="+", choices=BACKENDS, help="(default: all that support the device)")
    flags.add_argument("--batch", type=int, default=1)
    flags.add_argument("--heads", type=int, default=8)
    flags.add_argument("--head_dim", type=int, default=64)
    flags.set_defaults(seconds=5.0)
    args = measure.parsed(flags, argv, quick={"lengths": [96, 160], "heads": 2, "head_dim": 16, "seconds": 0.2})
    args.backends = args.backends or available(args.device)
    missing = set(args.backends) - set(available(args.device))
    if missing:
        flags.error(f"--backends {' '.join(sorted(missing))} cannot run on {args.device} here.")

    about = measure.machine(args)
    for dtype in args.dtypes:
        for name in args.backends:
            check_small(name, DTYPES[dtype], args.device, args.head_dim)
    print("all backends equal the equation, outputs and gradients", flush=True)

    rows = []
    for dtype in args.dtypes:
        for length in args.lengths:
            rows += measured(args, dtype, length)
            path = measure.write_results(args, "attention", about, rows)
            print(f"measured {dtype}, L = {length:,}", flush=True)
    measure.print_results(args, table(rows), ratios(rows), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
