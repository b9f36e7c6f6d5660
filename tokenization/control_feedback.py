"""Feedback: a LogitsProcessor that keeps generated music to the density, loudness and note length wanted of it.

They are given by the user, or planned by the model itself. A control token asks for them, and a model follows it as
far as it has learned to. This processor compares what has been played with what was wanted and shifts the logits, as
an integral controller does, by one number for each control:

    density      A second that passes adds to it, an onset subtracts its share of a second. It is added to NoteOn and
                 Velocity; times the onsets wanted in that time, it is subtracted from TimeShift.
    loudness     A note adds what its velocity lacks, in units of 16. Times the change of velocity, in the same unit,
                 it is added to Velocity.
    note length  A note that outlasts the wanted length adds to it, one that ends before subtracts: it rests where the
                 median is what is wanted. It is added to NoteOff; times the ends wanted in that time, it is subtracted
                 from TimeShift.

An integral forgets nothing, so that what the music lacks in one second is made up in the next ones. Of onsets beyond a
density that the model planned itself, no more than three seconds' worth are made up for.

Shape letters: B batch, T tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessor

from .controls import DENSITY, LOUDNESS, NOTE_LENGTH, Controls
from .grammar import PrefixStateCache, events_of, spans_of
from .performance import MAX_SHIFT_STEPS, NOTE_OFF, NOTE_ON, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY, VELOCITY_OF_BIN

# What each second, and each note, adds at most. Twice the last one oscillates where notes are few.
DENSITY_RATE, LOUDNESS_RATE, NOTE_LENGTH_RATE = 0.5, 0.25, 0.2
VELOCITY_UNIT = 16

# The largest number: with it an event is about fifty times as likely as any that is not shifted.
LIMIT = 4.0

# The least number of a planned density, three seconds' worth: a run of fast notes need not lead to a long rest.
LEAST_PLANNED = -1.5

# The attributes that are enforced.
ATTRIBUTES = tuple(attribute.name for attribute in (DENSITY, LOUDNESS, NOTE_LENGTH))

SHIFT_SECONDS = np.arange(1, MAX_SHIFT_STEPS + 1) / STEPS_PER_SECOND


class FeedbackState(NamedTuple):
    """The state of the feedback after some tokens.

    Args:
        time: Steps since the end of the prompt.
        velocity: The current velocity bin, or None.
        density, loudness, note_length: The number of each control.
        sounding: Keys that sound, with the steps of their onsets.
        planned: The density, loudness and note length that the model stated last, None for each that it has not.
    """

    time: int = 0
    velocity: int | None = None
    density: float = 0.0
    loudness: float = 0.0
    note_length: float = 0.0
    sounding: tuple[tuple[int, int], ...] = ()
    planned: tuple[float | None, ...] = (None, None, None)


class ControlFeedback(LogitsProcessor):
    """Shifts the scores so that the music keeps to the controls that are numbers.

    Args:
        tokenizer: A tokenizer with tokens for controls.
        controls: What is wanted, by the names that `Controls` takes.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`; its notes do not count.

    Raises:
        ValueError: There is no such control or value.
    """

    # Continuous batching packs rows of different lengths into one sequence.
    supports_continuous_batching = False

    def __init__(self, tokenizer, controls: Mapping, prompt_length: int = 0):
        self._controls = Controls(tokenizer.attributes, controls)
        names = [attribute.name for attribute in tokenizer.attributes]
        self._indexes = [names.index(name) for name in ATTRIBUTES]
        self._spans, self._events = spans_of(tokenizer), events_of(tokenizer)
        # The place and the number of each control token that the model may state itself.
        self._planned = {
            tokenizer.control_spans[index].start + number: (place, float(value))
            for place, index in enumerate(self._indexes)
            if index in self._controls.planned
            for number, value in enumerate(tokenizer.attributes[index].values)
        }
        self._prompt_length = prompt_length
        self._states = PrefixStateCache(lambda row, rows: FeedbackState(), self._advance)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Shift the scores of the next token.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]`.

        Returns:
            The shifted scores, `[B, V]`.
        """
        shifts = np.zeros(scores.shape, dtype=np.float32)
        for row, state in zip(shifts, self._states(input_ids), strict=True):
            density, _, note_length = self._wanted(state)
            row[self._spans[NOTE_ON]] = row[self._spans[VELOCITY]] = state.density
            row[self._spans[NOTE_OFF]] = state.note_length
            onsets = 0.0 if density is None else state.density * density
            ends = 0.0 if note_length is None else state.note_length * len(state.sounding) / note_length
            row[self._spans[TIME_SHIFT]] = np.minimum(-(onsets + ends) * SHIFT_SECONDS, LIMIT)
            if state.velocity is not None:
                change = VELOCITY_OF_BIN - VELOCITY_OF_BIN[state.velocity]
                row[self._spans[VELOCITY]] += state.loudness / VELOCITY_UNIT * change
        return scores + torch.from_numpy(shifts).to(scores)

    def _wanted(self, state: FeedbackState) -> list[float | None]:
        """Return the density, loudness and note length that are wanted now, None for each that is not."""
        given = [self._controls.number(index, state.time) for index in self._indexes]
        return [plan if number is None else number for number, plan in zip(given, state.planned, strict=True)]

    def _advance(self, state: FeedbackState, tokens: list[int], start: int) -> FeedbackState:
        for position, token in enumerate(tokens, start):
            kind, value = self._events[token]
            if kind == VELOCITY:
                state = state._replace(velocity=value)
            elif token in self._planned and position >= self._prompt_length:
                place, number = self._planned[token]
                state = state._replace(planned=(*state.planned[:place], number, *state.planned[place + 1 :]))
            elif position >= self._prompt_length and kind in (NOTE_ON, NOTE_OFF, TIME_SHIFT):
                state = self._count(state, kind, value)
        return state

    def _count(self, state: FeedbackState, kind: int, value: int) -> FeedbackState:
        """Return the state after a key went down or up, or time passed."""
        density, loudness, note_length = self._wanted(state)
        steps, is_strike = (value if kind == TIME_SHIFT else 0), kind == NOTE_ON
        time, sounding = state.time + steps, state.sounding
        changes = {}
        if density is not None:
            changes["density"] = DENSITY_RATE * (steps / STEPS_PER_SECOND - is_strike / density)
        if loudness is not None and is_strike and state.velocity is not None:
            changes["loudness"] = LOUDNESS_RATE * (loudness - float(VELOCITY_OF_BIN[state.velocity])) / VELOCITY_UNIT
        if note_length is not None:
            last = state.time - note_length * STEPS_PER_SECOND  # the latest onset of a note that has outlasted it
            if kind == TIME_SHIFT:
                change = sum(last <= on < last + steps for _, on in sounding)
            else:
                change = -sum(key == value and on > last for key, on in sounding)
                sounding = tuple((key, on) for key, on in sounding if key != value)
            changes["note_length"] = NOTE_LENGTH_RATE * change
            sounding += ((value, time),) if is_strike else ()
        numbers = {name: min(max(getattr(state, name) + change, -LIMIT), LIMIT) for name, change in changes.items()}
        if density is not None and self._controls.number(self._indexes[0], state.time) is None:
            numbers["density"] = max(numbers["density"], LEAST_PLANNED)
        return state._replace(time=time, sounding=sounding, **numbers)
