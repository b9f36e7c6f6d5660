"""Command line, machine, timing, memory and results of all benchmarks."""

import argparse
import csv
import importlib.metadata
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# ---------------------------------------------------------------------------------------------------------------------
# The command line and the machine
# ---------------------------------------------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: all cores)")
    flags.add_argument("--neighbours", type=int, default=0, help="other busy processes meanwhile (default: none)")
    flags.add_argument("--seconds", type=float, help="time limit for each group (default: %(default)s)")
    flags.add_argument("--quick", action="store_true", help="tiny sizes, to check that it runs; timings mean nothing")
    flags.add_argument(
        "--output_dir",
        type=Path,
        help=f"folder of the CSV (default: benchmarks/{RESULTS.name}; none with --quick)",
    )
    return flags


def parsed(flags: argparse.ArgumentParser, argv: Sequence[str] | None, quick: dict) -> argparse.Namespace:
    """Parse the command line and set the threads; `quick` replaces defaults under --quick."""
    if flags.parse_known_args(argv)[0].quick:
        flags.set_defaults(**quick)
    else:
        flags.set_defaults(output_dir=RESULTS)
    args = flags.parse_args(argv)
    if args.threads < 1:
        flags.error(f"--threads ({args.threads}) must be at least 1.")
    if args.device == "cuda" and not torch.cuda.is_available():
        flags.error("--device cuda: PyTorch finds no GPU here; use --device cpu.")
    torch.set_num_threads(args.threads)
    for _ in range(args.neighbours):
        multiprocessing.get_context("spawn").Process(target=_keep_busy, daemon=True).start()
    return args


def _keep_busy() -> None:
    """Load a core, as other programs do on a shared machine, until the benchmark ends."""
    while multiprocessing.parent_process().is_alive():
        sum(range(10**6))


def machine(args: argparse.Namespace) -> dict[str, str]:
    """Hardware, versions and command of a measurement."""
    gpu = {"gpu": torch.cuda.get_device_name()} if args.device == "cuda" else {}
    packages = ("torch", "transformers", *(("triton",) if gpu else ()))
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {
        "date": date.today().isoformat(),
        **gpu,
        "processor": f"{_processor()}, {args.threads} of {os.cpu_count()} cores",
        "memory": f"{memory_bytes('cpu') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        # Only the names of paths, whose folders may be private.
        "command": " ".join(
            ["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *(Path(a).name for a in sys.argv[1:])]
        ),
    }


def _processor() -> str:
    """The name of the processor and its instruction sets for matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    name = found.get("model name", platform.machine())
    return f"{name} (family {found.get('cpu family')}, model {found.get('model')}; {' '.join(wide[-2:])})"


def memory_bytes(device: str) -> int:
    """All the memory of the machine, or of the GPU."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------------------------------------------------------------
# The clock
# ---------------------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Seconds of one call, until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def take_turns(
    competitors: dict[str, Callable[[], Sequence[float]]], seconds: float, most: int = 50
) -> dict[str, tuple[int, list[float]]]:
    """Run competitors in turns, so that other load on the machine slows all of them alike.

    Args:
        competitors: Each call returns its measures, in seconds.
        seconds: Time limit; a round that would end later is not started, but the first.
        most: Maximum number of rounds.

    Returns:
        For each competitor the number of runs, and the median of each measure.
    """
    taken = {name: [] for name in competitors}
    start = time.perf_counter()
    for turn in range(1, most + 1):
        for name, run in competitors.items():
            taken[name].append(run())
        if (time.perf_counter() - start) * (turn + 1) / turn > seconds:
            break
    return {name: (len(runs), [median(column) for column in zip(*runs, strict=True)]) for name, runs in taken.items()}


def matmul_peak(dtype: torch.dtype, device: str, quick: bool = False) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    side = 256 if quick else 8192 if device == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: left @ right, device) for _ in range(8))


def read_bandwidth(device: str, quick: bool = False) -> float:
    """Bytes per second of adding up an array far larger than every cache, the best of several."""
    array = torch.ones(2**20 if quick else 2**28, device=device)  # 1 GiB
    return array.nbytes / min(seconds_of(array.sum, device) for _ in range(8))


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def in_fresh_process(function: Callable, *args):
    """Call a function in a process of its own, whose peak memory is then that of this call alone.

    The process is forked from a server that has imported the libraries and done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "modeling_music_tx"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def peak_memory(work: Callable[[], object], device: str) -> tuple[int, int]:
    """Peak memory of a call in bytes: beyond that before it, and in total.

    On a GPU, PyTorch's allocator counts. On a CPU, it is the highest resident memory of the process (`ru_maxrss`),
    which never falls: call this once, in a fresh process, when nothing larger has come and gone before.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        before, peak = _highest_resident_bytes(), _highest_resident_bytes
    work()
    return peak() - before, peak()


def _highest_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---------------------------------------------------------------------------------------------------------------------
# Parity and results
# ---------------------------------------------------------------------------------------------------------------------


def must_equal(name: str, result: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype):
    """Check a result before it is timed, up to rounding.

    Raises:
        RuntimeError: The two differ, as a share of the expected values' norm, by more than the dtype explains.
    """
    allowed = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    error = (result.double() - expected.double()).norm() / expected.double().norm()
    if not error <= allowed:  # a NaN does not pass either
        raise RuntimeError(f"{name} is off by {error:.1e} of the expected norm; {allowed:.0e} is allowed.")


def write_results(args: argparse.Namespace, benchmark: str, about: dict[str, str], rows: list[dict]) -> Path | None:
    """Write rows to a CSV, below comment lines that say what they were measured on.

    It is called `{benchmark}-{device}-{date}.csv`, or `{benchmark}-{device}-busy-{date}.csv` beside busy processes.
    """
    if args.output_dir is None:
        return None
    args.output_dir.mkdir(parents=True, exist_ok=True)
    device = f"{args.device}-busy" if args.neighbours else args.device
    path = args.output_dir / f"{benchmark}-{device}-{about['date']}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in about.items())
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_results(args: argparse.Namespace, table: str, ratios: Iterable[str], path: Path | None) -> None:
    """Print a table, comparisons and the path of the CSV; no comparisons with --quick, whose timings mean nothing."""
    print(table, *(() if args.quick else ratios), *([path] if path else []), sep="\n")


def read_results(path: Path) -> tuple[dict[str, str], list[dict]]:
    """Read what `write_results` wrote; numbers come back as numbers, empty cells as None."""
    lines = path.read_text(encoding="utf-8").splitlines()
    about = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = csv.DictReader(line for line in lines if not line.startswith("# "))
    return about, [{name: _number(value) for name, value in row.items()} for row in rows]


def _number(text: str) -> str | int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def rounded(value: float, digits: int = 4) -> float:
    """A number rounded to the significant digits of a measurement."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


def short(value: float) -> str:
    """A number as text, with three digits or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
