"""The grammar of infilling: whatever the weights, the music of a gap fits exactly between what surrounds it.

Outside the gap not one note changes, and notes that sound across its edges keep their onsets, ends and velocities.
`Gap` holds what is given; `InfillGrammar` lets the model write only notes that lie in the gap, writes the events of
notes across the edges itself at their times, and reaches the suffix in the step in which it begins.

Shape letters: B batch, T tokens, V vocabulary, L ids.
"""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from .grammar import BEGIN, END, GrammarState, MusicGrammar
from .infilling import divide, write_gap
from .performance import (
    DEFAULT_VELOCITY,
    FOREVER,
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    NOTE_ON,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    UNKNOWN,
    VELOCITIES_PER_BIN,
    VELOCITY,
    Notes,
    events_to_notes,
    notes_to_events,
)

# Tokens that are left for the middle: those that the gap holds now and half as many, or as many as MAESTRO has on
# average in this time if that is more.
SPARE_TIMES, TOKENS_PER_SECOND = 1.5, 40

# The least that the model must see of each side of a gap.
MIN_CONTEXT_TOKENS = 64

# What a model without a sliding window is given to see, the middle included.
DEFAULT_WINDOW = 2048


DEFAULT_BIN = DEFAULT_VELOCITY // VELOCITIES_PER_BIN


class KeptEvent(NamedTuple):
    """An event in the gap of a note that sounds across one of its edges.

    Args:
        step: When, in steps since the beginning of the prefix that the model sees.
        kind: NOTE_OFF or NOTE_ON, whose numbers are their order within a step.
        pitch: The key.
        velocity: The velocity bin of a NOTE_ON.
    """

    step: int
    kind: int
    pitch: int
    velocity: int


