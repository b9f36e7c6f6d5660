"""The share of planted copies that evaluation.originality finds: altered training passages in held-out music.

    python -m benchmarks.originality --corpus data/maestro

Each trial takes a passage of a training piece, alters it, and puts it behind the beginning of a validation piece, half
a minute together. Passage, pieces and changes are drawn by the seed. Missed passages are listed by their number of
notes.
"""

import argparse
import sys
import time

import numpy as np

from corpus.dataset import load_corpus, load_tokenizer
from evaluation.metrics import midi_to_arrays
from evaluation.originality import EXCERPT_SECONDS, Line, excerpt, index_corpus, read_line, write_score

CHANGES = {
    "exact": {},
    "4 semitones up": {"semitones": 4},
    "5% faster": {"stretch": 1 / 1.05},
    "one note in ten changed": {"other": 0.1},
    "3 semitones down, 5% faster, one in ten changed": {"semitones": -3, "stretch": 1 / 1.05, "other": 0.1},
}


def altered(
    line: Line,
    rng: np.random.Generator,
    semitones: int = 0,
    stretch: float = 1.0,
    other: float = 0.0,
    missing: float = 0.0,
) -> Line:
    """Alter music, and write and read it as a MIDI file would be.

    Args:
        line: The notes.
        rng: Decides which notes are changed.
        semitones: Added to every pitch.
        stretch: Factor on every time.
        other: Share of the notes that become another one, up to four semitones higher.
        missing: Share of the notes that are left out.

    Returns:
        The new notes.
    """
    is_other = rng.random(len(line.pitch)) < other
    pitch = line.pitch.astype(int) + semitones + np.where(is_other, rng.integers(1, 5, len(line.pitch)), 0)
    start, end = (np.round(stretch * field, 2) for field in (line.start, line.end))
    kept = rng.random(len(pitch)) >= missing
    fields = (start, start, end, np.clip(pitch, 0, 127).astype(np.uint8), line.velocity)
    return read_line(midi_to_arrays(write_score(Line(*(field[kept] for field in fields))).dumps_midi()))


def joined(*lines: Line) -> Line:
    """Put music one after the other, with a second between."""
    parts, at = [], 0.0
    for line in lines:
        parts.append(line._replace(onset=line.onset + at, start=line.start + at, end=line.end + at))
        at += float(line.end.max(initial=0)) + 1
    return Line(*map(np.concatenate, zip(*parts, strict=True)))


def main(argv: list[str] | None = None) -> int:
    """Plant copies, search for them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="folder that corpus.prepare wrote")
    parser.add_argument("--trials", type=int, default=40, help="copies of each kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same copies (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        corpus, tokenizer = load_corpus(args.corpus), load_tokenizer(args.corpus)
    except OSError as error:
        print(f"benchmarks.originality: {error}", file=sys.stderr)
        return 2

    train, held_out = (corpus[split].with_format("numpy") for split in ("train", "validation"))
    began = time.perf_counter()
    index = index_corpus(corpus["train"], corpus["validation"], tokenizer)
    print(
        f"index: {len(index.names):,} pieces in {time.perf_counter() - began:.1f} s; "
        f"baseline {max(index.baseline_scores)}"
    )

    def draw(pieces, rng: np.random.Generator) -> tuple[str, Line]:
        piece = pieces[int(rng.integers(len(pieces)))]
        return piece["name"], read_line(tokenizer.to_score(piece["input_ids"]))

    print("| change | found to be a copy | of the right piece | slowest, s | notes of those missed |")
    print("|---|---|---|---|---|")
    for name, change in CHANGES.items():
        rng = np.random.default_rng(args.seed)
        copies, right, slowest, missed = 0, 0, 0.0, []
        for _ in range(args.trials):
            source, line = draw(train, rng)
            start = rng.uniform(0, max(float(line.start[-1]) - args.seconds, 0))
            passage = altered(excerpt(line, start, start + args.seconds), rng, **change)
            _, own = draw(held_out, rng)
            piece = joined(excerpt(own, 0, max(EXCERPT_SECONDS - args.seconds, 0)), passage)
            began = time.perf_counter()
            found = index.search(piece)
            slowest = max(slowest, time.perf_counter() - began)
            copies += found.is_copy
            right += found.passage.name == source
            missed += [] if found.is_copy else [len(passage.pitch)]
        counts = f"{copies} of {args.trials} | {right} of {args.trials}"
        print(f"| {name} | {counts} | {slowest:.2f} | {', '.join(map(str, sorted(missed)))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
