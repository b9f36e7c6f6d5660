"""Piano music on a grid of 10 ms steps: notes to events and back.

The paper writes a performance as four kinds of events: a key goes down, a key comes up, time passes, the velocity
changes. This file converts between seconds, notes and events, in numpy over symusic's arrays, without ids.

    read_notes       score -> notes on the grid, the sustain pedal folded into their ends
    notes_to_events  notes -> events in their one canonical order
    events_to_notes  any events whatever -> notes
    write_score      notes -> score

Canonical order: within a step first the keys that come up, then the keys that go down, each by ascending pitch; a
velocity stands before a key that goes down only where it differs from the last one; time passes in as few events as
possible. A note lasts at least one step. A key struck while it sounds comes up first; of several strikes of a key in
one step only the last is kept, because the others have no length (2 of the 7.1 million notes of MAESTRO are lost so).

Shape letters: N notes, L events.

Source: Oore et al., "This Time with Feeling" (arXiv 1808.03715), section 3; Huang et al., "Music Transformer"
(arXiv 1809.04281), appendix A.2.
"""

from typing import NamedTuple

import numpy as np
from symusic import Note, Score, Tempo, Track

STEPS_PER_SECOND = 100
MAX_SHIFT_STEPS = 100
NUM_PITCHES = 128

# 32 bins of 4 velocities each; a bin sounds at its centre: 2, 6, ... 126.
VELOCITIES_PER_BIN = 4
VELOCITY_OF_BIN = np.arange(2, 128, VELOCITIES_PER_BIN)
DEFAULT_VELOCITY = 64

# The numbers of NOTE_OFF and NOTE_ON are their order within a step.
NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY = range(4)

# Controller 64, and the value from which on it is down.
SUSTAIN_PEDAL = 64
PEDAL_DOWN = 64

# A day. Broken files have times of years, and every second of them would be an event.
MAX_STEPS = 24 * 3600 * STEPS_PER_SECOND

# What a slice of a piece does not contain: the start of a note, its end, its velocity.
BEFORE, FOREVER, UNKNOWN = -1, 2 * MAX_STEPS, -1

# Scores are written in milliseconds: 120 quarters per minute of 500 ticks each.
QUARTERS_PER_MINUTE = 120
TICKS_PER_QUARTER = 500
MILLISECONDS_PER_STEP = 10


class Notes(NamedTuple):
    """Notes on the grid, the notes of one key in the order of its strikes.

    Args:
        start: Step in which the key goes down, or BEFORE, `[N]`.
        end: Step in which the sound ends, or FOREVER, `[N]`.
        pitch: 0..127, `[N]`.
        velocity: Bin 0..31, or UNKNOWN, `[N]`.
    """

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray


class Events(NamedTuple):
    """Events in sequence.

    Args:
        kind: NOTE_OFF, NOTE_ON, TIME_SHIFT or VELOCITY, `[L]`.
        value: Accordingly a pitch, a pitch, 1..100 steps or a velocity bin, `[L]`.
    """

    kind: np.ndarray
    value: np.ndarray


def round_to_steps(steps: np.ndarray) -> np.ndarray:
    """Round to whole steps, halves up.

    480 ticks to the quarter put many times exactly between two steps. What is a millionth of a step short of a half
    counts as one, so that the last bit of a sum does not decide.
    """
    return np.floor(steps + (0.5 + 1e-6)).astype(np.int64)


