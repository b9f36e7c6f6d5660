"""Evaluate a model completely, into one folder: numbers, a page, plots and samples.

    python -m evaluation.report --model runs/maestro_small --corpus data/maestro --num_samples 64

The model generates samples from nothing. Samples and excerpts of the validation pieces are compared with excerpts of
the training pieces: the validation pieces show what a model can reach. The samples are also searched for copies of
training pieces. Of a model with controls and infilling, both are measured too. The folder contains

    report.md     the page, with histograms.png, self_similarity.png and attention.png
    report.json   every number
    facts.json    the facts for `hub.card`
    samples/      the samples
    passages/     for each sample the most similar passage of a training piece, beside the sample's own

The same seed gives the same files.
"""

import argparse
import json
import sys
from pathlib import Path

from corpus.commands import run_command
from corpus.plain_text import printable
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.report(__doc__).parse_args()

import numpy as np
import torch
from datasets import DatasetDict
from symusic import Score

from corpus.dataset import EvaluationWindows, load_corpus, load_tokenizer
from evaluation import originality
from evaluation.attention import attention_by_distance, octaves
from evaluation.comparison import compare
from evaluation.controls import measure_controls
from evaluation.infilling import measure_infilling
from evaluation.likelihood import amount_of_music, score, summarize
from evaluation.loading import find_model, load_model, load_model_tokenizer
from evaluation.metrics import AMOUNTS, midi_to_arrays, score_to_arrays, self_similarity, tabulate
from evaluation.page import facts_for_card, write_page
from evaluation.pictures import draw_attention, draw_histograms, draw_self_similarity
from evaluation.sampling import excerpt_scores, sample_scores
from tokenization import MusicTxTokenizer

# Gaps whose music is scored.
NUM_GAPS = 100


def measure_likelihood(model: torch.nn.Module, windows: EvaluationWindows, tokenizer: MusicTxTokenizer) -> dict:
    """Score a split.

    Args:
        model: A causal language model.
        windows: The windows of the split.
        tokenizer: Its tokenizer.

    Returns:
        As `evaluation.likelihood.summarize`.
    """
    rows = (windows.rows[row, :] for row in range(len(windows.rows.lengths)))
    return summarize(score(model, windows, progress=True), amount_of_music(rows, tokenizer))


def measure_music(sets: dict[str, list[Score]], seed: int) -> dict:
    """Describe sets of pieces, and compare each with the last one.

    Args:
        sets: The pieces of each set, by its name.
        seed: Of the bootstrap.

    Returns:
        By the name of each set: `statistics`, mean and deviation of each; the mean `histograms`; `self_similarity` by
        lag in seconds; and, of all but the last, the `comparison` of every statistic and histogram, overlap and
        divergence with both ends of their intervals.
    """
    notes = {label: [score_to_arrays(piece) for piece in pieces] for label, pieces in sets.items()}
    tables = {label: tabulate(pieces) for label, pieces in notes.items()}
    *compared, reference = tables
    # Pieces of a few seconds have no long lags.
    names = [name for name in tables[reference] if all(name in table for table in tables.values())]
    measured = {"statistics": {}, "histograms": {}, "self_similarity": {}, "comparison": {}}
    for label, table in tables.items():
        columns = {name: table[name] for name in names}
        measured["statistics"][label] = {
            name: [float(column.mean()), float(column.std())] for name, column in columns.items() if column.ndim == 1
        }
        measured["histograms"][label] = {
            name: column.mean(axis=0).tolist() for name, column in columns.items() if column.ndim == 2
        }
        measured["self_similarity"][label] = _mean_self_similarity(notes[label])
    for label in compared:
        measured["comparison"][label] = {
            name: compare(tables[label][name], tables[reference][name], seed)._asdict()
            for name in names
            if name not in AMOUNTS and len(tables[reference][name]) > 1
        }
    return measured


def _mean_self_similarity(pieces: list) -> list[float]:
    """Average over all pairs of seconds of all pieces, by lag."""
    found = [self_similarity(notes) for notes in pieces if len(notes.pitch)]
    totals = np.zeros((2, max((len(pairs) for _, pairs in found), default=0)))
    for similarity, pairs in found:
        totals[:, : len(pairs)] += similarity * pairs, pairs
    similarity, pairs = totals[:, totals[1] > 0]
    return (similarity / pairs).tolist()


def measure_originality(paths: list[Path], index: originality.Index, folder: Path) -> dict:
    """Search the training set for the samples' passages, and write the most similar one and all copies.

    Args:
        paths: MIDI files.
        index: The index of the training set.
        folder: Where the passages are written.

    Returns:
        `pieces` in the training set; the `baseline_scores` of held-out music; the result for each file by its name in
        `found`; and `lines` of text about those whose passages were written.
    """
    found = {path: index.search(originality.read_line(midi_to_arrays(path))) for path in paths}
    most_alike = max(paths, key=lambda path: found[path].passage.alignment_score)
    written = [path for path in paths if path == most_alike or found[path].is_copy]
    return {
        "pieces": len(index.names),
        "baseline_scores": index.baseline_scores,
        "found": {
            path.name: result._asdict() | {"passage": result.passage._asdict()} for path, result in found.items()
        },
        "lines": [originality.report(path, index, folder).replace(str(path), path.name, 1) for path in written],
    }


