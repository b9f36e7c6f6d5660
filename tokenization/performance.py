"""Piano music on a grid of 10 ms steps: notes to events and back.

The paper writes a performance as four kinds of events: a key goes down, a key comes up, time passes, the touch changes.
This file knows seconds, pedals and notes, in numpy over symusic's arrays. It knows no ids.

    read_notes       score -> notes on the grid, the sustain pedal folded into their ends
    notes_to_events  notes -> events in their one canonical order
    events_to_notes  any events whatever -> notes
    write_score      notes -> score

Canonical order: within a step first the keys that come up, then the keys that go down, each by ascending pitch; a
velocity stands before a key that goes down only where it differs from the last one; time passes in as few events as
possible. A note lasts at least one step. A key struck while it sounds ends the old note first; struck twice within one
step (2 of the 7.1 million notes of MAESTRO), it goes down twice and comes up once.

Source: Oore et al., "This Time with Feeling" (arXiv 1808.03715), section 3; Huang et al., "Music Transformer"
(arXiv 1809.04281), section 4.2.
"""

from typing import NamedTuple

import numpy as np
from symusic import Note, Score, Tempo, Track

STEPS_PER_SECOND = 100
MAX_SHIFT_STEPS = 100
NUM_PITCHES = 128
NUM_VELOCITIES = 32
VELOCITIES_PER_BIN = 4

# NOTE_OFF before NOTE_ON: their numbers are their order within a step.
NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY = range(4)

SUSTAIN_PEDAL = 64
PEDAL_DOWN = 64

# A day of music. Corrupt files claim years, and every second of them would be an event.
MAX_STEPS = 24 * 3600 * STEPS_PER_SECOND

# What a slice of a piece leaves open: when a note began, when it ends, how hard it was struck.
BEFORE, FOREVER, UNKNOWN = -1, 2 * MAX_STEPS, -1

# Written scores count milliseconds: 120 quarters per minute of 500 ticks each.
TICKS_PER_QUARTER = 500
TICKS_PER_STEP = 10
QUARTERS_PER_MINUTE = 120
DEFAULT_VELOCITY = 64


class Notes(NamedTuple):
    """Notes on the grid, one element of each array per note.

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
    """Events in sequence, one element of each array per event.

    Args:
        kind: NOTE_OFF, NOTE_ON, TIME_SHIFT or VELOCITY, `[L]`.
        value: A pitch, a pitch, 1..100 steps or a velocity bin, `[L]`.
    """

    kind: np.ndarray
    value: np.ndarray


def round_to_steps(steps: np.ndarray) -> np.ndarray:
    """Round to whole steps; halves go up, and a millionth of a step below a half counts as one.

    480 ticks to the quarter put many times exactly between two steps: the last bit of a sum must not decide them.
    """
    return np.floor(steps + (0.5 + 1e-6)).astype(np.int64)


def read_notes(score: Score) -> Notes:
    """Read what a piano sounds: melodic tracks merged, drums left out, notes held by the sustain pedal.

    Time is seconds by the score's own tempo map, counted from the first onset. While the pedal (controller 64, values
    from 64) is down, a released key sounds on until it lifts; a pedal that never lifts does so where the score ends.
    Tracks of one program share one pedal, as the two hands of a pianist do.

    Args:
        score: A score in ticks. It is left as it is.

    Returns:
        The notes in the order in which they were struck, as they were played: an end may lie in the step of the start,
        or beyond the next strike of the key.

    Raises:
        ValueError: The score has no melodic note, or its times make no sense.
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
    notes = np.concatenate(parts, axis=1)
    # In the order of the strikes; of two at one time the longer note comes last, and so stays.
    start, end, pitch, velocity = notes[:, np.lexsort((notes[1], notes[0]))]
    start_seconds, end_seconds = _seconds(score, start), _seconds(score, end)
    first, last = start_seconds.min(), end_seconds.max()
    if (last - first) * STEPS_PER_SECOND > MAX_STEPS:
        raise ValueError(f"{(last - first) / 3600:.0f} hours long; more than 24 mean that the file is broken")
    if pitch.min() < 0:
        raise ValueError(f"a note of pitch {pitch.min()}; pitches are 0 to {NUM_PITCHES - 1}")
    return Notes(
        round_to_steps((start_seconds - first) * STEPS_PER_SECOND),
        round_to_steps((end_seconds - first) * STEPS_PER_SECOND),
        pitch,
        np.maximum(velocity - 1, 0) // VELOCITIES_PER_BIN,
    )