class Gap:
    """A piece with a gap, and what of it the model sees.

    Args:
        ids: The piece from BOS on, `[L]`.
        tokenizer: A tokenizer with tokens for infilling.
        start_seconds: Where the gap begins.
        stop_seconds: Where it ends; what lies beyond the end of the piece is cut off.
        window: The most tokens that the model sees at once, the music of the gap included; None for DEFAULT_WINDOW.

    Attributes:
        prompt: What the middle is to follow, from Infill_Suffix on, `[T]`.
        start, stop: First step of the gap and first step after it, since the beginning of the prefix in the prompt.
        join: The step of the first event of the suffix, likewise.
        kept: The events in the gap of notes that sound across its edges, in order.
        sounding: Keys that sound at the beginning of the prefix in the prompt.

    Raises:
        ValueError: The gap is empty, or lies outside the piece, or is too long; the tokenizer has no such tokens.
    """

    def __init__(self, ids, tokenizer, start_seconds: float, stop_seconds: float, window: int | None = None):
        if tokenizer.infill_ids is None:
            raise ValueError(
                "This model was not trained for infilling: its tokenizer has no tokens for it. Use one that was, or "
                "train with a corpus of --tokenizer PerformanceWithControls and infill_fraction above 0."
            )
        encoding, window = tokenizer.miditok, window or DEFAULT_WINDOW
        ids = np.asarray(ids)
        if ids[-1] != tokenizer.eos_token_id:
            ids = np.append(ids, tokenizer.eos_token_id)
        self._encoding, self._ids, self._bos = encoding, ids, tokenizer.bos_token_id
        notes, length = events_to_notes(encoding.ids_to_events(ids))
        # Notes before the first Velocity sound at DEFAULT_VELOCITY, whatever will stand before them.
        unknown = notes.velocity == UNKNOWN
        self._notes = notes._replace(velocity=np.where(unknown, DEFAULT_BIN, notes.velocity))
        start, stop = (round(seconds * STEPS_PER_SECOND) for seconds in (start_seconds, stop_seconds))
        given = f"the gap from {start_seconds:g} to {stop_seconds:g} seconds"
        if not 0 <= start < length:
            raise ValueError(f"{given} must begin within the piece, which is {length / STEPS_PER_SECOND:g} s long.")
        if stop - start < 2:
            raise ValueError(f"{given} holds no music; it must be at least {2 / STEPS_PER_SECOND} s long.")
        # The end of the piece belongs to a gap that reaches it.
        stop = length + 1 if stop >= length else stop

        parts = divide(ids, encoding, start, stop)
        before = write_gap(parts, ids, encoding)
        gap_tokens = len(before) - len(parts.suffix)
        spare = max(SPARE_TIMES * len(parts.middle), TOKENS_PER_SECOND * (stop - start) / STEPS_PER_SECOND)
        room = window - gap_tokens - 2 - int(spare)
        if room < 2 * MIN_CONTEXT_TOKENS:
            raise ValueError(
                f"{given} is too long: its music and what surrounds it must fit into the {window} tokens that the "
                "model sees at once; choose a shorter one."
            )
        half = room // 2
        suffix = before[: gap_tokens + max(half, room - len(parts.prefix))]
        prefix, self._origin, self.sounding = self._cut(parts.prefix, room + gap_tokens - len(suffix))
        self.prompt = np.concatenate([suffix, [encoding.infill_ids.prefix], prefix])
        seen = int(np.rint(encoding.token_seconds[parts.prefix] * STEPS_PER_SECOND).sum())
        self.start, self.stop = start - self._origin, stop - self._origin
        self.join = seen + parts.steps - self._origin

        end = np.where(self._notes.end == FOREVER, length, self._notes.end)
        inside = (self._notes.start >= start) & (end < stop)
        self._kept_notes = Notes(*(field[~inside] for field in self._notes))
        on = np.flatnonzero(~inside & (self._notes.start >= start) & (self._notes.start < stop))
        off = np.flatnonzero(~inside & (self._notes.start < start) & (end >= start) & (end < stop))
        fields = (self._notes.pitch.tolist(), self._notes.velocity.tolist())
        kept = [KeptEvent(int(self._notes.start[i]), NOTE_ON, *(field[i] for field in fields)) for i in on]
        kept += [KeptEvent(int(end[i]), NOTE_OFF, *(field[i] for field in fields)) for i in off]
        self.kept = sorted(event._replace(step=event.step - self._origin) for event in kept)

    def _cut(self, prefix: np.ndarray, tokens: int) -> tuple[np.ndarray, int, tuple[int, ...]]:
        """Return the end of the prefix that fits, the step at which it begins, and the keys that sound there."""
        steps = np.rint(self._encoding.token_seconds[prefix] * STEPS_PER_SECOND).astype(np.int64)
        first = max(len(prefix) - tokens, 0)
        if first:
            # The first event of a step.
            first += 1 + int(np.argmax((steps[first:-1] > 0) & (steps[first + 1 :] == 0)))
        origin = int(steps[:first].sum())
        sounds = (self._notes.start < origin) & (self._notes.end >= origin)
        return prefix[first:], origin, tuple(self._notes.pitch[sounds].tolist())

    def fill(self, ids) -> np.ndarray:
        """Put generated music into the gap.

        Args:
            ids: The prompt and what was generated after it, `[T]`; unfinished notes are left out.

        Returns:
            The ids of the whole piece in canonical order, from BOS to EOS, without controls, `[L]`.
        """
        prompt = len(self.prompt) - int(np.argmax(self.prompt[::-1] == self._encoding.infill_ids.prefix))
        ids = np.asarray(ids)[prompt:]
        notes, _ = events_to_notes(self._encoding.ids_to_events(ids))
        is_new = (notes.start >= self.start) & (notes.end < self.stop)
        start, end, pitch, velocity = (field[is_new] for field in notes)
        new = Notes(start + self._origin, end + self._origin, pitch, velocity)
        whole = Notes(*(np.concatenate(fields) for fields in zip(self._kept_notes, new, strict=True)))
        middle = self._encoding.events_to_ids(notes_to_events(whole))
        return np.concatenate([[self._bos], middle, self._ids[-1:]])


