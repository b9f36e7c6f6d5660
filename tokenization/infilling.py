"""Infilling: a piece with a gap as one sequence, which ordinary decoding continues with the music of the gap.

    Infill_Suffix  gap  suffix  Infill_Prefix  prefix  middle  Infill_End

The music after the gap comes first, then the music before it, so that the middle continues its prefix at the same
relative distances as an ordinary continuation does. The gap is written as TimeShifts: the time from the last event of
the prefix to the first of the suffix, which is also the sum of the TimeShifts of the middle. The first NoteOn of the
suffix always has its Velocity before it.

A note belongs to the gap if its NoteOn and its NoteOff both lie in it. Notes that sound across an edge are kept: their
events inside the gap are part of the middle, and `Gap` tells the grammar which they are.

Shape letters: L ids, N notes.

Source: Bavarian et al. 2022 (arXiv 2207.14255), the order "suffix, prefix, middle" of section 3.
"""

from typing import NamedTuple

import numpy as np

from .performance import MAX_SHIFT_STEPS, NOTE_ON, STEPS_PER_SECOND, TIME_SHIFT, VELOCITY

INFILL_TOKENS = ("Infill_Suffix", "Infill_Prefix", "Infill_End")


class InfillIds(NamedTuple):
    """The ids of `INFILL_TOKENS`."""

    suffix: int
    prefix: int
    end: int


class Parts(NamedTuple):
    """A piece or a slice of one, divided at a gap.

    Args:
        prefix: Ids up to the last event before the gap, `[L]`.
        middle: Ids of the gap, up to the TimeShift that leads to the suffix.
        suffix: Ids from the first event after the gap on.
        steps: Steps from the last event of the prefix, or else from the beginning, to the first of the suffix.
    """

    prefix: np.ndarray
    middle: np.ndarray
    suffix: np.ndarray
    steps: int


def divide(ids: np.ndarray, encoding, start: int, stop: int) -> Parts:
    """Divide a piece at a gap.

    Args:
        ids: The ids, `[L]`.
        encoding: A `PerformanceWithControls`.
        start: The first step of the gap.
        stop: The first step after the gap.

    Returns:
        The parts. Without an event after the gap the suffix is empty and the middle reaches to the end of the ids.
    """
    shifts = np.rint(encoding.token_seconds[ids] * STEPS_PER_SECOND).astype(np.int64)  # [L]
    steps = shifts.cumsum()
    is_before = (shifts == 0) & (steps < start)
    # Nothing comes before a piece's BOS, and what follows its EOS is no music.
    is_before[:1] |= ids[:1] == encoding.vocab["BOS_None"]
    is_after = (shifts == 0) & ~is_before & ((steps >= stop) | (ids == encoding.vocab["EOS_None"]))
    before, after = np.flatnonzero(is_before), np.flatnonzero(is_after)
    first = before[-1] + 1 if len(before) else 0
    last = after[0] if len(after) else len(ids)
    end = steps[last] if len(after) else max(stop, steps[-1] if len(ids) else 0)
    return Parts(ids[:first], ids[first:last], ids[last:], int(end - (steps[first - 1] if first else 0)))


def write_gap(parts: Parts, ids: np.ndarray, encoding) -> np.ndarray:
    """Write what comes before the prefix: the gap and the suffix.

    Args:
        parts: The parts.
        ids: The ids that they were divided from, for the velocity that holds at the beginning of the suffix.
        encoding: A `PerformanceWithControls`.

    Returns:
        Infill_Suffix, TimeShifts and the suffix, `[L]`.
    """
    shift = encoding.vocab["TimeShift_1"] - 1
    full, rest = divmod(parts.steps, MAX_SHIFT_STEPS)
    gap = [shift + MAX_SHIFT_STEPS] * full + [shift + rest] * (rest > 0)
    suffix = parts.suffix
    kinds = encoding.kinds_of(ids)
    said = np.flatnonzero(kinds[: len(ids) - len(suffix)] == VELOCITY)
    kinds = kinds[len(ids) - len(suffix) :]
    struck = np.flatnonzero(kinds == NOTE_ON)[:1]
    if len(struck) and len(said) and VELOCITY not in kinds[: struck[0]]:
        suffix = np.insert(suffix, struck, ids[said[-1]])
    return np.concatenate([[encoding.infill_ids.suffix], gap, suffix]).astype(ids.dtype)


def infill_sequence(ids: np.ndarray, encoding, start: int, stop: int, max_length: int) -> np.ndarray | None:
    """Write a slice of a piece as an example of infilling.

    Args:
        ids: The slice, with or without controls, `[L]`.
        encoding: A `PerformanceWithControls`.
        start: The first step of the gap.
        stop: The first step after the gap.
        max_length: The most ids to return. The far ends of suffix and prefix are left out for it; the suffix has at
            least half of what the middle leaves.

    Returns:
        The whole sequence; None if nothing comes after the gap, or the middle leaves no room for what is around it.
    """
    parts = divide(ids, encoding, start, stop)
    if len(parts.suffix) == 0 or len(parts.middle) > max_length // 2:
        return None
    room = max_length - len(parts.middle) - 2  # Infill_Prefix and Infill_End
    before = write_gap(parts, ids, encoding)[: max(room - len(parts.prefix), room // 2)]
    prefix = parts.prefix[max(len(before) + len(parts.prefix) - room, 0) :]
    _, border, end = encoding.infill_ids
    return np.concatenate([before, [border], prefix, parts.middle, [end]]).astype(ids.dtype)


def join_infilled(ids: np.ndarray, encoding) -> np.ndarray:
    """Return the ids of an infilled piece in the order in which they sound: prefix, middle, suffix.

    Args:
        ids: Any ids, `[L]`; those without Infill_Prefix are returned as they are.
        encoding: A `PerformanceWithControls`.
    """
    border = np.flatnonzero(ids == encoding.infill_ids.prefix)
    if len(border) == 0:
        return ids
    before, after = ids[: border[0]], ids[border[0] + 1 :]
    # The suffix begins with an event; the TimeShifts before it are the gap.
    is_suffix = (encoding.kinds_of(before) != TIME_SHIFT) & (before != encoding.infill_ids.suffix)
    return np.concatenate([after, before[np.logical_or.accumulate(is_suffix)]])
