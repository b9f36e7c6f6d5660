"""All that is measured of a model, in one folder: numbers, a page to read, pictures, and the music itself.

    python -m evaluation.report --model runs/maestro_small --reference data/maestro --samples 64

The model plays from nothing. What it played stands beside the beginnings of the validation pieces, and both are
compared with those of the training pieces: what real music reaches there is what a model can reach. It is also looked
for in the training pieces. The folder gets

    report.md     the page, with histograms.png, self_similarity.png and attention.png
    report.json   every number
    facts.json    what `hub.card` puts on the model's card
    samples/      what the model played
    passages/     where it is most like a training piece: both passages, to compare

The same seed gives the same files.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from symusic import Score
from transformers import AutoModelForCausalLM

from corpus.dataset import EvaluationWindows, load_corpus, load_tokenizer
from evaluation import originality
from evaluation.attention import attention_by_distance, octaves
from evaluation.comparison import compare
from evaluation.likelihood import amount_of_music, score, summarize
from evaluation.metrics import AMOUNTS, read_notes, self_similarity, tabulate
from evaluation.page import facts_for_card, write_page
from evaluation.pictures import draw_attention, draw_histograms, draw_self_similarity
from evaluation.sampling import excerpt_scores, sample_scores
from tokenization import MusicTxTokenizer


def measure_likelihood(model: torch.nn.Module, windows: EvaluationWindows, tokenizer: MusicTxTokenizer) -> dict:
    """Score a split.

    Args:
        model: A causal language model.
        windows: The windows of the split.
        tokenizer: The tokenizer that wrote it.

    Returns:
        What `evaluation.likelihood.summarize` tells.
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
    notes = {label: [read_notes(piece) for piece in pieces] for label, pieces in sets.items()}
    tables = {label: tabulate(pieces) for label, pieces in notes.items()}
    *judged, reference = tables
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
    for label in judged:
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
    """Look for pieces in the training set, and write the passages that are most alike, and all that are copies.

    Args:
        paths: MIDI files.
        index: The index of the training set.
        folder: Where the passages are written.

    Returns:
        `pieces` in the training set; what is `normal` for held-out music; of each file, by its name, `found`; and, for
        the eye, `lines` about those whose passages were written.
    """
    found = {path: index.examine(originality.read_line(Score(path))) for path in paths}
    most_alike = max(paths, key=lambda path: found[path].passage.likeness)
    written = [path for path in paths if path == most_alike or found[path].is_copy]
    return {
        "pieces": len(index.names),
        "normal": index.normal,
        "found": {path.name: its._asdict() | {"passage": its.passage._asdict()} for path, its in found.items()},
        "lines": [originality.report(path, index, folder).replace(str(path), path.name, 1) for path in written],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.report", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of a saved model")
    parser.add_argument("--reference", required=True, help="folder that corpus.prepare wrote")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64, help="pieces that the model plays (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each (default: %(default)s)")
    parser.add_argument("--top_p", type=float, default=0.98, help="share of the chance kept (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same report (default: %(default)s)")
    parser.add_argument(
        "--splits",
        nargs="*",
        choices=("train", "validation", "test"),
        default=["validation"],
        help="splits whose likelihood is taken, or none (default: validation)",
    )
    parser.add_argument("--length", type=int, default=1024, help="tokens per window (default: %(default)s)")
    return parser.parse_args(arguments)


def load(args: argparse.Namespace) -> tuple[torch.nn.Module, MusicTxTokenizer, DatasetDict]:
    """Load what the command line names.

    Raises:
        ValueError: They do not belong together, or there is nothing to measure.
        OSError: Something is not there.
    """
    if args.samples < 1 or args.seconds < 1:
        raise ValueError(f"--samples {args.samples} --seconds {args.seconds:g}: at least 1 of both is needed.")
    # Said here, for the Hub would be asked for minutes.
    if not Path(args.model, "config.json").is_file() and args.model.count("/") != 1:
        raise ValueError(f"{args.model} holds no model; give a folder with a config.json, or user/name on the Hub.")
    corpus = load_corpus(args.reference)
    if not isinstance(corpus, DatasetDict):
        raise ValueError(f"{args.reference} is streamed; download it, and give its folder.")
    tokenizer = MusicTxTokenizer.from_pretrained(args.model)
    if not tokenizer.has_events or load_tokenizer(args.reference).get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{args.model} and {args.reference} must be written in the same tokens, those of the paper; prepare a "
            "corpus with the tokenizer of the model."
        )
    model = AutoModelForCausalLM.from_pretrained(args.model, trust_remote_code=True)
    return model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"), tokenizer, corpus


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, and write; what a user can mend ends in one line and code 2."""
    args = parse(arguments)
    try:
        model, tokenizer, corpus = load(args)
        index = originality.index_corpus(corpus["train"], corpus["validation"], tokenizer, args.seconds)
        (args.output / "samples").mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"python -m evaluation.report: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)

    measured = {"settings": vars(args) | {"output": str(args.output)}, "likelihood": {}}
    for split in args.splits:
        measured["likelihood"][split] = measure_likelihood(
            model, EvaluationWindows(corpus[split], args.length), tokenizer
        )
        print(f"{split}: {measured['likelihood'][split]['nats_per_token']:.4f} nats per token", flush=True)

    played = sample_scores(model, tokenizer, args.samples, args.seconds, args.seed, args.top_p)
    digits = len(str(args.samples))
    paths = [args.output / "samples" / f"{number:0{digits}}.mid" for number in range(1, args.samples + 1)]
    for piece, path in zip(played, paths, strict=True):
        piece.dump_midi(path)
    print(f"{len(played)} samples of {args.seconds:g} seconds", flush=True)

    sets = {"model": played}
    for split in ("validation", "train"):
        pieces = corpus[split].with_format("numpy")["input_ids"]
        sets[{"train": "training"}.get(split, split)] = excerpt_scores(pieces, tokenizer, args.seconds)
    measured |= measure_music(sets, args.seed)
    draw_histograms(measured["histograms"], args.output / "histograms.png")
    draw_self_similarity(measured["self_similarity"], args.output / "self_similarity.png")

    measured["originality"] = measure_originality(paths, index, args.output / "passages")

    shares = attention_by_distance(model, EvaluationWindows(corpus["validation"], args.length))
    measured["attention"] = {"octaves": octaves(args.length), "shares": shares.tolist()}
    draw_attention(shares, octaves(args.length), args.output / "attention.png")

    for name, content in {"report": measured, "facts": facts_for_card(measured)}.items():
        (args.output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (args.output / "report.md").write_text(write_page(measured), encoding="utf-8")
    print(args.output / "report.md")


if __name__ == "__main__":
    main()