def _held_notes(tracks: list[Track], score_end: int) -> np.ndarray:
    """Gather the notes of one instrument's tracks, each end moved to where the sustain pedal lets go of it.

    Returns:
        Rows of start tick, end tick, pitch and velocity, `[4, N]`.
    """
    notes = [track.notes.numpy() for track in tracks]
    start, duration, pitch, velocity = (
        np.concatenate([n[name] for n in notes]).astype(np.int64) for name in ("time", "duration", "pitch", "velocity")
    )
    end = start + duration

    controls = [track.controls.numpy() for track in tracks]
    time, number, value = (np.concatenate([c[name] for c in controls]) for name in ("time", "number", "value"))
    pedal = np.flatnonzero(number == SUSTAIN_PEDAL)
    pedal = pedal[np.argsort(time[pedal], kind="stable")]
    moves = time[pedal][np.diff(value[pedal] >= PEDAL_DOWN, prepend=False)]  # down, up, down, up, ...
    moves_before = np.searchsorted(moves, end, side="right")
    lifts = np.append(moves, score_end)[moves_before]
    return np.stack([start, np.where(moves_before % 2, lifts, end), pitch, velocity])


def _seconds(score: Score, ticks: np.ndarray) -> np.ndarray:
    """Convert ticks to seconds by the score's tempo map; 120 quarters per minute before the first tempo."""
    tempos = score.tempos.numpy()
    order = np.argsort(tempos["time"], kind="stable")
    since = np.append(0, tempos["time"][order]).astype(np.int64)
    microseconds_per_quarter = np.append(500_000, tempos["mspq"][order])
    seconds_per_tick = microseconds_per_quarter / (1e6 * score.ticks_per_quarter)
    seconds = np.append(0, np.cumsum(np.diff(since) * seconds_per_tick[:-1]))
    tempo = np.searchsorted(since[1:], ticks, side="right")
    return seconds[tempo] + (ticks - since[tempo]) * seconds_per_tick[tempo]


def notes_to_events(notes: Notes, length: int = 0) -> Events:
    """Write notes as events in canonical order. Every way to ids goes through here.

    Args:
        notes: Those of one key in the order in which they began. Notes from BEFORE only come up, notes until FOREVER
            only go down, an UNKNOWN velocity is not said.
        length: Steps until which time runs on after the last note.

    Returns:
        The events.
    """
    order = np.lexsort((notes.start, notes.pitch))
    start, end, pitch, velocity = (field[order] for field in notes)
    end = np.maximum(end, start + 1)
    struck_again = np.flatnonzero(pitch[1:] == pitch[:-1])
    end[struck_again] = np.minimum(end[struck_again], start[struck_again + 1])

    # One integer per event makes the order: step, kind, pitch. The sort is stable, so that strikes within one step stay
    # in turn. Velocities still unknown come before the first known one, or they would take it for theirs.
    up = (end > start) & (end < FOREVER)
    down = start > BEFORE
    ups = (end[up] << 1 | NOTE_OFF) << 8 | pitch[up]
    downs = (start[down] << 1 | NOTE_ON) << 8 | (velocity[down] != UNKNOWN) << 7 | pitch[down]
    table = np.concatenate([ups, downs])
    order = np.argsort(table, kind="stable")
    step, kind, pitch = table[order] >> 9, table[order] >> 8 & 1, table[order] & 127
    velocity = np.append(np.full(len(ups), UNKNOWN), velocity[down])[order]

    # Every row becomes full shifts, the rest of a shift, a velocity and the note, most of them absent. One row more,
    # without a note, lets the time run on.
    notes_end = step[-1] if len(step) else 0
    full, rest = np.divmod(np.diff(step, prepend=0, append=max(length, notes_end)), MAX_SHIFT_STEPS)
    is_note = np.ones(len(full), dtype=np.int64)
    is_note[-1] = 0
    is_new_velocity = np.zeros(len(full), dtype=np.int64)
    struck = np.flatnonzero(kind)
    is_new_velocity[struck] = np.diff(velocity[struck], prepend=UNKNOWN) != 0
    stop = np.cumsum(full + (rest > 0) + is_new_velocity + is_note)

    kinds = np.full(stop[-1], TIME_SHIFT)
    values = np.full(stop[-1], MAX_SHIFT_STEPS)
    at = stop[:-1] - 1
    kinds[at], values[at] = kind, pitch
    row = np.flatnonzero(is_new_velocity)
    kinds[stop[row] - 2], values[stop[row] - 2] = VELOCITY, velocity[row]
    row = np.flatnonzero(rest)
    values[(stop - is_note - is_new_velocity)[row] - 1] = rest[row]
    return Events(kinds, values)


