"""A streamer for `generate()` that decodes ids to MIDI events and finished notes during generation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers.generation.streamers import BaseStreamer

from .grammar import PREFIX, events_of
from .performance import DEFAULT_VELOCITY, NOTE_OFF, NOTE_ON, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, VELOCITY_OF_BIN


class StreamedEvent(NamedTuple):
    """A key going down or coming up.

    Args:
        seconds: When, counted from the beginning of the sequence, prompt included.
        pitch: Key, 0..127.
        velocity: Velocity, 1..127, or as in MIDI 0 for a key that comes up.
    """

    seconds: float
    pitch: int
    velocity: int


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
    """Passes on events and notes during generation; pass it as `generate(..., streamer=...)`.

    Events are for playing in real time: the onset of a key is passed on with its NoteOn, before the note has ended.
    Notes are those of `tokenizer.to_score`, in the order in which they end: a NoteOn of a sounding key ends its note,
    a NoteOff without a note is ignored, and notes that still sound end when generation ends.

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        on_note: Called with each `StreamedNote`.
        on_event: Called with each `StreamedEvent`, two for each note, before the note itself.
        skip_prompt: Leave out the notes that began in the prompt.
    """

    def __init__(
        self,
        tokenizer,
        on_note: Callable[[StreamedNote], None] | None = None,
        on_event: Callable[[StreamedEvent], None] | None = None,
        *,
        skip_prompt: bool = False,
    ):
        self.on_note, self.on_event = on_note, on_event
        self.skip_prompt = skip_prompt
        self._events = events_of(tokenizer)
        self._begin()

    def _begin(self):
        self._is_prompt = True
        self._step = 0
        self._velocity = DEFAULT_VELOCITY
        # The step and velocity of each key that is down, less those left out.
        self._down = {}

    @property
    def seconds(self) -> float:
        """Seconds of music so far, prompt included."""
        return self._step / STEPS_PER_SECOND

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
            kind, number = self._events[i]
            if kind == PREFIX:
                # What came before is the music after a gap.
                self._begin()
            elif kind == TIME_SHIFT:
                self._step += number
            elif kind == VELOCITY:
                self._velocity = int(VELOCITY_OF_BIN[number])
            elif kind == NOTE_OFF:
                self._release(number)
            elif kind == NOTE_ON:
                self._release(number)
                self._strike(number)
        self._is_prompt = False

    def end(self):
        """End the notes that still sound, and be ready for another sequence."""
        for pitch in list(self._down):
            self._release(pitch)
        self._begin()

    def _strike(self, pitch):
        if self.skip_prompt and self._is_prompt:
            return
        self._down[pitch] = self._step, self._velocity
        if self.on_event is not None:
            self.on_event(StreamedEvent(self.seconds, pitch, self._velocity))

    def _release(self, pitch):
        if pitch not in self._down:
            return
        start, velocity = self._down.pop(pitch)
        end = max(self._step, start + 1)
        if self.on_event is not None:
            self.on_event(StreamedEvent(end / STEPS_PER_SECOND, pitch, 0))
        if self.on_note is not None:
            self.on_note(StreamedNote(start / STEPS_PER_SECOND, (end - start) / STEPS_PER_SECOND, pitch, velocity))
