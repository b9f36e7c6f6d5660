"""The statistics of a score, against a count by hand and against a count millisecond by millisecond."""

import math

import numpy as np
import pytest
from symusic import ControlChange, Note, Score, Tempo, Track

from evaluation.metrics import describe, describe_set, read_notes


def score_of(*notes, ticks_per_quarter=500, quarters_per_minute=120, is_drum=False):
    """Writes notes (milliseconds, milliseconds, pitch, velocity), one tick each by default, into a score."""
    score = Score(ticks_per_quarter)
    score.tempos.append(Tempo(0, quarters_per_minute))
    track = Track("", 0, is_drum)
    for note in notes:
        track.notes.append(Note(*map(int, note)))
    score.tracks.append(track)
    return score


def random_notes(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    return list(
        zip(
            rng.integers(0, 20_000, count),
            rng.integers(1, 2_000, count),
            rng.integers(0, 128, count),
            rng.integers(1, 128, count),
            strict=True,
        )
    )


def count_by_brute_force(notes):
    """Every statistic in the plainest way: one counter for each millisecond and each pitch class."""
    first = min(start for start, *_ in notes)
    last = max(start + length for start, length, *_ in notes)
    sounding = [0] * (last - first)
    for start, length, *_ in notes:
        for millisecond in range(start - first, start - first + length):
            sounding[millisecond] += 1
    filled = [count for count in sounding if count]
    pitches = [pitch for _, _, pitch, _ in notes]
    velocities = [velocity for *_, velocity in notes]
    entropy = 0.0
    for pitch_class in range(12):
        share = sum(pitch % 12 == pitch_class for pitch in pitches) / len(pitches)
        entropy -= share * math.log2(share) if share else 0
    mean_velocity = sum(velocities) / len(velocities)
    return {
        "notes": len(notes),
        "seconds": len(sounding) / 1000,
        "notes_per_second": 1000 * len(notes) / len(sounding),
        "polyphony": sum(filled) / len(filled),
        "silence": 1 - len(filled) / len(sounding),
        "pitch_low": min(pitches),
        "pitch_high": max(pitches),
        "pitch_range": max(pitches) - min(pitches),
        "pitch_mean": sum(pitches) / len(pitches),
        "pitch_class_entropy": entropy,
        "velocity_mean": mean_velocity,
        "velocity_std": math.sqrt(sum((velocity - mean_velocity) ** 2 for velocity in velocities) / len(velocities)),
        "note_seconds": sum(length for _, length, *_ in notes) / len(notes) / 1000,
    }


@pytest.mark.parametrize("seed", range(20))
def test_statistics_equal_a_count_of_every_millisecond(seed):
    notes = random_notes(seed)
    assert describe(score_of(*notes)) == pytest.approx(count_by_brute_force(notes), rel=1e-4, abs=1e-5)


def test_statistics_of_a_chord_a_pause_and_a_note_are_those_counted_by_hand():
    found = describe(score_of((1000, 500, 60, 40), (1000, 1000, 64, 60), (3000, 1000, 72, 80)))
    assert found == pytest.approx(
        {
            "notes": 3,
            "seconds": 3.0,
            "notes_per_second": 1.0,
            "polyphony": 1.25,
            "silence": 1 / 3,
            "pitch_low": 60,
            "pitch_high": 72,
            "pitch_range": 12,
            "pitch_mean": 196 / 3,
            "pitch_class_entropy": math.log2(3) - 2 / 3,
            "velocity_mean": 60,
            "velocity_std": math.sqrt(800 / 3),
            "note_seconds": 2.5 / 3,
        }
    )


def test_twelve_pitch_classes_struck_alike_have_the_highest_entropy_and_octaves_of_one_have_none():
    chromatic = describe(score_of(*((100 * i, 100, 48 + i, 64) for i in range(24))))
    octaves = describe(score_of(*((100 * i, 100, 12 * i, 64) for i in range(10))))
    assert chromatic["pitch_class_entropy"] == pytest.approx(math.log2(12))
    assert octaves["pitch_class_entropy"] == 0


def test_silence_is_not_counted_while_an_earlier_note_still_sounds():
    found = describe(score_of((0, 4000, 40, 64), (500, 100, 60, 64), (3000, 100, 60, 64)))
    assert found["silence"] == 0
    assert found["polyphony"] == pytest.approx(4.2 / 4)


def test_silence_before_the_first_note_does_not_count():
    early = describe(score_of((0, 500, 60, 64), (1000, 500, 62, 64)))
    late = describe(score_of((7000, 500, 60, 64), (8000, 500, 62, 64)))
    assert late == pytest.approx(early, rel=1e-5)


def test_time_is_seconds_whatever_the_tempo():
    score = score_of((0, 480, 60, 64), (480, 480, 62, 64), ticks_per_quarter=480, quarters_per_minute=60)
    score.tempos.append(Tempo(480, 30))
    found = describe(score)
    assert found["seconds"] == pytest.approx(3.0)
    assert found["note_seconds"] == pytest.approx(1.5)


def test_tracks_are_merged_and_drums_left_out():
    both = score_of((0, 500, 60, 64))
    both.tracks.extend(score_of((500, 500, 64, 80)).tracks)
    alone = describe(both)
    both.tracks.extend(score_of((0, 9000, 36, 127), is_drum=True).tracks)
    assert alone["notes"] == 2
    assert describe(both) == alone


def test_notes_come_in_order_of_onset():
    notes = read_notes(score_of((500, 100, 64, 64), (0, 100, 67, 64), (0, 100, 60, 64)))
    assert notes.pitch.tolist() == [60, 67, 64]


@pytest.mark.parametrize("tracks", [[], score_of().tracks, score_of((0, 500, 36, 64), is_drum=True).tracks])
def test_a_score_without_notes_has_a_length_of_zero_and_no_averages(tracks):
    score = Score(500)
    score.tracks = tracks
    assert describe(score) == {"notes": 0, "seconds": 0}


def test_pedals_change_nothing_because_notes_are_taken_as_written():
    score = score_of((0, 500, 60, 64), (1000, 500, 62, 64))
    dry = describe(score)
    score.tracks[0].controls.append(ControlChange(0, 64, 127))
    assert describe(score) == dry


def test_a_set_has_mean_and_deviation_over_its_scores_and_silent_ones_only_count_as_such():
    low, high = score_of((0, 1000, 60, 40)), score_of((0, 1000, 64, 80), (1000, 1000, 64, 80))
    found = describe_set([low, high, score_of()])
    assert found["pitch_mean"] == (62, 2)
    assert found["velocity_mean"] == (60, 20)
    assert found["notes"] == pytest.approx((1, math.sqrt(2 / 3)))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        describe_set([])