def read_notes(score: Score) -> Notes:
    """Read the notes as a piano plays them: melodic tracks merged, no drums, notes extended by the pedal.

    Time is seconds by the score's tempo map, counted from the first onset. If a key comes up while the pedal is down,
    the note lasts until the pedal lifts, at the latest at the end of the score. Tracks of one program share one pedal,
    because a score has no channels. `midi_reader.py` reads the pedals of files by channel.

    Args:
        score: A score in ticks. It is left as it is.

    Returns:
        The notes as played: a note may end in the step in which it began, or after the next strike of its key.

    Raises:
        ValueError: The score has no melodic note, or its numbers make no sense.
    """
    melodic = [track for track in score.tracks if not track.is_drum]
    if not any(track.notes for track in melodic):
        what = "only drums" if any(track.notes for track in score.tracks) else "no notes"
        raise ValueError(f"{what} in it; a piano needs at least one melodic note")
    if score.ticks_per_quarter <= 0:
        raise ValueError(f"{score.ticks_per_quarter} ticks per quarter; at least 1 is needed")

    parts = []
    for program in {track.program for track in melodic}:
        parts.append(_held_notes([track for track in melodic if track.program == program], score.end()))
    start, end, pitch, velocity = np.concatenate(parts, axis=1)
    # In the order of the strikes. Of two at the same time the longer comes last and is kept.
    order = np.lexsort((end, start))
    start, end, pitch, velocity = (
        _seconds(score, start[order]),
        _seconds(score, end[order]),
        pitch[order],
        velocity[order],
    )
    length = end.max() - start[0]
    if length * STEPS_PER_SECOND > MAX_STEPS:
        raise ValueError(f"{length / 3600:.0f} hours long; more than 24 mean that the file is broken")
    if pitch.min() < 0:
        raise ValueError(f"a note of pitch {pitch.min()}; pitches are 0 to {NUM_PITCHES - 1}")
    return Notes(
        round_to_steps((start - start[0]) * STEPS_PER_SECOND),
        round_to_steps((end - start[0]) * STEPS_PER_SECOND),
        pitch,
        np.maximum(velocity - 1, 0) // VELOCITIES_PER_BIN,
    )


def _held_notes(tracks: list[Track], score_end: int) -> np.ndarray:
    """Return the notes of one instrument, each extended until both key and pedal are released.

    Args:
        tracks: The tracks of the instrument.
        score_end: Tick at which a pedal that is still down lifts.

    Returns:
        Rows of start tick, end tick, pitch and velocity, `[4, N]`.
    """
    notes = [track.notes.numpy() for track in tracks]
    start, duration, pitch, velocity = (
        np.concatenate([part[name] for part in notes]).astype(np.int64)
        for name in ("time", "duration", "pitch", "velocity")
    )
    end = start + duration
    controls = [track.controls.numpy() for track in tracks]
    time, number, value = (np.concatenate([part[name] for part in controls]) for name in ("time", "number", "value"))
    pedal = np.flatnonzero(number == SUSTAIN_PEDAL)
    pedal = pedal[np.argsort(time[pedal], kind="stable")]
    # The ticks at which the pedal goes down, up, down, up, ...: after an odd number of them it is down.
    moves = time[pedal][np.diff(value[pedal] >= PEDAL_DOWN, prepend=False)]
    moves_before = np.searchsorted(moves, end, side="right")
    next_move = np.append(moves, score_end)[moves_before]
    return np.stack([start, np.where(moves_before % 2 == 1, next_move, end), pitch, velocity])


def _seconds(score: Score, ticks: np.ndarray) -> np.ndarray:
    """Convert ticks to seconds by the tempo map; before its first tempo, 120 quarters per minute.

    Args:
        score: The score, for its tempos.
        ticks: Any shape.

    Returns:
        Seconds in double precision: an hour does not drift.
    """
    tempos = score.tempos.numpy()
    order = np.argsort(tempos["time"], kind="stable")
    since = np.append(0, tempos["time"][order]).astype(np.int64)
    seconds_per_tick = np.append(500_000, tempos["mspq"][order]) / (1e6 * score.ticks_per_quarter)
    seconds = np.append(0, np.cumsum(np.diff(since) * seconds_per_tick[:-1]))
    tempo = np.searchsorted(since[1:], ticks, side="right")
    return seconds[tempo] + (ticks - since[tempo]) * seconds_per_tick[tempo]


