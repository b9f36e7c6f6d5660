"""A way out of loops: what a model plays again and again, beyond what pianists do, as a LogitsProcessor.

Whether music is stuck shows in the keys that are struck, whatever their timing and touch: each is the one struck so
many notes before. How long that has gone on is counted for every such lag, and each note moves the counts on.

Shape letters: B batch, T tokens, V vocabulary, L lags.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from .grammar import Recall, spans_of
from .performance import NOTE_ON

# The longest figure that is looked for, in notes.
MAX_LAG = 64

# In MAESTRO's training split, 5.7 million notes, no figure of up to 64 notes goes on for more than 80, or counted as
# here for more than 85.
MAX_REPEATED_NOTES = 100

# Subtracted from a score: enough to forbid a token, and finite in case that nothing else is allowed.
PENALTY = 1e4


class LoopBreaker(LogitsProcessor):
    """Forbids the keys of a loop, until other music has taken its place.

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        max_repeated_notes: How many notes in a row may each repeat the key struck so many notes before, whatever that
            number, from 1 to `MAX_LAG`. A note that does not takes a quarter off the count, and a loop that was found
            stays forbidden until a tenth is left: a slip sets none free, some nine other notes do.
    """

    # There, rows of different ages share one sequence.
    supports_continuous_batching = False

    def __init__(self, tokenizer, max_repeated_notes: int = MAX_REPEATED_NOTES):
        if max_repeated_notes < 1:
            raise ValueError(f"max_repeated_notes ({max_repeated_notes}) must be at least 1.")
        self._on = spans_of(tokenizer)[NOTE_ON]
        self._max_repeated_notes = max_repeated_notes
        self._recall = Recall(self._begin, self._hear)

    @staticmethod
    def _begin(row: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The last keys struck, the newest first; at each lag for how long keys repeat, and whether that is a loop."""
        return np.full(MAX_LAG, -1), np.zeros(MAX_LAG, dtype=np.int64), np.zeros(MAX_LAG, dtype=bool)

    def _hear(self, state: tuple, tokens: list[int], start: int) -> tuple:
        keys, repeated, is_loop = state
        for token in tokens:
            if self._on.start <= token < self._on.stop:
                key = token - self._on.start
                repeated = np.where(keys == key, repeated + 1, repeated * 3 // 4)
                bound = np.where(is_loop, self._max_repeated_notes // 10, self._max_repeated_notes)
                is_loop = repeated >= np.maximum(bound, 1)
                keys = np.concatenate([[key], keys[:-1]])
        return keys, repeated, is_loop

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Lower the scores of the keys that go round and round.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]`.

        Returns:
            The scores, those of such keys lowered out of reach.
        """
        # The shortest lag is the figure's length. All its keys are out of reach: it would go on in another order.
        states = self._recall(input_ids)
        figures = [keys[: is_loop.argmax() + 1] if is_loop.any() else keys[:0] for keys, _, is_loop in states]
        if any(len(figure) for figure in figures):
            scores = scores.clone()
            for row, figure in zip(scores, figures, strict=True):
                row[self._on][np.unique(figure).tolist()] -= PENALTY
        return scores
