"""Constrained decoding: the grammar of the Performance encoding as a LogitsProcessor, and a stop by seconds of music.

The rules depend on a small state that each token updates: which keys sound and since when, the last velocity, the
time. So a token costs the same after an hour as at the start.

Shape letters: B batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from .controls import SEGMENT_STEPS, Controls
from .performance import (
    BEFORE,
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    NOTE_ON,
    NUM_PITCHES,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VELOCITY_OF_BIN,
)

# The tokens of each kind of event, in the order of their ids.
TOKENS = {
    NOTE_ON: [f"NoteOn_{pitch}" for pitch in range(NUM_PITCHES)],
    NOTE_OFF: [f"NoteOff_{pitch}" for pitch in range(NUM_PITCHES)],
    TIME_SHIFT: [f"TimeShift_{steps}" for steps in range(1, MAX_SHIFT_STEPS + 1)],
    VELOCITY: [f"Velocity_{velocity}" for velocity in VELOCITY_OF_BIN],
}
# Kinds of ids that are no events: BOS, EOS or Infill_End, a control, Infill_Prefix, and padding or others.
BEGIN, END, NOTHING, CONTROL, PREFIX = -1, -2, -3, -4, -5

# Options of `MusicGrammar` for a piano, from MAESTRO: its range of keys; the length that 99.9% of its notes stay
# below, pedal included, because a key that is never released could not be struck again; and the longest wait without
# an onset, exceeded less than twice an hour, mostly between movements.
PIANO = {"pitch_range": (21, 108), "max_note_seconds": 10.0, "max_rest_seconds": 10.0}

# An ending is taken at a wait of a second without an onset in the last ten seconds (but no more than the last quarter)
# before the limit: in MAESTRO there are four such waits in a minute.
CLOSING_STEPS, CLOSING_REST_STEPS = 10 * STEPS_PER_SECOND, STEPS_PER_SECOND

# NoteOffs in one step that make a release: the pedal, a chord or an octave comes up.
RELEASED_KEYS = 2

# The newest tokens that identify a sequence in the cache: ten seconds of music. Two sequences of one length that
# differ only before them would share a state.
CACHE_KEY_TOKENS = 256

# Sequences to keep at least: beam search reorders rows, and assisted decoding takes tokens back.
CACHED_SEQUENCES = 64


class PrefixStateCache:
    """A cache from token prefixes to states, so that each call advances a row's state by its newest token only.

    Rows may be reordered between calls: a state is looked up by the tokens of its row.

    Args:
        begin: Returns the state of an empty sequence, given its row and the number of rows.
        advance: Returns the state after some tokens, given the state before them, the tokens and the position of the
            first; it does not change the state that it is given.
    """

    def __init__(self, begin: Callable, advance: Callable):
        self._begin, self._advance = begin, advance
        self._known = {}

    def __call__(self, ids: torch.LongTensor) -> list:
        """Return the state of every sequence.

        Args:
            ids: The sequences so far, `[B, T]`.

        Returns:
            The state of each.
        """
        B, T = ids.shape
        # Copy only the newest tokens from an accelerator; on CPU, slicing in numpy is faster than in torch.
        tails = ids if ids.device.type == "cpu" else ids[:, -CACHE_KEY_TOKENS - 1 :].cpu()
        states = []
        for row, tail in enumerate(tails.numpy()[:, -CACHE_KEY_TOKENS - 1 :]):
            known = self._known.get((T - 1, tail[:-1].tobytes()))
            if known is None:
                state = self._advance(self._begin(row, B), ids[row].tolist(), 0)
            else:
                state = self._advance(known, tail[-1:].tolist(), T - 1)
            self._known[T, tail[-CACHE_KEY_TOKENS:].tobytes()] = state
            states.append(state)
        # The oldest first: a dictionary keeps the order of insertion.
        while len(self._known) > max(CACHED_SEQUENCES, 2 * B):
            del self._known[next(iter(self._known))]
        return states


class GrammarState:
    """The state of the grammar after some tokens.

    Attributes:
        kind: Kind of the newest token, padding aside.
        value: Its pitch, steps or velocity bin.
        time: Steps since the beginning.
        prompt_time: Steps until the end of the prompt.
        onset: Step of the last NoteOn.
        velocity: The current velocity bin, or None.
        segment: Segment of the last event since the end of the prompt, -1 before the first.
        control: Attribute that the newest token states, or -1.
        down: Which keys sound, bool, `[128]`.
        struck: The step of the NoteOn of each sounding key, the oldest first.
        offs: NoteOffs in this step.
        left_out: The step of the first release after the NoteOn of each sounding key, for keys that it left out.
        new_tokens: Tokens since the end of the prompt.
        sounding: Keys that sound at the beginning, where the music begins after Infill_Prefix.
        next_off, next_on: The lowest keys that a NoteOff and a NoteOn may still name in this step.
    """

    def __init__(self, sounding: Sequence[int] = ()):
        self.kind, self.value, self.velocity = NOTHING, 0, None
        self.time = self.prompt_time = self.onset = self.next_off = self.next_on = 0
        self.segment = self.control = -1
        self.down = np.zeros(NUM_PITCHES, dtype=bool)
        self.down[list(sounding)] = True
        self.struck = dict.fromkeys(sounding, BEFORE)
        self.offs, self.left_out = 0, {}
        self.new_tokens, self.sounding = 0, sounding

    def copy(self) -> "GrammarState":
        """Return a copy that can be advanced on its own."""
        copy = GrammarState.__new__(GrammarState)
        copies = {name: getattr(self, name).copy() for name in ("down", "struck", "left_out")}
        copy.__dict__.update(self.__dict__, **copies)
        return copy

    def advance(self, kind: int, value: int):
        """Update the state by one token, whether the rules allow it or not.

        Args:
            kind: A kind of event, BEGIN, END, CONTROL, PREFIX or NOTHING.
            value: Its pitch, steps, velocity bin or attribute, else 0.
        """
        if kind == NOTHING:
            return
        if kind == PREFIX:
            # What came before is the music after a gap.
            self.__init__(self.sounding)
            return
        self.control = value if kind == CONTROL else -1
        if kind == CONTROL:
            return
        if kind == TIME_SHIFT:
            self.time += value
            self.next_off = self.next_on = self.offs = 0
        else:
            self.segment = (self.time - self.prompt_time) // SEGMENT_STEPS
        if kind == NOTE_ON:
            self.down[value] = True
            self.struck.pop(value, None)
            self.left_out.pop(value, None)
            self.struck[value] = self.onset = self.time
            self.next_off, self.next_on = NUM_PITCHES, value + 1
        elif kind == NOTE_OFF:
            self.down[value] = False
            self.struck.pop(value, None)
            self.left_out.pop(value, None)
            self.next_off = value + 1
            self.offs += 1
            if self.offs == RELEASED_KEYS:
                # Keys that this release does not leave out come up in this very step.
                self.left_out = dict.fromkeys(self.struck, self.time) | self.left_out
        elif kind == VELOCITY:
            self.velocity = value
        self.kind, self.value = kind, value


class MusicGrammar(LogitsProcessor):
    """Masks every token that would make the sequence malformed.

    It allows what the tokenizer itself could have written: a NoteOff only of a sounding key, a NoteOn only of a silent
    one; within one step NoteOffs, then NoteOns, each by ascending pitch; a Velocity only if it changes the current one
    and a NoteOn can follow; no TimeShift directly after one shorter than the longest; BOS and PAD never; EOS only
    after the NoteOff that leaves silence. A piece begins with a Velocity. Controls stand before the first event of a
    segment alone, each once and in their order.

    A prompt may be any slice of a piece: notes that it leaves open stay open, a NoteOff without its NoteOn is ignored,
    and keys not struck in it or in `before` count as silent. Rows may be padded on the left, reordered between calls
    (beam search) and shortened (assisted decoding).

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        max_polyphony: Most keys that may sound at once.
        max_note_seconds: Longest time that a key may sound.
        max_rest_seconds: Longest time without a NoteOn.
        pitch_range: Lowest and highest key that may be struck, both included.
        close_after_seconds: Seconds of music, without the prompt, after which no note begins; a rest shortly before
            ends the piece early. EOS follows when the sounding notes have ended, which `max_note_seconds` bounds.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`, for
            `close_after_seconds` and the segments of controls.
        controls: What is wanted of the controls, by the names that `Controls` takes. Given or planned, a control takes
            the place of the first event of a segment, with the probability of all events together.
        before: For each prompt the ids before it that are not in `input_ids`, such as the beginning of a piece longer
            than the sliding window, so that keys which still sound are released too. Return sequences share one.

    Raises:
        ValueError: If the vocabulary is not the plain Performance encoding, or an option is out of range.
    """

    # Continuous batching packs rows of different lengths into one sequence.
    supports_continuous_batching = False

    def __init__(
        self,
        tokenizer,
        *,
        max_polyphony: int | None = None,
        max_note_seconds: float | None = None,
        max_rest_seconds: float | None = None,
        pitch_range: tuple[int, int] | None = None,
        close_after_seconds: float | None = None,
        prompt_length: int = 0,
        controls: Mapping | None = None,
        before: Sequence[Sequence[int]] = ((),),
    ):
        spans = spans_of(tokenizer)
        self._on, self._off, self._shift, self._velocity = (
            spans[kind] for kind in (NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY)
        )
        self._pad, self._bos, self._eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        self._events = events_of(tokenizer)
        self._is_event = np.isin([kind for kind, _ in self._events], (NOTE_ON, NOTE_OFF, VELOCITY))  # [V]
        self._controls = Controls(tokenizer.attributes, controls or {})
        self._control_spans = tokenizer.control_spans

        self._low, self._high = pitch_range or (0, NUM_PITCHES - 1)
        if not 0 <= self._low <= self._high < NUM_PITCHES:
            raise ValueError(f"pitch_range {pitch_range} must be two keys within 0..127, the lower one first.")
        if max_polyphony is not None and max_polyphony < 1:
            raise ValueError(f"max_polyphony ({max_polyphony}) must be at least 1; leave it out for no limit.")
        for name, seconds in (("max_note_seconds", max_note_seconds), ("max_rest_seconds", max_rest_seconds)):
            if seconds is not None and seconds * STEPS_PER_SECOND < 1:
                raise ValueError(f"{name} ({seconds}) must be at least a step, {1 / STEPS_PER_SECOND}.")
        self._max_polyphony = max_polyphony
        self._max_note_steps = max_note_seconds and round(max_note_seconds * STEPS_PER_SECOND)
        self._max_rest_steps = max_rest_seconds and round(max_rest_seconds * STEPS_PER_SECOND)
        self._close_after_steps = close_after_seconds and round(close_after_seconds * STEPS_PER_SECOND)
        self._prompt_length = prompt_length
        self._before = [np.asarray(ids, dtype=np.int64).tolist() for ids in before]
        self.states = PrefixStateCache(self._begin, self._advance)  # `ForgottenKeys` reads them too

    def _begin(self, row: int, rows: int) -> GrammarState:
        # The return sequences of a prompt follow each other.
        before = self._before[row * len(self._before) // rows]
        return self._advance(GrammarState(), before, -len(before))

    def _advance(self, state: GrammarState, tokens: list[int], start: int) -> GrammarState:
        state = state.copy()
        for token in tokens[: max(self._prompt_length - start, 0)]:
            state.advance(*self._events[token])
            state.prompt_time, state.segment, state.control = state.time, -1, -1
        for token in tokens[max(self._prompt_length - start, 0) :]:
            state.advance(*self._events[token])
            state.new_tokens += 1
        return state

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask the scores of the next token.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]` (or wider, if the model's vocabulary is padded).

        Returns:
            The scores, minus infinity where the grammar forbids a token.
        """
        original = scores
        allowed = np.zeros(scores.shape, dtype=bool)
        demanded = []
        for index, (row, state) in enumerate(zip(allowed, self.states(input_ids), strict=True)):
            self._allow(row, state)
            if self._controls.stated:
                demanded += ((index, *control) for control in self._demand_control(row, state))
        for index, control, events in demanded:
            # Otherwise the model's view of the control, not of the time, would decide whether an event comes now.
            scores = scores.clone() if scores is original else scores
            scores[index, control] += scores[index, events].logsumexp(-1) - scores[index, control].logsumexp(-1)
        return torch.where(torch.from_numpy(allowed).to(scores.device), scores, -torch.inf)

    def _allow(self, row: np.ndarray, state: GrammarState):
        """Apply every rule to the next token.

        Args:
            row: Set to True for the tokens that may come next, all False before, bool, `[V]`.
            state: The state before it.
        """
        if state.kind == END:
            row[self._pad] = True
            return
        # The longest shift, whether a key may go down, and below which key keys may come up.
        is_short = state.kind == TIME_SHIFT and state.value < MAX_SHIFT_STEPS
        shift = 0 if is_short or state.control >= 0 else MAX_SHIFT_STEPS
        on = self._max_polyphony is None or len(state.struck) < self._max_polyphony
        off = NUM_PITCHES
        closing = False
        if self._close_after_steps is not None:
            left = state.prompt_time + self._close_after_steps - state.time
            closing = left <= 0 or (
                left <= min(CLOSING_STEPS, self._close_after_steps // 4)
                and state.time - state.onset >= CLOSING_REST_STEPS
            )
            on &= not closing
            if not state.struck:
                # No rest reaches into the closing phase: a piece ends with its last NoteOff.
                shift = min(shift, 0 if closing else left - 1)
        if self._max_rest_steps is not None and on:
            shift = min(shift, state.onset + self._max_rest_steps - state.time)
        if self._max_note_steps is not None and state.struck:
            # Of the struck keys the first has sounded longest.
            latest = state.time - self._max_note_steps
            shift = min(shift, next(iter(state.struck.values())) - latest)
            overdue = [key for key, struck in state.struck.items() if struck <= latest] if shift <= 0 else []
            if overdue:
                # They come up before anything else happens, and no higher key before them.
                on, off = False, min(overdue) + 1

        keys = slice(max(state.next_on, self._low), self._high + 1)
        on &= not state.down[keys].all()
        if on and state.kind != BEGIN:
            np.logical_not(state.down[keys], out=row[self._on][keys])
        if on and state.kind != VELOCITY:
            # A Velocity must change the current one, and a NoteOn must be able to follow.
            row[self._velocity] = True
            if state.velocity is not None:
                row[self._velocity.start + state.velocity] = False
        if state.kind not in (BEGIN, VELOCITY):
            keys = slice(state.next_off, off)
            row[self._off][keys] = state.down[keys]
            row[self._shift.start : self._shift.start + max(shift, 0)] = True
            row[self._eos] = state.kind == NOTE_OFF and not state.struck and state.control < 0
        if not row.any():
            # Only a malformed prompt leads here, such as a Velocity after the top key: allow the shortest shift.
            row[self._eos if closing and not state.struck else self._shift.start] = True

    def _demand_control(self, row: np.ndarray, state: GrammarState) -> list[tuple[slice, np.ndarray]]:
        """Demand the next control in place of the first event of a segment.

        Args:
            row: The tokens that may come next without controls, bool, `[V]`; changed in place.
            state: The state before them.

        Returns:
            If a control is demanded: the slice of its ids that are allowed, one if it is given and all if it is
            planned, and the ids of the events that come after it. Else an empty list.
        """
        since = state.time - state.prompt_time
        if state.kind in (VELOCITY, END) or (state.control < 0 and since // SEGMENT_STEPS <= state.segment):
            return []
        attribute = next((attribute for attribute in self._controls.stated if attribute > state.control), None)
        (events,) = np.nonzero(row[: len(self._is_event)] & self._is_event)
        if attribute is None or len(events) == 0:
            return []
        control, value = self._control_spans[attribute], self._controls.value(attribute, since)
        if value is not None:
            control = slice(control.start + value, control.start + value + 1)
        row[events] = False
        row[control] = True
        return [(control, events)]

    def violations(self, ids) -> list[int]:
        """Find the tokens of a finished sequence that the grammar would have masked.

        A sequence that does not begin with BOS is a slice of a piece: a key whose first event in it is a NoteOff was
        sounding before. `close_after_seconds` is not checked, nor where the segments of controls begin.

        Args:
            ids: One sequence, `[T]`, padding at its ends allowed.

        Returns:
            Their positions, ascending; empty if the sequence is well-formed.
        """
        ids = np.asarray(ids).astype(np.int64)
        (music,) = np.nonzero(ids != self._pad)
        if len(music) == 0:
            return []
        state, events = GrammarState(), [self._events[i] for i in ids[: music[-1] + 1].tolist()]
        state.prompt_time = math.inf
        if ids[music[0]] != self._bos:
            for kind, value in reversed(events):
                if kind in (NOTE_ON, NOTE_OFF):
                    state.down[value] = kind == NOTE_OFF
            state.struck |= dict.fromkeys(np.flatnonzero(state.down).tolist(), 0)
        wrong = []
        for position in range(music[0], len(events)):
            if position > music[0]:
                row = np.zeros(len(self._events), dtype=bool)
                self._allow(row, state)
                if state.kind not in (VELOCITY, END) and (row & self._is_event).any():
                    for span in self._control_spans[state.control + 1 :]:
                        row[span] = True
                if not row[ids[position]]:
                    wrong.append(position)
            state.advance(*events[position])
        return wrong


def spans_of(tokenizer) -> dict[int, slice]:
    """Find the ids of each kind of event.

    Args:
        tokenizer: A tokenizer of the Performance encoding.

    Returns:
        The slice of the vocabulary that each kind fills, in the order of `TOKENS`.

    Raises:
        ValueError: If the vocabulary is another one.
    """
    if not tokenizer.has_events:
        # A trained vocabulary has tokens of several events beside those of one.
        raise ValueError(
            "The vocabulary is not of single events; the tokenizer must be one of the Performance encoding, untrained."
        )
    vocabulary, spans = tokenizer.get_vocab(), {}
    for kind, tokens in TOKENS.items():
        ids = [vocabulary[token] for token in tokens if token in vocabulary]
        if len(ids) < len(tokens) or ids != list(range(ids[0], ids[0] + len(ids))):
            raise ValueError(
                f"The vocabulary has {len(ids)} {tokens[0].partition('_')[0]} tokens, not {len(tokens)} in a row; "
                "the tokenizer must be one of the Performance encoding."
            )
        spans[kind] = slice(ids[0], ids[-1] + 1)
    return spans


def events_of(tokenizer) -> list[tuple[int, int]]:
    """List the event of each id.

    Args:
        tokenizer: A tokenizer of the Performance encoding.

    Returns:
        The kind of each id, and its pitch, steps, velocity bin or attribute, else 0.

    Raises:
        ValueError: If the vocabulary is another one.
    """
    events = [(NOTHING, 0)] * len(tokenizer)
    events[tokenizer.bos_token_id], events[tokenizer.eos_token_id] = (BEGIN, 0), (END, 0)
    for kind, ids in spans_of(tokenizer).items():
        first = 1 if kind == TIME_SHIFT else 0
        events[ids] = [(kind, first + i) for i in range(ids.stop - ids.start)]
    for attribute, ids in enumerate(tokenizer.control_spans):
        events[ids] = [(CONTROL, attribute)] * (ids.stop - ids.start)
    if tokenizer.infill_ids is not None:
        events[tokenizer.infill_ids.prefix], events[tokenizer.infill_ids.end] = (PREFIX, 0), (END, 0)
    return events


class MaxSeconds(StoppingCriteria):
    """Stops each sequence after some seconds of music, without the prompt.

    Rows of a batch stop on their own; `generate()` pads finished rows if the generation config has an EOS token.

    Args:
        tokenizer: The tokenizer, for its `token_seconds`.
        seconds: Seconds of music to generate.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`.
    """

    def __init__(self, tokenizer, seconds: float, prompt_length: int):
        # Count whole steps: sums of floats drift over an hour.
        token_seconds = np.asarray(tokenizer.token_seconds)
        step = token_seconds[token_seconds > 0].min()
        self._steps = np.rint(token_seconds / step).astype(int).tolist()
        self._limit = round(seconds / step)
        self._prompt_length = prompt_length
        self._states = PrefixStateCache(lambda row, rows: 0, self._advance)

    def _advance(self, steps: int, tokens: list[int], start: int) -> int:
        return steps + sum(self._steps[token] for token in tokens[max(self._prompt_length - start, 0) :])

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        """Count the music so far.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Not used.
            **kwargs: Not used.

        Returns:
            Whether each sequence is done, `[B]`.
        """
        return torch.tensor([steps >= self._limit for steps in self._states(input_ids)], device=input_ids.device)