def measure_controls_and_infilling(
    model: torch.nn.Module, tokenizer: MusicTxTokenizer, rows: list, args: argparse.Namespace
) -> dict:
    """Measure how well controls are followed, and what the music after a gap is worth.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        rows: The ids of the validation pieces, `[L]` each.
        args: The command line.

    Returns:
        `controls`, the rank correlation for each, and `infilling`, nats per token; nothing that the model does not
        know.
    """
    measured = {}
    if tokenizer.attributes:
        # Pieces with controls of their own cannot be generated together, so there are fewer.
        pieces = max(args.num_samples // 4, 2)
        found = measure_controls(model, tokenizer, pieces, args.seconds, args.seed, min_p=args.min_p)
        measured["controls"] = {"pieces": pieces, "correlations": found.correlations()}
    if tokenizer.infill_ids is not None:
        measured["infilling"] = measure_infilling(model, tokenizer, rows, NUM_GAPS)._asdict()
    return measured


def load(args: argparse.Namespace) -> tuple[torch.nn.Module, MusicTxTokenizer, DatasetDict]:
    """Load the model, its tokenizer and the corpus.

    Raises:
        ValueError: They do not fit together, or there is nothing to measure.
        OSError: A file is missing.
    """
    if args.num_samples < 1 or args.seconds < 1:
        raise ValueError(f"--num_samples {args.num_samples} --seconds {args.seconds:g}: at least 1 of both is needed.")
    find_model(args.model)
    corpus = load_corpus(args.corpus)
    if not isinstance(corpus, DatasetDict):
        raise ValueError(f"{args.corpus} is streamed; download it, and give its folder.")
    tokenizer = load_model_tokenizer(args.model)
    # A model may have tokens that the corpus lacks, those of controls.
    if not tokenizer.has_events or load_tokenizer(args.corpus).get_vocab().items() - tokenizer.get_vocab().items():
        raise ValueError(
            f"{args.model} and {args.corpus} must have the same tokens, those of the paper; prepare a "
            "corpus with the tokenizer of the model."
        )
    return load_model(args.model, args.trust_remote_code), tokenizer, corpus


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.report(__doc__)
    args = parser.parse_args(argv)
    stopped = f"stopped; {printable(args.output_dir)} is not complete"
    return run_command(parser.prog, lambda: _run(args), stopped)


def _run(args: argparse.Namespace) -> None:
    """Measure everything and write the folder."""
    model, tokenizer, corpus = load(args)
    index = originality.index_corpus(corpus["train"], corpus["validation"], tokenizer, args.seconds)
    (args.output_dir / "samples").mkdir(parents=True, exist_ok=True)

    measured = {"settings": vars(args) | {"output_dir": str(args.output_dir)}, "likelihood": {}}
    for split in args.splits:
        measured["likelihood"][split] = measure_likelihood(
            model, EvaluationWindows(corpus[split], args.length), tokenizer
        )
        print(f"{split}: {measured['likelihood'][split]['nats_per_token']:.4f} nats per token", flush=True)

    generated = sample_scores(model, tokenizer, args.num_samples, args.seconds, args.seed, args.min_p)
    digits = len(str(args.num_samples))
    paths = [args.output_dir / "samples" / f"{number:0{digits}}.mid" for number in range(1, args.num_samples + 1)]
    for piece, path in zip(generated, paths, strict=True):
        piece.dump_midi(path)
    print(f"{len(generated)} samples of {args.seconds:g} seconds", flush=True)

    sets = {"model": generated}
    for split in ("validation", "train"):
        pieces = corpus[split].with_format("numpy")["input_ids"]
        sets[{"train": "training"}.get(split, split)] = excerpt_scores(pieces, tokenizer, args.seconds)
    measured |= measure_music(sets, args.seed)
    draw_histograms(measured["histograms"], args.output_dir / "histograms.png")
    draw_self_similarity(measured["self_similarity"], args.output_dir / "self_similarity.png")

    measured["originality"] = measure_originality(paths, index, args.output_dir / "passages")

    windows = EvaluationWindows(corpus["validation"], args.length)
    rows = windows.rows
    measured |= measure_controls_and_infilling(
        model, tokenizer, [rows[row, :] for row in range(len(rows.lengths))], args
    )

    shares = attention_by_distance(model, windows)
    measured["attention"] = {"octaves": octaves(args.length), "shares": shares.tolist()}
    draw_attention(shares, octaves(args.length), args.output_dir / "attention.png")

    for name, content in {"report": measured, "facts": facts_for_card(measured)}.items():
        (args.output_dir / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (args.output_dir / "report.md").write_text(write_page(measured), encoding="utf-8")
    print(printable(args.output_dir / "report.md"))


if __name__ == "__main__":
    sys.exit(main())