def notes_to_events(notes: Notes, length: int = 0) -> Events:
    """Write notes as events in canonical order.

    Args:
        notes: Notes from BEFORE only come up, notes until FOREVER only go down, UNKNOWN velocities are not written.
        length: Step until which time runs on after the last note.

    Returns:
        The events.
    """
    step, kind, pitch, velocity = _table(notes)
    # A row of the table becomes full shifts, the rest of a shift, a velocity and the note, most of them absent. One
    # row more, without a note, lets time run on.
    last_step = step[-1] if len(step) else 0
    full, rest = np.divmod(np.diff(step, prepend=0, append=max(length, last_step)), MAX_SHIFT_STEPS)
    is_note = np.ones(len(full), dtype=np.int64)
    is_note[-1] = 0
    is_new_velocity = np.zeros(len(full), dtype=np.int64)
    struck = np.flatnonzero(kind == NOTE_ON)
    is_new_velocity[struck] = np.diff(velocity[struck], prepend=UNKNOWN) != 0
    stop = np.cumsum(full + (rest > 0) + is_new_velocity + is_note)

    kinds = np.full(stop[-1], TIME_SHIFT)
    values = np.full(stop[-1], MAX_SHIFT_STEPS)
    at = stop[:-1] - 1
    kinds[at], values[at] = kind, pitch
    row = np.flatnonzero(is_new_velocity)
    at = stop[row] - 2
    kinds[at], values[at] = VELOCITY, velocity[row]
    row = np.flatnonzero(rest)
    values[(stop - is_note - is_new_velocity)[row] - 1] = rest[row]
    return Events(kinds, values)