class InfillGrammar(MusicGrammar):
    """Masks every token that would not fit into a gap; `Infill_End` follows when the suffix is reached.

    Args:
        tokenizer: A tokenizer with tokens for infilling.
        gap: The gap; every sequence has its prompt.
        soft_max_tokens: After so many tokens no note begins, so that the middle ends soon.
        **options: `controls`, `max_polyphony`, `max_note_seconds` and `pitch_range` as for `MusicGrammar`; notes that
            sound across an edge of the gap are not bound by them.
    """

    def __init__(self, tokenizer, gap: Gap, soft_max_tokens: int | None = None, **options):
        options = {name: value for name, value in options.items() if name != "max_rest_seconds"}
        super().__init__(tokenizer, prompt_length=len(gap.prompt), **options)
        self._gap, self._end = gap, tokenizer.infill_ids.end
        self._soft_max_tokens = soft_max_tokens
        self._kept_steps = [event.step for event in gap.kept]
        self._kept_strikes = {(event.pitch, event.step) for event in gap.kept if event.kind == NOTE_ON}

    def _begin(self, row: int, rows: int) -> GrammarState:
        return GrammarState(self._gap.sounding)

    def _allow(self, row: np.ndarray, state: GrammarState):
        if state.kind == END:
            row[self._pad] = True
            return
        gap, now = self._gap, state.time
        is_inside = gap.start <= now < gap.stop
        last = gap.stop - 1  # the last step in which a note of the middle may end
        # The keys of the middle that sound, the oldest first; the others belong to notes across an edge.
        own = {
            pitch: struck
            for pitch, struck in state.struck.items()
            if struck >= gap.start and (pitch, struck) not in self._kept_strikes
        }
        pending = [event for event in self._kept_at(now) if not _is_written(event, state)]

        oldest = next(iter(own.values()), None)
        overdue = None if self._max_note_steps is None or oldest is None else oldest + self._max_note_steps
        offs = {event.pitch for event in pending if event.kind == NOTE_OFF}
        offs |= {event.pitch for event in pending if event.kind == NOTE_ON and event.pitch in own}
        if now >= last:
            offs |= own.keys()
        elif overdue is not None and now >= overdue:
            offs |= {pitch for pitch, struck in own.items() if now >= struck + self._max_note_steps}
        if offs:
            row[self._off.start + min(offs)] = True
            return
        if pending:
            event = pending[0]
            changes = state.velocity != event.velocity
            row[self._velocity.start + event.velocity if changes else self._on.start + event.pitch] = True
            return

        is_short = state.kind == TIME_SHIFT and state.value < MAX_SHIFT_STEPS
        is_closing = self._soft_max_tokens is not None and state.new_tokens >= self._soft_max_tokens
        # What was written for the sake of a NoteOn still gets it.
        is_closing &= not (state.kind == VELOCITY or is_short or state.control >= 0)
        can_strike = not is_closing and (self._max_polyphony is None or len(state.struck) < self._max_polyphony)
        if can_strike and is_inside and now < last:
            keys = slice(max(state.next_on, self._low), self._high + 1)
            is_free = ~state.down[keys]
            if state.velocity is not None:
                row[self._on][keys] = is_free
            if state.kind != VELOCITY and is_free.any():
                row[self._velocity] = True
                if state.velocity is not None:
                    row[self._velocity.start + state.velocity] = False
        if state.kind == VELOCITY:
            return
        for pitch in own:
            row[self._off.start + pitch] = pitch >= state.next_off
        if now == gap.join:
            row[self._end] = True
            return
        # A piece begins with its first note.
        if state.control >= 0 or is_short or (state.kind == BEGIN and row[self._velocity].any()):
            return

        # Time runs to a step in which an event must come, or can; after the longest shift it may run on.
        later = bisect_left(self._kept_steps, now + 1)
        limit = last if own else gap.join
        if later < len(self._kept_steps):
            limit = min(limit, self._kept_steps[later])
        if overdue is not None:
            limit = min(limit, overdue)
        can_strike &= not state.down[self._low : self._high + 1].all()
        latest = limit if own else min(limit, last - 1) if can_strike else 0
        longest = min(limit - now, MAX_SHIFT_STEPS)
        shifts = row[self._shift]
        shifts[max(gap.start - now, 1) - 1 : max(min(latest - now, longest), 0)] = True
        shifts[longest - 1] = True

    def _kept_at(self, step: int) -> list[KeptEvent]:
        first = bisect_left(self._kept_steps, step)
        return self._gap.kept[first : bisect_left(self._kept_steps, step + 1)]


def _is_written(event: KeptEvent, state: GrammarState) -> bool:
    """Tell whether an event of this very step has been written."""
    is_struck = state.struck.get(event.pitch) == event.step
    return is_struck if event.kind == NOTE_ON else is_struck or not state.down[event.pitch]
