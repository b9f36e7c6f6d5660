"""How well generated music follows the controls that it was given.

    python -m evaluation.controls --model FOLDER

generates pieces from nothing, each with a density, a loudness and a note length drawn at random, and reports for each
control the rank correlation (Spearman) of what was wanted with what was played over the whole piece.

Shape letters: N pieces.
"""

import sys
from typing import NamedTuple

from corpus.commands import run_command
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.controls(__doc__).parse_args()

import numpy as np
import torch
from transformers import set_seed

from evaluation.loading import load_model, load_model_tokenizer
from tokenization import MusicTxTokenizer, generate_music
from tokenization.performance import STEPS_PER_SECOND, VELOCITY_OF_BIN, events_to_notes


class Obedience(NamedTuple):
    """What was wanted of each piece and what it plays, by the name of the control, `[N]` each."""

    wanted: dict[str, np.ndarray]
    played: dict[str, np.ndarray]

    def correlations(self) -> dict[str, float]:
        """Spearman's rank correlation for each control."""
        return {
            name: float(np.corrcoef(_ranks(self.wanted[name]), _ranks(self.played[name]))[0, 1])
            for name in self.wanted
        }


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """Return the rank of each number; equal ones share the mean of theirs."""
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def measure_controls(
    model: torch.nn.Module,
    tokenizer: MusicTxTokenizer,
    num_samples: int = 200,
    seconds: float = 30.0,
    seed: int = 0,
    min_p: float = 0.02,
) -> Obedience:
    """Generate pieces with random controls and measure what they play.

    Args:
        model: A model that was trained with controls.
        tokenizer: Its tokenizer.
        num_samples: Number of pieces.
        seconds: Length of each.
        seed: The same seed gives the same pieces.
        min_p: As for `generate`.

    Raises:
        ValueError: The tokenizer has no control tokens.
    """
    random = np.random.default_rng(seed)
    numeric = [attribute for attribute in tokenizer.attributes if attribute.is_number]
    if not numeric:
        raise ValueError("The model knows no controls: its tokenizer has no tokens for them.")
    wanted = {attribute.option: random.choice(attribute.values, num_samples) for attribute in numeric}
    played = {name: [] for name in wanted}
    set_seed(seed)
    for piece in range(num_samples):
        controls = {name: float(values[piece]) for name, values in wanted.items()}
        (ids,) = generate_music(
            model, tokenizer, seconds=seconds, controls=controls, do_sample=True, min_p=min_p, top_p=1.0
        )
        notes, length = events_to_notes(tokenizer.miditok.ids_to_events(ids))
        durations = np.minimum(notes.end, length) - notes.start
        played["density"].append(len(notes.start) / (length / STEPS_PER_SECOND))
        played["loudness"].append(VELOCITY_OF_BIN[notes.velocity].mean())
        played["note_length"].append(np.median(durations) / STEPS_PER_SECOND)
    return Obedience(wanted, {name: np.array(values) for name, values in played.items()})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.controls(__doc__)
    args = parser.parse_args(argv)

    def run():
        model = load_model(args.model, args.trust_remote_code)
        result = measure_controls(model, load_model_tokenizer(args.model), args.num_samples, args.seconds, args.seed)
        print(f"{args.num_samples} pieces of {args.seconds:g} s, rank correlation of wanted and played:")
        for name, correlation in result.correlations().items():
            print(f"{name:12} {correlation:.3f}")

    return run_command(parser.prog, run)


if __name__ == "__main__":
    sys.exit(main())
