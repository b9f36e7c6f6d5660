"""How much the music after a gap helps to predict the music in it.

    python -m evaluation.infilling --model FOLDER --corpus data/maestro

scores the music of random gaps of 2 to 6 seconds twice: after the suffix and the prefix, as in infilling, and after
the same prefix alone, as in continuation. A model that uses what it sees of the suffix has fewer nats per token in the
first case.

Shape letters: L tokens.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from corpus.commands import run_command
from evaluation import flags

if __name__ == "__main__":  # --help and mistakes are answered before imports that take seconds
    flags.infilling(__doc__).parse_args()

import numpy as np
import torch
from tqdm import tqdm

from corpus.dataset import EvaluationWindows, load_corpus
from evaluation.likelihood import token_nats
from evaluation.loading import load_model, load_model_tokenizer
from tokenization import MusicTxTokenizer
from tokenization.infilling import divide, infill_sequence
from tokenization.performance import STEPS_PER_SECOND

# Draws of a gap, some of which have no music in them or around them.
DRAWS_PER_GAP = 20


class InfillingLikelihood(NamedTuple):
    """Nats per token of the same tokens in both cases, and how many there were."""

    infilling: float
    continuation: float
    tokens: int


def measure_infilling(
    model: torch.nn.Module,
    tokenizer: MusicTxTokenizer,
    rows: Sequence[np.ndarray],
    num_gaps: int = 400,
    gap_seconds: tuple[float, float] = (2.0, 6.0),
    length: int = 1024,
    seed: int = 0,
) -> InfillingLikelihood:
    """Score the music of gaps with both sides given, and with the prefix alone.

    Args:
        model: A model that was trained for infilling.
        tokenizer: Its tokenizer.
        rows: The ids of held-out pieces, `[L]` each, without controls.
        num_gaps: Gaps to score, in pieces drawn at random, each with the same probability.
        gap_seconds: Shortest and longest gap.
        length: Most tokens of an example.
        seed: The same seed gives the same gaps.

    Raises:
        ValueError: The tokenizer has no tokens for infilling, or the pieces are too short for gaps.
    """
    if tokenizer.infill_ids is None:
        raise ValueError("The model was not trained for infilling: its tokenizer has no tokens for it.")
    random = np.random.default_rng(seed)
    encoding, totals, tokens, scored = tokenizer.miditok, np.zeros(2), 0, 0
    with tqdm(total=num_gaps, unit="gap", leave=False, disable=None) as progress:
        for _ in range(DRAWS_PER_GAP * num_gaps):
            if scored == num_gaps:
                break
            ids = rows[int(random.integers(len(rows)))]
            begin = int(random.integers(max(len(ids) - length, 0) + 1))
            window = np.asarray(ids[begin : begin + length]).astype(np.int64)
            seconds = float(tokenizer.token_seconds[window].sum())
            gap = random.uniform(*gap_seconds)
            if seconds <= gap:
                continue
            start = random.uniform(0, seconds - gap)
            edges = [round(time * STEPS_PER_SECOND) for time in (start, start + gap)]
            example = infill_sequence(window, encoding, *edges, length)
            middle = divide(window, encoding, *edges).middle
            if example is None or len(middle) == 0:
                continue
            # The same prefix, without what stands before it and without Infill_End.
            border = int(np.flatnonzero(example == tokenizer.infill_ids.prefix)[0])
            alone = example[border + 1 : -1]
            if len(alone) == len(middle):
                continue
            for case, sequence in enumerate((example[:-1], alone)):
                totals[case] += token_nats(model, sequence)[-len(middle) :].sum()
            tokens, scored = tokens + len(middle), scored + 1
            progress.update()
    if scored < num_gaps:
        raise ValueError(f"only {scored} of {num_gaps} gaps have music on both sides; the pieces are too short.")
    return InfillingLikelihood(*(totals / tokens).tolist(), tokens)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for a mistake of the user, 130 after Ctrl-C."""
    parser = flags.infilling(__doc__)
    args = parser.parse_args(argv)

    def run():
        rows = EvaluationWindows(load_corpus(args.corpus)[args.split], 2).rows
        pieces = [rows[row, :] for row in range(len(rows.lengths))]
        model = load_model(args.model, args.trust_remote_code)
        scores = measure_infilling(model, load_model_tokenizer(args.model), pieces, args.num_gaps, seed=args.seed)
        print(
            f"{args.split}, {args.num_gaps} gaps, {scores.tokens:,} tokens: {scores.infilling:.4f} nats per token "
            f"with both sides given, {scores.continuation:.4f} with the prefix alone, "
            f"{scores.infilling - scores.continuation:+.4f}"
        )

    return run_command(parser.prog, run)


if __name__ == "__main__":
    sys.exit(main())
