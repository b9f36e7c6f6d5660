"""Ids arriving, finished notes leaving: music to be heard while `generate()` still writes it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.generation.streamers import BaseStreamer

from .grammar import shift_steps
from .performance import DEFAULT_VELOCITY


class StreamedNote(NamedTuple):
    """A note that has ended.

    Args:
        start_seconds: When it began, counted from the beginning of the sequence, prompt included.
        duration_seconds: How long it sounded, at least one step.
        pitch: Key, 0..127.
        velocity: Velocity, 1..127.
    """

    start_seconds: float
    duration_seconds: float
    pitch: int
    velocity: int


class MidiStreamer(BaseStreamer):
    """Hands out every note as soon as its NoteOff is known; pass it as `generate(..., streamer=...)`.

    The notes are those of `tokenizer.to_score`, in the order in which they end: striking a sounding key ends its note,
    a NoteOff without a note does nothing, and what still sounds when generation ends is ended then.

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        on_note: Called with each `StreamedNote`.
        skip_prompt: Leave out the notes that began in the prompt.
    """

    def __init__(self, tokenizer, on_note: Callable[[StreamedNote], None], *, skip_prompt: bool = False):
        self.on_note = on_note
        self.skip_prompt = skip_prompt
        _, self._steps_per_second = shift_steps(tokenizer)
        tokens = {i: token.partition("_") for token, i in tokenizer.get_vocab().items()}
        self._events = {i: (kind, int(value)) for i, (kind, _, value) in tokens.items() if value.isdigit()}
        self._begin()

    def _begin(self):
        self._is_prompt = True
        self._step = 0
        self._velocity = DEFAULT_VELOCITY
        self._sounding = {}

    def put(self, value: torch.LongTensor):
        """Take the next ids.

        Args:
            value: The prompt `[1, T]` at first, then the new ids, `[1]` or `[1, T]`.

        Raises:
            ValueError: If there is more than one sequence.
        """
        if len(value) > 1:
            raise ValueError(f"MidiStreamer follows one sequence, not {len(value)}; give one prompt for one sample.")
        for i in value.flatten().tolist():
            match self._events.get(i):
                case "TimeShift", steps:
                    self._step += steps
                case "Velocity", velocity:
                    self._velocity = velocity
                case "NoteOff", pitch:
                    self._release(pitch)
                case "NoteOn", pitch:
                    self._release(pitch)
                    self._sounding[pitch] = (self._step, self._velocity, self._is_prompt)
        self._is_prompt = False

    def end(self):
        """End the notes that still sound, and be ready for another sequence."""
        for pitch in list(self._sounding):
            self._release(pitch)
        self._begin()

    def _release(self, pitch):
        if pitch not in self._sounding:
            return
        start, velocity, is_prompt = self._sounding.pop(pitch)
        if not (is_prompt and self.skip_prompt):
            steps = max(self._step - start, 1)
            self.on_note(StreamedNote(start / self._steps_per_second, steps / self._steps_per_second, pitch, velocity))
