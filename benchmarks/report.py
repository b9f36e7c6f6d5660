"""Write tables and plots of the measurements: `python -m benchmarks.report`.

They show the newest CSV in results/ of each benchmark and device. The tables go into README.md, between its markers,
the plots into plots/.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import attention, decoding, generation, measure, training

ROOM = Path(__file__).parent
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
BENCHMARKS = {"attention": attention, "training": training, "decoding": decoding, "generation": generation}

# One colour for each competitor, in every plot.
COLOURS = {
    "blocked": "tab:blue",
    "triton": "tab:cyan",
    "causal": "tab:gray",
    "skewing": "tab:red",
    "bias": "tab:orange",
    "flex": "tab:green",
}
CACHE_COLOURS = {
    "dynamic": "tab:blue",
    "static": "tab:cyan",
    "compiled": "tab:purple",
    "onnx": "tab:orange",
    "sliding": "tab:green",
    "none": "tab:red",
}


def plot_attention(rows: list[dict], path: Path):
    """Time and extra memory of one layer against length, a column of panels for each dtype."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(5.5 * len(dtypes), 7), layout="constrained")
    panels = figure.subplots(2, len(dtypes), sharex=True, sharey="row", squeeze=False)
    for column, dtype in enumerate(dtypes):
        of_dtype = [row for row in rows if row["dtype"] == dtype]
        _lines(panels[0, column], of_dtype, "backend", attention.total_ms, COLOURS)
        _lines(panels[1, column], of_dtype, "backend", lambda row: _mega(row["extra_bytes"]), COLOURS)
        panels[0, column].set_title(dtype)
        panels[1, column].set_xlabel("length L")
    panels[0, 0].set_ylabel("forward + backward, ms")
    panels[1, 0].set_ylabel("extra memory, MB")
    _save(figure, panels, path)


def plot_decoding(rows: list[dict], path: Path):
    """Tokens/s against length at batch size 1, a panel for each model; Llama's lines are dashed."""
    rows = [row for row in rows if row["batch"] == 1 and row["model"] != decoding.BY_PRECISION]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5.5 * len(models), 4.5), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for who, style in (("ours", "-"), ("llama", "--")):
            of_model = [
                row | {"line": f"{row['cache']}"} for row in rows if (row["model"], row["who"]) == (model, who)
            ]
            suffix = "" if who == "ours" else " (Llama)"
            _lines(panel, of_model, "cache", lambda row: row["tokens_per_second"], CACHE_COLOURS, style, suffix)
        panel.set_title(model)
        panel.set_xlabel("length of the cache")
    panels[0, 0].set_ylabel("tokens a second, batch size 1")
    _save(figure, panels, path)


PLOTS = {"attention": plot_attention, "decoding": plot_decoding}


def _lines(panel, rows: list[dict], key: str, value: Callable, colours: dict, style: str = "-", suffix: str = ""):
    """One line for each name that stands under `key`."""
    for name in dict.fromkeys(row[key] for row in rows):
        points = sorted((row["length"], value(row)) for row in rows if row[key] == name and value(row))
        if points:
            panel.plot(
                *zip(*points, strict=True), style, marker="o", markersize=4, color=colours[name], label=name + suffix
            )


def _mega(count: int | None) -> float | None:
    return count / 1e6 if count else None


def _save(figure: Figure, panels, path: Path):
    lengths = sorted({x for panel in panels.flat for line in panel.lines for x in line.get_xdata()})
    for panel in panels.flat:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels.flat[0].legend()
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def newest(results: Path, benchmark: str) -> list[Path]:
    """The last CSV of a benchmark on each device, idle and busy, as `measure.write_results` names them."""
    last = {_undated(path): path for path in sorted(results.glob(f"{benchmark}-*.csv"))}
    return list(last.values())


def _undated(path: Path) -> str:
    """Benchmark and device, without the date: the name of the plot."""
    return path.stem.rsplit("-", 3)[0]


def section(benchmark: str, path: Path, plots: Path) -> str:
    """Markdown of one CSV; writes its plot."""
    about, rows = measure.read_results(path)
    _, device, *busy = _undated(path).split("-")
    parts = [f"### {benchmark}.py, {' '.join([*busy, device.upper()])}, {about['date']}"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in about.items() if name != "date"))
    if benchmark in PLOTS and len({row["length"] for row in rows}) > 1:
        plot = plots / f"{_undated(path)}.png"
        PLOTS[benchmark](rows, plot)
        parts.append(f"![{benchmark} against length]({plots.name}/{plot.name})")
    parts.append(BENCHMARKS[benchmark].table(rows))
    parts.append("\n".join(f"- {line}" for line in BENCHMARKS[benchmark].ratios(rows)))
    return "\n\n".join(part for part in parts if part)


def write_report(room: Path):
    """Update the tables in a folder's README.md and its plots from its results/."""
    readme, plots = room / "README.md", room / "plots"
    plots.mkdir(exist_ok=True)
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    sections = [section(name, path, plots) for name in BENCHMARKS for path in newest(room / "results", name)]
    measured = "\n\n".join(sections) or "Nothing has been measured yet."
    readme.write_text(f"{before}{BEGIN}\n{measured}\n\n{END}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", type=Path, default=ROOM, help="folder of README.md, results/ and plots/ (this one)")
    args = parser.parse_args(argv)
    if not (args.room / "README.md").is_file():
        parser.error(f"{args.room} holds no README.md with the line {BEGIN.strip()}.")
    write_report(args.room)
    print(args.room / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
