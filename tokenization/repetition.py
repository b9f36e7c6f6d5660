"""A LogitsProcessor that ends loops: figures that repeat for longer than in any performance of MAESTRO.

In a loop each key struck is the key struck `lag` notes before; timing and velocity do not count. The processor counts
for every lag how many notes in a row have repeated so.

Shape letters: B batch, T tokens, V vocabulary, L lags.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from .grammar import PrefixStateCache, spans_of
from .performance import NOTE_ON

# The longest figure to detect, in notes.
MAX_LAG = 64

# In MAESTRO's training split, 5.7 million notes, no figure of up to 64 notes repeats for more than 80 notes, or 85 as
# counted here.
MAX_REPEATED_NOTES = 100

# Subtracted from a score: in effect a mask, but finite in case no other token is allowed.
PENALTY = 1e4


class LoopBreaker(LogitsProcessor):
    """Penalises the keys of a loop until other notes have replaced it.

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        max_repeated_notes: How many notes in a row may each repeat the key struck `lag` notes before, for any lag from
            1 to `MAX_LAG`. A note that does not repeat reduces the count by a quarter, and a detected loop stays
            penalised until a tenth of the limit is left: after about nine other notes, not after one.
    """

    # Continuous batching packs rows of different lengths into one sequence.
    supports_continuous_batching = False

    def __init__(self, tokenizer, max_repeated_notes: int = MAX_REPEATED_NOTES):
        if max_repeated_notes < 1:
            raise ValueError(f"max_repeated_notes ({max_repeated_notes}) must be at least 1.")
        self._on = spans_of(tokenizer)[NOTE_ON]
        self._max_repeated_notes = max_repeated_notes
        self._states = PrefixStateCache(self._begin, self._advance)

    @staticmethod
    def _begin(row: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The last keys struck, the newest first; for each lag the count of repeats, and whether it is a loop."""
        return np.full(MAX_LAG, -1), np.zeros(MAX_LAG, dtype=np.int64), np.zeros(MAX_LAG, dtype=bool)

    def _advance(self, state: tuple, tokens: list[int], start: int) -> tuple:
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
        """Lower the scores of the keys of a loop.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]`.

        Returns:
            The scores, lowered by `PENALTY` for those keys.
        """
        # The shortest lag is the figure's length. All its keys are penalised: with one, the others would loop on.
        states = self._states(input_ids)
        figures = [keys[: is_loop.argmax() + 1] if is_loop.any() else keys[:0] for keys, _, is_loop in states]
        if any(len(figure) for figure in figures):
            scores = scores.clone()
            for row, figure in zip(scores, figures, strict=True):
                row[self._on][np.unique(figure).tolist()] -= PENALTY
        return scores
