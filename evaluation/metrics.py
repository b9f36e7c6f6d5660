"""What music is like, in a dozen numbers: statistics of one score, and of a set of scores.

Notes are taken as they are written. A recording that leans on the sustain pedal compares with generated music, whose
notes last as long as they sound, once it has gone through the tokenizer: `tokenizer.to_score(tokenizer.encode(path))`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from symusic import Score


class Notes(NamedTuple):
    """The notes of a score in order of onset, one array element each.

    Args:
        start: Onsets in seconds, `[N]`.
        end: Releases in seconds, `[N]`.
        pitch: Keys, 0..127, `[N]`.
        velocity: Velocities, 1..127, `[N]`.
    """

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray


def read_notes(score: Score) -> Notes:
    """Merge the notes of all tracks but drums; notes of no length make no sound and are left out."""
    tracks = [track.notes.numpy() for track in score.to("second").tracks if not track.is_drum]
    time, duration, pitch, velocity = (
        np.concatenate([np.empty(0), *(track[name] for track in tracks)])
        for name in ("time", "duration", "pitch", "velocity")
    )
    order = np.lexsort((pitch, time))
    order = order[duration[order] > 0]
    return Notes(time[order], (time + duration)[order], pitch[order].astype(int), velocity[order].astype(int))


def describe(score: Score) -> dict[str, float]:
    """Count and average over the notes of one score.

    Args:
        score: The notes; drums are left out.

    Returns:
        The statistics by name; a score without notes has only the first two.

        - `notes`, `seconds`: how many, and how long from the first onset to the last release
        - `notes_per_second`
        - `polyphony`: mean number of notes sounding, over the time in which any does
        - `silence`: share of the time in which none does, 0..1
        - `pitch_low`, `pitch_high`, `pitch_range`, `pitch_mean`: in semitones; middle C is 60
        - `pitch_class_entropy`: in bits; log2(12) = 3.58 when all twelve are struck equally often
        - `velocity_mean`, `velocity_std`
        - `note_seconds`: mean length of a note
    """
    start, end, pitch, velocity = read_notes(score)
    if len(start) == 0:
        return {"notes": 0.0, "seconds": 0.0}
    seconds = end.max() - start[0]
    # Onsets are in order: silence is wherever an onset comes after all ends so far.
    silent_seconds = np.maximum(start[1:] - np.maximum.accumulate(end)[:-1], 0).sum()
    frequency = np.bincount(pitch % 12) / len(pitch)
    frequency = frequency[frequency > 0]
    statistics = {
        "notes": len(start),
        "seconds": seconds,
        "notes_per_second": len(start) / seconds,
        "polyphony": (end - start).sum() / (seconds - silent_seconds),
        "silence": silent_seconds / seconds,
        "pitch_low": pitch.min(),
        "pitch_high": pitch.max(),
        "pitch_range": np.ptp(pitch),
        "pitch_mean": pitch.mean(),
        "pitch_class_entropy": -(frequency * np.log2(frequency)).sum(),
        "velocity_mean": velocity.mean(),
        "velocity_std": velocity.std(),
        "note_seconds": (end - start).mean(),
    }
    return {name: float(value) for name, value in statistics.items()}


def describe_set(scores: Iterable[Score]) -> dict[str, tuple[float, float]]:
    """Average `describe` over a set: each score counts the same, however long.

    Args:
        scores: The scores, at least one.

    Returns:
        Mean and standard deviation (of the population) by name, each over the scores that have the statistic.

    Raises:
        ValueError: If the set is empty.
    """
    columns: dict[str, list[float]] = {}
    for score in scores:
        for name, value in describe(score).items():
            columns.setdefault(name, []).append(value)
    if not columns:
        raise ValueError("There are no scores to describe; give at least one.")
    return {name: (float(np.mean(values)), float(np.std(values))) for name, values in columns.items()}
