"""Which token may follow which: the Performance encoding as a LogitsProcessor, and a stop by seconds of music.

All that the rules ask of a sequence's past is a little state that each token moves on: which keys are down and since
when, the velocity said last, the time. So a token costs the same after an hour as at the start.

Shape letters: B batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from .performance import (
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
# What an id may be instead: the beginning or the end of a piece, or what says nothing.
BEGIN, END, NOTHING = -1, -2, -3

# What a piano and its players do, for `MusicGrammar`: all of MAESTRO's keys; the length of 99.9% of its notes as they
# sound, pedal and all, for a key that a model forgets to release would be lost to the rest of the piece; and a wait
# that it exceeds less than twice an hour, mostly between movements.
PIANO = {"pitch_range": (21, 108), "max_note_seconds": 10.0, "max_rest_seconds": 10.0}

# Music that is to close does so at a wait of a second, if there is one in the last ten seconds before (but no more
# than the last quarter): in MAESTRO there are four such waits in a minute.
CLOSING_STEPS, CLOSING_REST_STEPS = 10 * STEPS_PER_SECOND, STEPS_PER_SECOND

# A sequence is known again by so many of its newest tokens: ten seconds of music. Two of one length that agree in them
# all and differ before would be taken for each other.
RECALL_TOKENS = 256

# So many sequences are remembered at least: beams change places, and assisted decoding takes tokens back.
RECALL_SEQUENCES = 64


class Recall:
    """Keeps a state for every sequence of a batch and moves it on by the newest token, wherever its row went.

    Args:
        begin: Makes the state of a sequence without tokens, given its row and the number of rows.
        hear: Makes of a state, tokens and the position of the first of them the state after them; it leaves the state
            that it is given as it is.
    """

    def __init__(self, begin: Callable, hear: Callable):
        self._begin, self._hear = begin, hear
        self._known = {}

    def __call__(self, ids: torch.LongTensor) -> list:
        """Bring every sequence up to date.

        Args:
            ids: The sequences so far, `[B, T]`.

        Returns:
            The state of each.
        """
        B, T = ids.shape
        # The newest tokens alone leave an accelerator; on CPU, numpy cuts with less ado than torch.
        tails = ids if ids.device.type == "cpu" else ids[:, -RECALL_TOKENS - 1 :].cpu()
        states = []
        for row, tail in enumerate(tails.numpy()[:, -RECALL_TOKENS - 1 :]):
            known = self._known.get((T - 1, tail[:-1].tobytes()))
            if known is None:
                state = self._hear(self._begin(row, B), ids[row].tolist(), 0)
            else:
                state = self._hear(known, tail[-1:].tolist(), T - 1)
            self._known[T, tail[-RECALL_TOKENS:].tobytes()] = state
            states.append(state)
        # A dictionary keeps the order in which its keys came.
        while len(self._known) > max(RECALL_SEQUENCES, 2 * B):
            del self._known[next(iter(self._known))]
        return states


class Past:
    """What the rules ask of the tokens so far.

    Attributes:
        kind: What the newest one is; padding does not count.
        value: Its pitch, steps or velocity bin.
        time: Steps since the beginning.
        prompt_time: Steps until the end of the prompt.
        onset: When a key last went down.
        velocity: The bin said last, or None.
        down: Which keys sound, bool, `[128]`.
        struck: When each of them went down, the oldest first.
        next_off, next_on: The lowest keys that may still come up and go down in this step.
    """

    def __init__(self):
        self.kind, self.value, self.velocity = NOTHING, 0, None
        self.time = self.prompt_time = self.onset = self.next_off = self.next_on = 0
        self.down = np.zeros(NUM_PITCHES, dtype=bool)
        self.struck = {}

    def copy(self) -> "Past":
        """Make a past of its own that begins with this one."""
        copy = Past.__new__(Past)
        copy.__dict__.update(self.__dict__, down=self.down.copy(), struck=self.struck.copy())
        return copy

    def hear(self, kind: int, value: int):
        """Move on by one token, whether the rules allow it or not.

        Args:
            kind: One of the kinds of event, BEGIN, END or NOTHING.
            value: Accordingly a pitch, steps, a velocity bin, or 0.
        """
        if kind == TIME_SHIFT:
            self.time += value
            self.next_off = self.next_on = 0
        elif kind == NOTE_ON:
            self.down[value] = True
            self.struck.pop(value, None)
            self.struck[value] = self.onset = self.time
            self.next_off, self.next_on = NUM_PITCHES, value + 1
        elif kind == NOTE_OFF:
            self.down[value] = False
            self.struck.pop(value, None)
            self.next_off = value + 1
        elif kind == VELOCITY:
            self.velocity = value
        elif kind == NOTHING:
            return
        self.kind, self.value = kind, value


class MusicGrammar(LogitsProcessor):
    """Masks every token that would make the music malformed.

    What it lets through is what the tokenizer itself could have written: a NoteOff only of a sounding key, a NoteOn
    only of a silent one; within one step NoteOffs, then NoteOns, each by ascending pitch; a Velocity only if it is not
    the current one and a NoteOn can follow; no TimeShift right after one that was not the longest; BOS and PAD never;
    EOS only after the NoteOff that leaves silence. A piece begins with a Velocity.

    A prompt may be any slice of music: what it leaves open is taken as it stands, its hanging NoteOffs do no harm, and
    keys not struck in it or in `before` count as silent. Rows may be padded on the left, change places between calls
    (beam search) and take tokens back (assisted decoding).

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        max_polyphony: Most keys that may sound at once.
        max_note_seconds: Longest time that a key may sound.
        max_rest_seconds: Longest time in which no key goes down.
        pitch_range: Lowest and highest key that may be struck, both included.
        close_after_seconds: Seconds of music, the prompt not counted, after which no note begins; shortly before, a
            rest is taken for the end. EOS follows as soon as the sounding notes have ended; set `max_note_seconds` to
            bound that, too.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`, for
            `close_after_seconds`.
        before: For each prompt the ids that come before it and that the model is not shown, such as the beginning of a
            piece longer than its window: keys that sound from there on are released, too. Return sequences share one.

    Raises:
        ValueError: If the vocabulary is not the plain Performance encoding, or an option is out of range.
    """

    # There, rows of different ages share one sequence.
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
        before: Sequence[Sequence[int]] = ((),),
    ):
        spans = spans_of(tokenizer)
        self._on, self._off, self._shift, self._velocity = (
            spans[kind] for kind in (NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY)
        )
        self._pad, self._bos, self._eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        self._events = events_of(tokenizer)

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
        self._recall = Recall(self._begin, self._hear)

    def _begin(self, row: int, rows: int) -> Past:
        # The return sequences of a prompt follow each other.
        before = self._before[row * len(self._before) // rows]
        return self._hear(Past(), before, -len(before))

    def _hear(self, past: Past, tokens: list[int], start: int) -> Past:
        past = past.copy()
        for token in tokens[: max(self._prompt_length - start, 0)]:
            past.hear(*self._events[token])
            past.prompt_time = past.time
        for token in tokens[max(self._prompt_length - start, 0) :]:
            past.hear(*self._events[token])
        return past

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask the scores of the next token.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]` (or wider, if the model's vocabulary is padded).

        Returns:
            The scores, minus infinity where the grammar forbids a token.
        """
        allowed = np.zeros(scores.shape, dtype=bool)
        for row, past in zip(allowed, self._recall(input_ids), strict=True):
            self._allow(row, past)
        return torch.where(torch.from_numpy(allowed).to(scores.device), scores, -torch.inf)

    def _allow(self, row: np.ndarray, past: Past):
        """Apply every rule to the next token.

        Args:
            row: Set to True for the tokens that may come next, all False before, bool, `[V]`.
            past: What came before.
        """
        if past.kind == END:
            row[self._pad] = True
            return
        # The longest shift, whether a key may go down, and below which key keys may come up.
        shift = 0 if past.kind == TIME_SHIFT and past.value < MAX_SHIFT_STEPS else MAX_SHIFT_STEPS
        on = self._max_polyphony is None or len(past.struck) < self._max_polyphony
        off = NUM_PITCHES
        closing = False
        if self._close_after_steps is not None:
            left = past.prompt_time + self._close_after_steps - past.time
            closing = left <= 0 or (
                left <= min(CLOSING_STEPS, self._close_after_steps // 4)
                and past.time - past.onset >= CLOSING_REST_STEPS
            )
            on &= not closing
            if not past.struck:
                # No rest reaches into the closing phase: a piece ends with its last NoteOff.
                shift = min(shift, 0 if closing else left - 1)
        if self._max_rest_steps is not None and on:
            shift = min(shift, past.onset + self._max_rest_steps - past.time)
        if self._max_note_steps is not None and past.struck:
            # Of the struck keys the first has sounded longest.
            latest = past.time - self._max_note_steps
            shift = min(shift, next(iter(past.struck.values())) - latest)
            overdue = [key for key, struck in past.struck.items() if struck <= latest] if shift <= 0 else []
            if overdue:
                # They come up before anything else happens, and no higher key before them.
                on, off = False, min(overdue) + 1

        keys = slice(max(past.next_on, self._low), self._high + 1)
        on &= not past.down[keys].all()
        if on and past.kind != BEGIN:
            np.logical_not(past.down[keys], out=row[self._on][keys])
        if on and past.kind != VELOCITY:
            # A Velocity says something if it is news and a NoteOn can follow.
            row[self._velocity] = True
            if past.velocity is not None:
                row[self._velocity.start + past.velocity] = False
        if past.kind not in (BEGIN, VELOCITY):
            keys = slice(past.next_off, off)
            row[self._off][keys] = past.down[keys]
            row[self._shift.start : self._shift.start + max(shift, 0)] = True
            row[self._eos] = past.kind == NOTE_OFF and not past.struck
        if not row.any():
            # Only a prompt leads into a dead end, as with a Velocity after the top key; the shortest shift leads out.
            row[self._eos if closing and not past.struck else self._shift.start] = True

    def violations(self, ids) -> list[int]:
        """Find the tokens of a finished sequence that the grammar would not have let through.

        A sequence that does not begin with BOS is a slice of music: a key whose first event in it is a NoteOff was
        sounding before. The closing phase is not asked for.

        Args:
            ids: One sequence, `[T]`, padding at its ends allowed.

        Returns:
            Their positions, ascending; empty if the sequence is well-formed.
        """
        ids = np.asarray(ids).astype(np.int64)
        (music,) = np.nonzero(ids != self._pad)
        if len(music) == 0:
            return []
        past, events = Past(), [self._events[i] for i in ids[: music[-1] + 1].tolist()]
        past.prompt_time = math.inf
        if ids[music[0]] != self._bos:
            for kind, value in reversed(events):
                if kind in (NOTE_ON, NOTE_OFF):
                    past.down[value] = kind == NOTE_OFF
            past.struck |= dict.fromkeys(np.flatnonzero(past.down).tolist(), 0)
        wrong = []
        for position in range(music[0], len(events)):
            if position > music[0]:
                row = np.zeros(len(self._events), dtype=bool)
                self._allow(row, past)
                if not row[ids[position]]:
                    wrong.append(position)
            past.hear(*events[position])
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
        # A trained vocabulary holds the events, too, and tokens of several beside them.
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
    """Say what each id means.

    Args:
        tokenizer: A tokenizer of the Performance encoding.

    Returns:
        The kind of each id, and its pitch, steps or velocity bin or else 0.

    Raises:
        ValueError: If the vocabulary is another one.
    """
    events = [(NOTHING, 0)] * len(tokenizer)
    events[tokenizer.bos_token_id], events[tokenizer.eos_token_id] = (BEGIN, 0), (END, 0)
    for kind, ids in spans_of(tokenizer).items():
        first = 1 if kind == TIME_SHIFT else 0
        events[ids] = [(kind, first + i) for i in range(ids.stop - ids.start)]
    return events


class MaxSeconds(StoppingCriteria):
    """Stops each sequence after so many seconds of music, the prompt not counted.

    Rows of a batch stop apart; `generate()` pads the ones that are done, given an EOS token in the generation config.

    Args:
        tokenizer: The tokenizer, for its `token_seconds`.
        seconds: Seconds of music to generate.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`.
    """

    def __init__(self, tokenizer, seconds: float, prompt_length: int):
        # Whole steps: an hour of music sums without drift.
        token_seconds = np.asarray(tokenizer.token_seconds)
        step = token_seconds[token_seconds > 0].min()
        self._steps = np.rint(token_seconds / step).astype(int).tolist()
        self._limit = round(seconds / step)
        self._prompt_length = prompt_length
        self._recall = Recall(lambda row, rows: 0, self._hear)

    def _hear(self, steps: int, tokens: list[int], start: int) -> int:
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
        return torch.tensor([steps >= self._limit for steps in self._recall(input_ids)], device=input_ids.device)
