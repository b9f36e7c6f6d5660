"""The text of a report: the page in Markdown, and the facts for the model card."""

from pathlib import Path

from corpus.plain_text import escape_markdown

# The statistics of the model card; the page has all.
FOR_CARD = (
    "notes_per_second",
    "polyphony",
    "silence",
    "pitch_range",
    "pitch_mean",
    "pitch_class_entropy",
    "velocity_mean",
    "velocity_std",
    "note_seconds",
    "grooving_similarity",
    "self_similarity_short",
    "self_similarity_middle",
    "self_similarity_long",
    "repeated_figures",
)


def words(name: str) -> str:
    """Write the name of a statistic in words."""
    return name.replace("_", " ")


def facts_for_card(measured: dict) -> dict:
    """Choose the facts that `hub.card` needs.

    Args:
        measured: What `evaluation.report` measured.

    Returns:
        The facts; without `window` and `nll` where no likelihood was taken.
    """
    statistics, comparison = measured["statistics"], measured["comparison"]
    names = [name for name in FOR_CARD if name in statistics["model"]]
    facts = {
        "statistics": {
            words(name): {label: round(statistics[label][name][0], 3) for label in ("model", "validation")}
            for name in names
        },
        "overlap": {
            words(name): {label: round(comparison[label][name]["overlap"][0], 3) for label in ("model", "validation")}
            for name in comparison["model"]
            if name in names or name in measured["histograms"]["model"]
        },
        "memorization": originality_text(measured),
    }
    if measured["likelihood"]:
        facts["window"] = measured["settings"]["length"]
        facts["nll"] = {split: round(result["nats_per_token"], 4) for split, result in measured["likelihood"].items()}
    return facts


def originality_text(measured: dict) -> str:
    """Describe in sentences whether the samples copy the training set."""
    originality = measured["originality"]
    found, baseline = list(originality["found"].values()), max(originality["baseline_scores"], default=0)
    copies = sum(piece["is_copy"] for piece in found)
    highest = max(piece["passage"]["alignment_score"] for piece in found)
    overlap = sum(piece["overlap"] for piece in found) / len(found)
    verdict = f"{copies or 'None'} of the {len(found)} pieces {'exceed' if copies > 1 else 'exceeds'} that"
    return (
        f"The {originality['pieces']:,} training pieces were searched for passages of {len(found)} samples of "
        f"{measured['settings']['seconds']:g} seconds from nothing: in any key, a little faster or slower, and with "
        f"some notes changed. Of {len(originality['baseline_scores'])} excerpts of that length from held-out "
        f"performances of other compositions, the most similar has {baseline} notes in common with a training "
        f"piece, less those that differ, and without trills, scales and other figurations. {verdict}; the most "
        f"similar sample has {highest}. On average, {overlap:.1%} of a sample's runs of eight notes occur in the "
        "training set."
    )


def write_page(measured: dict) -> str:
    """Write the page.

    Args:
        measured: What `evaluation.report` measured.

    Returns:
        Markdown, with links to the pictures beside it.
    """
    settings = measured["settings"]
    parts = [
        f"# Evaluation of {escape_markdown(Path(settings['model']).name)}",
        f"{settings['num_samples']} pieces of {settings['seconds']:g} seconds ([samples](samples)), from nothing "
        f"with min-p {settings['min_p']:g} and seed {settings['seed']}, beside the beginnings of real pieces.",
        *_likelihood(measured),
        *_music(measured),
        "![Histograms](histograms.png)",
        "## Structure",
        "Similarity of the harmony of two seconds, by the lag between them: the mean cosine of the time that each "
        "pitch class sounds in them. The table has the means over short, middle and long lags.",
        "![Self-similarity by lag](self_similarity.png)",
        "## Originality",
        originality_text(measured),
        *(f"- {escape_markdown(line)}" for line in measured["originality"]["lines"]),
        *_controls_and_infilling(measured),
        "## Attention",
        "The share of each head's attention by distance in tokens, on validation music. The heads of a layer are "
        "sorted from near to far.",
        "![Attention by distance](attention.png)",
    ]
    return "\n\n".join(parts) + "\n"


def _likelihood(measured: dict) -> list[str]:
    if not measured["likelihood"]:
        return []
    rows = [
        [
            split,
            f"{result['nats_per_token']:.4f}",
            f"{result['nats_per_note']:.3f}",
            f"{result['nats_per_second']:.2f}",
            f"{result['accuracy']:.1%}",
            f"{result['tokens']:,}",
        ]
        for split, result in measured["likelihood"].items()
    ]
    names = ["split", "nats per token", "per note", "per second of music", "top-1 accuracy", "tokens"]
    return [
        "## Likelihood",
        f"Of whole splits, each token predicted once, in windows of {measured['settings']['length']} tokens.",
        _table(names, rows),
    ]


def _music(measured: dict) -> list[str]:
    sets = list(measured["statistics"])
    statistics = [
        [
            words(name),
            *(
                f"{mean:.3g} ± {deviation:.2g}"
                for mean, deviation in (of_set[name] for of_set in measured["statistics"].values())
            ),
        ]
        for name in measured["statistics"]["model"]
    ]
    comparison = measured["comparison"]
    rows = [
        [
            words(name),
            *(_estimate(comparison[label][name][kind]) for kind in ("overlap", "divergence") for label in comparison),
        ]
        for name in comparison["model"]
    ]
    return [
        "## Music",
        "Mean and deviation over the pieces; `evaluation/metrics.py` defines each statistic.",
        _table(["", *sets], statistics),
        "Distances to the training pieces compared with the distances between these (Yang & Lerch 2020): overlap of "
        "both densities, 1 for equal distributions, and their divergence in nats, 0 for equal ones. In brackets, the "
        "95% interval of a bootstrap over the pieces. The validation pieces show what real music reaches.",
        _table(["", *(f"{kind}, {label}" for kind in ("overlap", "divergence") for label in comparison)], rows),
    ]


def _controls_and_infilling(measured: dict) -> list[str]:
    parts = []
    if "controls" in measured:
        rows = [[words(name), f"{value:.2f}"] for name, value in measured["controls"]["correlations"].items()]
        parts += [
            "## Controls",
            f"Rank correlation (Spearman) of what was given and what is played, over {measured['controls']['pieces']} "
            "pieces with random density, loudness and note length.",
            _table(["control", "correlation"], rows),
        ]
    if "infilling" in measured:
        infilling = measured["infilling"]
        parts += [
            "## Infilling",
            f"The music of gaps of 2 to 6 seconds in validation pieces, {infilling['tokens']:,} tokens, has "
            f"{infilling['infilling']:.3f} nats per token when both sides are given, and "
            f"{infilling['continuation']:.3f} when only what comes before is.",
        ]
    return parts


def _estimate(estimate: list[float]) -> str:
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _table(names: list[str], rows: list[list[str]]) -> str:
    """Set a table, numbers to the right."""
    rule = ["---", *["---:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, rule, *rows))
