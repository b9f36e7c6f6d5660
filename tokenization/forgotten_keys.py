"""A LogitsProcessor that lets keys come up which the model has forgotten.

When the pedal is lifted, or a chord ends, several keys come up in one step. A model that leaves one of them out takes
it for released from then on, and it would sound until the grammar ends it. So the longer a key has sounded since such
a release, the more likely its NoteOff becomes. Fingers hold keys too: of the keys that a release leaves out in
MAESTRO's validation split, 21% sound for another second, 3% for three and 0.5% for six.

Shape letters: B batch, T tokens, V vocabulary.
"""

import torch
from transformers import LogitsProcessor

from .grammar import MusicGrammar, spans_of
from .performance import NOTE_OFF, STEPS_PER_SECOND

# Added to the score of a NoteOff, times the square of the seconds: little where fingers may hold a key, soon decisive.
RATE = 1.0


class ForgottenKeys(LogitsProcessor):
    """Raises the NoteOff of each key that a release has left out, until it comes up.

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        grammar: The grammar of the music, whose state tells which keys they are.
    """

    # Continuous batching packs rows of different lengths into one sequence.
    supports_continuous_batching = False

    def __init__(self, tokenizer, grammar: MusicGrammar):
        self._off = spans_of(tokenizer)[NOTE_OFF]
        self._grammar = grammar

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Raise the scores of those keys.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]`.

        Returns:
            The scores, with `RATE` times the square of the seconds since the release, or since the end of the prompt,
            added for those keys.
        """
        states = self._grammar.states(input_ids)
        if any(state.left_out for state in states):
            scores = scores.clone()
            for row, state in zip(scores, states, strict=True):
                for key, step in state.left_out.items():
                    seconds = (state.time - max(step, state.prompt_time)) / STEPS_PER_SECOND
                    row[self._off.start + key] += RATE * seconds**2
        return scores