def events_to_notes(events: Events) -> tuple[Notes, int]:
    """Read notes from any events whatever.

    A key that comes up without having gone down is a note from BEFORE if nothing else is known of the key, and ignored
    otherwise; a key that never comes up is a note until FOREVER. Time stops after a day.

    Args:
        events: Events in sequence, canonical or not.

    Returns:
        The notes in the order in which they began, and the step in which the sequence ends.
    """
    kind, value = events
    steps = np.minimum(np.cumsum(np.where(kind == TIME_SHIFT, value, 0)), MAX_STEPS)
    last_velocity = np.maximum.accumulate(np.where(kind == VELOCITY, np.arange(len(kind)), UNKNOWN))
    velocities = np.where(last_velocity == UNKNOWN, UNKNOWN, value[last_velocity])

    # Key by key, a note ends at the next event of its key.
    at = np.flatnonzero(kind <= NOTE_ON)
    at = at[np.argsort(value[at].astype(np.uint8), kind="stable")]
    pitch, step, is_down = value[at], steps[at], kind[at] == NOTE_ON
    is_first = np.diff(pitch, prepend=-1) != 0
    is_last = np.diff(pitch, append=-1) != 0
    start = np.where(is_down, step, BEFORE)
    end = np.where(is_down, np.where(is_last, FOREVER, np.roll(step, -1)), step)
    note = np.flatnonzero(is_down | is_first)
    note = note[np.argsort(at[note])]
    velocity = np.where(is_down, velocities[at], UNKNOWN)
    return Notes(start[note], end[note], pitch[note], velocity[note]), int(steps[-1]) if len(steps) else 0


def augment_events(events: Events, semitones: int = 0, stretch: float = 1.0) -> Events:
    """Transpose events and stretch their time, from notes to notes, so that the order is canonical again.

    Any slice of a piece will do: keys that come up or go down alone stay, and so does a velocity at the very end, whose
    note lies beyond the slice.

    Args:
        events: The slice.
        semitones: Added to every pitch.
        stretch: Factor on every time since the beginning of the slice.

    Returns:
        The new slice.

    Raises:
        ValueError: A pitch would leave 0..127, or time would not run forwards.
    """
    if not stretch > 0:
        raise ValueError(f"stretch is {stretch}; it must be positive, 1.05 makes the music 5 percent longer.")
    notes, length = events_to_notes(events)
    lowest, highest = notes.pitch.min(initial=NUM_PITCHES), notes.pitch.max(initial=-1)
    if len(notes.pitch) and not 0 <= lowest + semitones <= highest + semitones < NUM_PITCHES:
        raise ValueError(
            f"semitones is {semitones}, but pitches {lowest} to {highest} stay within 0 to {NUM_PITCHES - 1} only with "
            f"{-lowest} to {NUM_PITCHES - 1 - highest}."
        )

    def stretched(steps: np.ndarray) -> np.ndarray:
        inside = (steps > BEFORE) & (steps < FOREVER)
        return np.where(inside, np.minimum(round_to_steps(steps * stretch), MAX_STEPS), steps)

    notes = Notes(stretched(notes.start), stretched(notes.end), notes.pitch + semitones, notes.velocity)
    kind, value = notes_to_events(notes, int(stretched(np.array(length))))
    waits = 1 if len(events.kind) and events.kind[-1] == VELOCITY else 0
    return Events(
        np.append(kind, events.kind[len(events.kind) - waits :]),
        np.append(value, events.value[len(events.value) - waits :]),
    )


def write_score(notes: Notes, length: int) -> Score:
    """Write notes as a score at 120 quarters per minute and 1000 ticks per second.

    Args:
        notes: Notes from BEFORE are left out, those until FOREVER end with the piece.
        length: Steps in which the piece ends.

    Returns:
        A score of one piano track.
    """
    struck = notes.start > BEFORE
    start, end, pitch, velocity = (field[struck] for field in notes)
    duration = np.maximum(np.where(end == FOREVER, length, end) - start, 1)
    velocity = np.where(velocity == UNKNOWN, DEFAULT_VELOCITY, velocity * VELOCITIES_PER_BIN + VELOCITIES_PER_BIN // 2)
    track = Track(program=0)
    track.notes = Note.from_numpy(
        (start * TICKS_PER_STEP).astype(np.int32),
        (duration * TICKS_PER_STEP).astype(np.int32),
        pitch.astype(np.int8),
        velocity.astype(np.int8),
        "tick",
    )
    score = Score(TICKS_PER_QUARTER)
    score.tempos.append(Tempo(0, QUARTERS_PER_MINUTE))
    score.tracks.append(track)
    return score
