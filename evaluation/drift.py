"""Whether long music stays what it was at first: the minutes of generated pieces beside the minutes of real ones.

    python -m evaluation.drift --model FOLDER --corpus data/maestro --minutes 20

generates long pieces from nothing, as `generate_music` does by default and, if the model knows controls, without them.
For each statistic it reports the share of minutes outside the central 98% of the
minutes of the validation pieces (2% of these are outside, by definition), and the first and the last five minutes.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from corpus.commands import run_command
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.drift(__doc__).parse_args()

import numpy as np

from corpus.dataset import EvaluationWindows, load_corpus
from evaluation.loading import load_model, load_model_tokenizer
from evaluation.metrics import NoteArrays, describe, score_to_arrays
from evaluation.sampling import sample_scores
from tokenization.controls import DEFAULT_CONTROLS, OFF

STATISTICS = ("notes_per_second", "polyphony", "note_seconds")
CENTRAL_PERCENT = 98
# The minutes that "at first" and "in the end" stand for.
FIRST, LAST = slice(5), slice(-5, None)


class Drift(NamedTuple):
    """One statistic of the minutes of generated pieces.

    Args:
        low, high: The central 98% of the minutes of real pieces lie between.
        outside: Share of the generated minutes that do not.
        first, last: Means of the first and of the last minutes of the generated pieces.
    """

    low: float
    high: float
    outside: float
    first: float
    last: float


def minutes_of(notes: NoteArrays) -> dict[str, np.ndarray]:
    """Describe every whole minute of a piece.

    Args:
        notes: The notes of the piece; a note belongs to the minute in which it begins, and ends with it at the latest.

    Returns:
        By the name of each of `STATISTICS`, a number for each minute that has notes.
    """
    begin = notes.start.min(initial=np.inf)
    minute = (notes.start - begin) // 60 if len(notes.start) else notes.start
    found = []
    for index in range(int((notes.end.max(initial=0.0) - begin) // 60) if len(notes.start) else 0):
        start, end, pitch, velocity = (field[minute == index] for field in notes)
        if len(start):
            found.append(describe(NoteArrays(start, np.minimum(end, begin + 60 * (index + 1)), pitch, velocity)))
    return {name: np.array([one[name] for one in found]) for name in STATISTICS}


def measure_drift(generated: Sequence[dict], real: Sequence[dict]) -> dict[str, Drift]:
    """Compare the minutes of generated pieces with those of real ones.

    Args:
        generated: The minutes of each generated piece, as `minutes_of` returns them.
        real: The minutes of each real piece.

    Raises:
        ValueError: One of them has no whole minute.
    """
    found = {}
    for name in STATISTICS:
        new, known = ([piece[name] for piece in pieces if len(piece[name])] for pieces in (generated, real))
        if not new or not known:
            raise ValueError("there is no whole minute of music to compare; give longer pieces.")
        tail = (100 - CENTRAL_PERCENT) / 2
        low, high = np.percentile(np.concatenate(known), [tail, 100 - tail])
        everything = np.concatenate(new)
        edges = (np.concatenate([piece[part] for piece in new]).mean() for part in (FIRST, LAST))
        found[name] = Drift(low, high, float(((everything < low) | (everything > high)).mean()), *edges)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.drift(__doc__)
    args = parser.parse_args(argv)

    def run():
        model, tokenizer = load_model(args.model, args.trust_remote_code), load_model_tokenizer(args.model)
        rows = EvaluationWindows(load_corpus(args.corpus)["validation"], 2).rows
        real = [minutes_of(score_to_arrays(tokenizer.to_score(rows[row, :]))) for row in range(len(rows.lengths))]
        wanted = {"as by default": None}
        if tokenizer.attributes:
            wanted["without controls"] = dict.fromkeys(DEFAULT_CONTROLS, OFF)
        for name, controls in wanted.items():
            pieces = sample_scores(model, tokenizer, args.num_samples, 60 * args.minutes, args.seed, controls=controls)
            minutes = [minutes_of(score_to_arrays(piece)) for piece in pieces]
            print(f"{name}:", flush=True)
            for statistic, drift in measure_drift(minutes, real).items():
                bounds = f"{drift.low:.2f} to {drift.high:.2f}"
                print(
                    f"  {statistic:16} {drift.outside:6.1%} of the minutes outside {bounds}; "
                    f"at first {drift.first:.2f}, in the end {drift.last:.2f}",
                    flush=True,
                )

    return run_command(parser.prog, run)


if __name__ == "__main__":
    sys.exit(main())