def _table(notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort what keys do into canonical order.

    Returns:
        Step, NOTE_OFF or NOTE_ON, pitch, and velocity bin or UNKNOWN, a row for each: at most `[2N]`.
    """
    order = np.lexsort((notes.start, notes.pitch))
    start, end, pitch, velocity = (field[order] for field in notes)
    end = np.maximum(end, start + 1)
    struck_again = np.flatnonzero(pitch[1:] == pitch[:-1])
    end[struck_again] = np.minimum(end[struck_again], start[struck_again + 1])
    kept = end > start
    start, end, pitch, velocity = start[kept], end[kept], pitch[kept], velocity[kept]

    # One integer makes the order: step, kind, pitch. Velocities still unknown go before the first known one, or their
    # notes would take it for theirs.
    up = end < FOREVER
    down = start > BEFORE
    key_of_up = (end[up] << 1 | NOTE_OFF) << 8 | pitch[up]
    key_of_down = (start[down] << 1 | NOTE_ON) << 8 | (velocity[down] != UNKNOWN) << 7 | pitch[down]
    key = np.append(key_of_up, key_of_down)
    order = np.argsort(key, kind="stable")
    key = key[order]
    velocity = np.append(np.full(len(key_of_up), UNKNOWN), velocity[down])[order]
    return key >> 9, key >> 8 & 1, key & 127, velocity


def events_to_notes(events: Events) -> tuple[Notes, int]:
    """Read notes from any events whatever.

    A note ends when its key comes up or is struck again, or else FOREVER. A key that comes up although it is not down
    is ignored, unless nothing happened to it earlier: then its note is one from BEFORE. Time stands still after a day.

    Args:
        events: Events in canonical order or not.

    Returns:
        The notes in the order in which they began, and the step in which the sequence ends.
    """
    kind, value = events
    step = np.minimum(np.cumsum(np.where(kind == TIME_SHIFT, value, 0)), MAX_STEPS)
    length = int(step[-1]) if len(step) else 0
    said = np.maximum.accumulate(np.where(kind == VELOCITY, np.arange(len(kind)), UNKNOWN))
    velocity = np.where((kind == NOTE_ON) & (said != UNKNOWN), value[said], UNKNOWN)

    # What happens to the keys, key by key. A byte per pitch makes this a radix sort.
    at = np.flatnonzero(kind <= NOTE_ON)
    at = at[np.argsort(value[at].astype(np.uint8), kind="stable")]
    step, pitch, is_down = step[at], value[at], kind[at] == NOTE_ON
    is_first = np.diff(pitch, prepend=-1) != 0
    is_last = np.diff(pitch, append=-1) != 0
    start = np.where(is_down, step, BEFORE)
    end = np.where(is_down, np.where(is_last, FOREVER, np.roll(step, -1)), step)

    is_note = is_down | is_first
    order = np.argsort(at[is_note])
    notes = Notes(*(field[is_note][order] for field in (start, end, pitch, velocity[at])))
    return notes, length


def augment_events(events: Events, semitones: int = 0, stretch: float = 1.0) -> Events:
    """Transpose events and stretch their time, by way of the notes, so that the order is canonical again.

    Any slice of a piece will do. Notes that it leaves open stay open, and so does a velocity at the very end, which is
    for a note beyond it.

    Args:
        events: The slice.
        semitones: Added to every pitch.
        stretch: Factor on every time since the beginning of the slice.

    Returns:
        The new slice.

    Raises:
        ValueError: A pitch would leave 0..127, or the stretch is not positive.
    """
    if not stretch > 0:
        raise ValueError(f"stretch is {stretch}; it must be positive, 1.05 makes the music 5 percent longer.")
    notes, length = events_to_notes(events)
    if len(notes.pitch):
        down, up = notes.pitch.min(), NUM_PITCHES - 1 - notes.pitch.max()
        if not -down <= semitones <= up:
            raise ValueError(f"semitones is {semitones}; this music stays on the keyboard from {-down} to {up}.")

    def stretched(steps: np.ndarray) -> np.ndarray:
        is_open = (steps == BEFORE) | (steps == FOREVER)
        return np.where(is_open, steps, np.minimum(round_to_steps(steps * stretch), MAX_STEPS))

    notes = Notes(stretched(notes.start), stretched(notes.end), notes.pitch + semitones, notes.velocity)
    kind, value = notes_to_events(notes, int(stretched(np.array(length))))
    waiting = slice(-1, None) if len(events.kind) and events.kind[-1] == VELOCITY else slice(0)
    return Events(np.append(kind, events.kind[waiting]), np.append(value, events.value[waiting]))


def write_score(notes: Notes, length: int) -> Score:
    """Write notes as a score, see `piano_score`.

    Args:
        notes: Notes from BEFORE are left out, notes until FOREVER end with the piece.
        length: Step in which the piece ends.

    Returns:
        The score.
    """
    struck = notes.start != BEFORE
    start, end, pitch, velocity = (field[struck] for field in notes)
    duration = np.maximum(np.where(end == FOREVER, length, end) - start, 1)
    velocity = np.where(velocity == UNKNOWN, DEFAULT_VELOCITY, VELOCITY_OF_BIN[velocity])
    return piano_score(start * MILLISECONDS_PER_STEP, duration * MILLISECONDS_PER_STEP, pitch, velocity)


def piano_score(start: np.ndarray, duration: np.ndarray, pitch: np.ndarray, velocity: np.ndarray) -> Score:
    """Write notes as a score of one piano track, at 120 quarters per minute and 1000 ticks per second.

    Args:
        start: Milliseconds, whole, `[N]`.
        duration: Milliseconds, whole, `[N]`.
        pitch: 0..127, `[N]`.
        velocity: 1..127, `[N]`.

    Returns:
        The score.
    """
    times = (start.astype(np.int32), duration.astype(np.int32))
    track = Track(program=0)
    track.notes = Note.from_numpy(*times, pitch.astype(np.int8), velocity.astype(np.int8), "tick")
    score = Score(TICKS_PER_QUARTER)
    score.tempos.append(Tempo(0, QUARTERS_PER_MINUTE))
    score.tracks.append(track)
    return score
