"""The pictures of a report: histograms of sets of music, their self-similarity, and attention by distance."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation.metrics import LAGS, TIME_BOUNDS, VELOCITY_BOUNDS
from evaluation.rendering import DOTS_PER_INCH, KEY_NAMES, LIGHT

# The model's set stands out from the two of real music. Line styles tell them apart without colour.
STYLES = (
    {"color": "#c4336a", "linewidth": 2.2, "zorder": 3},
    {"color": "#3f6c9f", "linewidth": 1.4, "linestyle": "--"},
    {"color": "#8b97a8", "linewidth": 1.4, "linestyle": ":"},
)


def draw_histograms(sets: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the histograms of some sets above each other.

    Args:
        sets: By the name of the set, the mean shares of each of `evaluation.metrics.histograms`.
        path: The PNG to write.
    """
    bounds = {
        "pitch_classes": np.arange(13),
        "note_lengths": _closed(TIME_BOUNDS, factor=2**0.5),
        "inter_onsets": _closed(TIME_BOUNDS, factor=2**0.5),
        "velocities": np.concatenate([[1], VELOCITY_BOUNDS, [129]]),
    }
    figure = _figure(10, 6.5)
    for number, (name, edges) in enumerate(bounds.items(), start=1):
        axes = _axes(figure, (2, 2, number), name.replace("_", " "))
        for style, (label, histograms) in zip(STYLES, sets.items(), strict=False):
            # A set in which no piece has two notes has no histograms.
            if name in histograms:
                axes.stairs(histograms[name], edges, label=label, **style)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
        axes.yaxis.set_major_formatter("{x:.0%}")
        if name == "pitch_classes":
            axes.set_xticks(np.arange(12) + 0.5, KEY_NAMES)
        elif name != "velocities":
            axes.set_xscale("log")
            axes.set_xticks([0.01, 0.1, 1, 10], ["10 ms", "0.1 s", "1 s", "10 s"])
            axes.minorticks_off()
    figure.axes[0].legend(frameon=False, labelcolor=LIGHT.ink, fontsize=9)
    _save(figure, path)


def draw_self_similarity(sets: dict[str, np.ndarray], path: Path) -> None:
    """Draw the similarity of the harmony of two seconds by the time between them.

    Args:
        sets: By the name of the set, the mean similarity by lag in seconds, from 0 on.
        path: The PNG to write.
    """
    figure = _figure(10, 4)
    axes = _axes(figure, (1, 1, 1), "self-similarity")
    for style, (label, similarity) in zip(STYLES, sets.items(), strict=False):
        axes.plot(np.arange(1, len(similarity)), similarity[1:], label=label, **style)
    longest = max(map(len, sets.values()))
    for name, lags in LAGS.items():
        if lags.start >= longest:
            continue
        axes.axvline(lags.start, color=LIGHT.line, linewidth=0.8)
        axes.text(
            lags.start, 1, f" {name}", transform=axes.get_xaxis_transform(), color=LIGHT.ink, fontsize=9, va="top"
        )
    axes.set_xlabel("seconds apart", color=LIGHT.ink, fontsize=9)
    axes.margins(x=0)
    axes.legend(frameon=False, labelcolor=LIGHT.ink, fontsize=9)
    _save(figure, path)


def draw_attention(shares: np.ndarray, octaves: list[tuple[int, int]], path: Path) -> None:
    """Draw the attention of each head by distance, a row per head, sorted within each layer from near to far.

    Args:
        shares: Share of each octave of distances, `[layers, heads, octaves]`.
        octaves: First and last distance of each.
        path: The PNG to write.
    """
    layers, heads, _ = shares.shape
    # By the mean octave.
    order = (shares * np.arange(len(octaves))).sum(axis=-1).argsort(axis=-1, kind="stable")
    rows = np.take_along_axis(shares, order[..., None], axis=1).reshape(layers * heads, -1)
    figure = _figure(10, 1.2 + 0.16 * len(rows))
    axes = _axes(figure, (1, 1, 1), "attention by distance")
    image = axes.imshow(rows, cmap=LIGHT.velocity, vmin=0, aspect="auto", interpolation="nearest")
    axes.set_xticks(
        range(len(octaves)), [str(first) if first == last else f"{first} to {last}" for first, last in octaves]
    )
    axes.set_xlabel("tokens back", color=LIGHT.ink, fontsize=9)
    axes.set_yticks(np.arange(layers) * heads + (heads - 1) / 2, [f"layer {layer + 1}" for layer in range(layers)])
    axes.hlines(np.arange(1, layers) * heads - 0.5, -0.5, len(octaves) - 0.5, color="white", linewidth=2)
    scale = figure.colorbar(image, ax=axes, format="{x:.0%}", pad=0.02)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, labelsize=9, labelcolor=LIGHT.ink)
    _save(figure, path)


def _closed(bounds: np.ndarray, factor: float) -> np.ndarray:
    """Give the open bins at both ends of a logarithmic scale the width of the others."""
    return np.concatenate([[bounds[0] / factor], bounds, [bounds[-1] * factor]])


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: tuple[int, int, int], title: str) -> Axes:
    axes = figure.add_subplot(*place, facecolor=LIGHT.paper)
    axes.set_title(title, color=LIGHT.ink, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(LIGHT.line)
    axes.tick_params(length=0, labelsize=9, labelcolor=LIGHT.ink)
    return axes


def _save(figure: Figure, path: Path) -> None:
    # Matplotlib would write its version into the file.
    figure.savefig(path, format="png", metadata={"Software": None})
