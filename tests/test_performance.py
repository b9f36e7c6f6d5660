"""Notes to events and back, compared with plain Python loops and exact fractions."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from symusic import ControlChange, Note, Score, Tempo, Track

from tokenization.performance import (
    BEFORE,
    FOREVER,
    NOTE_OFF,
    NOTE_ON,
    TIME_SHIFT,
    VELOCITY,
    Events,
    augment_events,
    events_to_notes,
    notes_to_events,
    read_notes,
    write_score,
)

STYLES = {
    "dry": {"pedal": False},
    "pedal": {},
    "pedal-tempos": {"tempo_changes": True},
    "pedal-tempos-two-hands": {"tempo_changes": True, "tracks": 2},
    "four-keys-two-hands": {"tracks": 2, "pitches": range(60, 64)},
}
BROKEN = {"no notes": "no notes in it", "only drums": "only drums in it", "no time": "0 ticks per quarter"}


def encode(score):
    return notes_to_events(read_notes(score))


def decode(events):
    return write_score(*events_to_notes(events))


def pairs(events):
    """Return events as a list of (kind, value)."""
    return list(zip(events.kind.tolist(), events.value.tolist(), strict=True))


def as_events(*pairs_):
    """Return a list of (kind, value) as events."""
    return Events(*np.array(pairs_, dtype=np.int64).reshape(-1, 2).T)


def exact_seconds(score, tick):
    """Return a tick's time as a fraction of a second, walking through the tempo map."""
    tempos = [(0, 500_000), *((tempo.time, tempo.mspq) for tempo in score.tempos)]
    seconds = Fraction(0)
    for (time, mspq), until in zip(tempos, [time for time, _ in tempos[1:]] + [tick], strict=True):
        seconds += Fraction(max(min(tick, until) - time, 0) * mspq, 1_000_000 * score.ticks_per_quarter)
    return seconds


def sounding_notes(score):
    """Return [pitch, start, end, velocity] of every note in seconds from the first onset, pedal and strikes heeded."""
    notes = []
    for track in score.tracks:
        for note in track.notes:
            # The pedal is shared by tracks of one program: walk through its messages, find it down at the note's end,
            # and go on until it lifts.
            messages = [(c.time, c.value) for t in score.tracks for c in t.controls if c.number == 64]
            is_down, end = False, note.end
            for time, value in sorted(messages, key=lambda message: message[0]):
                if time <= note.end:
                    is_down = value >= 64
                elif is_down and value < 64:
                    end = time
                    break
            else:
                end = score.end() if is_down else note.end
            notes.append([note.pitch, exact_seconds(score, note.start), exact_seconds(score, end), note.velocity])
    first = min(start for _, start, _, _ in notes)
    notes = sorted(([pitch, start - first, end - first, v] for pitch, start, end, v in notes), key=lambda n: n[:3])
    for note, following in pairwise(notes):
        if note[0] == following[0]:
            note[2] = min(note[2], following[1])
    return notes


def plain_pairs(score):
    """Encode a score by plain loops, following the docstring of the module."""

    def step(seconds):
        return int(seconds * 100 + Fraction(1, 2))

    table = []
    notes = sounding_notes(score)
    for turn, (note, following) in enumerate(zip(notes, [*notes[1:], [None]], strict=True)):
        pitch, start, end, velocity = note
        last_step = max(step(end), step(start) + 1)
        if following[0] == pitch:
            last_step = min(last_step, step(following[1]))
        if last_step > step(start):
            table.append((step(start), NOTE_ON, pitch, turn, (velocity - 1) // 4))
            table.append((last_step, NOTE_OFF, pitch, turn, None))
    events, now, last_velocity = [], 0, None
    for at, kind, pitch, _, velocity in sorted(table):
        while now < at:
            events.append((TIME_SHIFT, min(at - now, 100)))
            now += events[-1][1]
        if kind == NOTE_ON and velocity != last_velocity:
            events.append((VELOCITY, velocity))
            last_velocity = velocity
        events.append((kind, pitch))
    return events


def piano(*notes, pedal=(), tempos=((0, 60),), program=0):
    """Write a score of one track in hundredths of a second: notes are (start, end, pitch), pedal (time, value)."""
    score = Score(100)
    for time, qpm in tempos:
        score.tempos.append(Tempo(time, qpm))
    track = Track(program=program)
    for start, end, pitch in notes:
        track.notes.append(Note(start, end - start, pitch, 64))
    for time, value in pedal:
        track.controls.append(ControlChange(time, 64, value))
    score.tracks.append(track)
    return score


def spans(score):
    """Return (start, end, pitch) of the notes that the score becomes, in steps."""
    notes, length = events_to_notes(encode(score))
    end = np.where(notes.end == FOREVER, length, notes.end)
    return sorted(zip(notes.start.tolist(), end.tolist(), notes.pitch.tolist(), strict=True))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(8))
def test_the_arrays_say_what_plain_loops_say(make_score, style, seed):
    score = make_score(seed, seconds=12.0, **STYLES[style])
    assert pairs(encode(score)) == plain_pairs(score)


@pytest.mark.parametrize("style", STYLES)
def test_events_survive_the_way_to_a_score_and_to_midi_bytes_and_back(make_score, style):
    for seed in range(20, 30):
        events = encode(make_score(seed, seconds=12.0, **STYLES[style]))
        assert pairs(notes_to_events(*events_to_notes(events))) == pairs(events)
        assert pairs(encode(decode(events))) == pairs(events)
        assert pairs(encode(Score.from_midi(decode(events).dumps_midi()))) == pairs(events)


def test_an_hour_of_music_is_true_to_half_a_step_and_half_a_bin():
    rng = random.Random(0)
    score, now = Score(480), 0
    score.tracks.append(Track(program=0))
    for turn in range(1200):
        if turn % 40 == 0:
            score.tempos.append(Tempo(now, rng.uniform(40, 200)))
        score.tracks[0].notes.append(Note(now, rng.randint(60, 6000), rng.randrange(20, 110), rng.randint(1, 127)))
        now += rng.randint(30, 5700)
    truth = sounding_notes(score)
    assert max(end for _, _, end, _ in truth) > 3600
    decoded = sorted(
        [n.pitch, Fraction(n.start, 1000), Fraction(n.end, 1000), n.velocity]
        for n in decode(encode(score)).tracks[0].notes
    )
    half_a_step = Fraction(5, 1000) + Fraction(1, 10**8)
    assert len(decoded) == len(truth) == 1200
    for (pitch, start, end, velocity), true in zip(decoded, truth, strict=True):
        assert pitch == true[0]
        assert abs(start - true[1]) <= half_a_step
        assert abs(end - true[2]) <= half_a_step
        assert abs(velocity - true[3]) <= 2


def test_the_pedal_holds_a_released_key_until_it_lifts():
    assert spans(piano((0, 10, 60), pedal=[(5, 127), (40, 0)])) == [(0, 40, 60)]


def test_the_pedal_is_down_from_64_upwards():
    assert spans(piano((0, 10, 60), pedal=[(5, 63), (40, 0)])) == [(0, 10, 60)]
    assert spans(piano((0, 10, 60), pedal=[(5, 64), (20, 100), (30, 63), (40, 0)])) == [(0, 30, 60)]


def test_a_pedal_that_goes_down_as_the_key_comes_up_holds_it():
    assert spans(piano((0, 10, 60), pedal=[(10, 127), (40, 0)])) == [(0, 40, 60)]


def test_a_pedal_that_lifts_as_the_key_comes_up_lets_it_go():
    assert spans(piano((0, 10, 60), pedal=[(5, 127), (10, 0)])) == [(0, 10, 60)]


def test_a_key_held_longer_than_the_pedal_sounds_until_it_comes_up():
    assert spans(piano((0, 50, 60), pedal=[(5, 127), (40, 0)])) == [(0, 50, 60)]


def test_a_key_struck_again_ends_its_note_under_the_pedal():
    assert spans(piano((0, 10, 60), (20, 30, 60), pedal=[(5, 127), (40, 0)])) == [(0, 20, 60), (20, 40, 60)]


def test_a_pedal_that_never_lifts_holds_to_the_end_of_the_score():
    score = piano((0, 10, 60), (50, 70, 64), pedal=[(5, 127)])
    assert spans(score) == [(0, 70, 60), (50, 70, 64)]
    score.tracks[0].controls.append(ControlChange(95, 64, 90))
    assert spans(score) == [(0, 95, 60), (50, 95, 64)]


def test_two_hands_share_a_pedal_and_other_instruments_do_not():
    score = piano((0, 10, 60), pedal=[(5, 127), (40, 0)])
    score.tracks.append(piano((0, 10, 40)).tracks[0])
    score.tracks.append(piano((0, 10, 80), program=40).tracks[0])
    assert spans(score) == [(0, 10, 80), (0, 40, 40), (0, 40, 60)]


def test_drums_are_left_out():
    score = piano((0, 10, 60))
    score.tracks.append(Track(is_drum=True))
    score.tracks[1].notes.append(Note(3, 10, 38, 100))
    assert spans(score) == [(0, 10, 60)]


def test_time_is_seconds_by_the_tempo_map():
    # Half speed from the middle of the first note on.
    assert spans(piano((0, 20, 60), (20, 40, 62), tempos=[(0, 60), (10, 30)])) == [(0, 30, 60), (30, 70, 62)]
    # No tempo at all means 120 quarters per minute.
    assert spans(piano((0, 20, 60), tempos=[])) == [(0, 10, 60)]


def test_silence_before_the_first_note_is_dropped():
    assert encode(piano((500, 510, 60))).value.tolist() == [15, 60, 10, 60]


def test_a_note_lasts_at_least_one_step():
    assert spans(piano((0, 0, 60), (50, 50, 64))) == [(0, 1, 60), (50, 51, 64)]


def test_of_strikes_of_a_key_within_a_step_the_last_is_heard():
    score = Score(1000)
    score.tempos.append(Tempo(0, 60))
    score.tracks.append(Track(program=0))
    for time, velocity in ((0, 100), (3, 20), (4, 40), (6, 60)):
        score.tracks[0].notes.append(Note(time, 50, 60, velocity))
    # The one at 6 ms is nearer to the next step, and so ends the others.
    assert pairs(encode(score)) == [
        (VELOCITY, 9), (NOTE_ON, 60), (TIME_SHIFT, 1), (NOTE_OFF, 60),
        (VELOCITY, 14), (NOTE_ON, 60), (TIME_SHIFT, 5), (NOTE_OFF, 60),
    ]  # fmt: skip


def test_of_two_hands_that_strike_a_key_together_the_longer_note_stays():
    for ends in ((10, 30), (30, 10)):
        score = piano((0, ends[0], 60))
        score.tracks.append(piano((0, ends[1], 60)).tracks[0])
        assert pairs(encode(score)) == [(VELOCITY, 15), (NOTE_ON, 60), (TIME_SHIFT, 30), (NOTE_OFF, 60)]


def test_strikes_of_a_key_that_a_faster_tempo_brings_together_become_one():
    part = as_events((VELOCITY, 9), (NOTE_ON, 60), (TIME_SHIFT, 1), (NOTE_OFF, 60), (VELOCITY, 7), (NOTE_ON, 60))
    assert pairs(augment_events(part, stretch=0.4)) == [(VELOCITY, 7), (NOTE_ON, 60)]


def test_a_score_written_out_of_order_sounds_the_same(make_score):
    score = make_score(seed=7, tempo_changes=True)
    backwards = Score(480)
    backwards.tracks.append(Track(program=0))
    backwards.tempos.extend(reversed(list(score.tempos)))
    backwards.tracks[0].notes.extend(reversed(list(score.tracks[0].notes)))
    backwards.tracks[0].controls.extend(reversed(list(score.tracks[0].controls)))
    assert pairs(encode(backwards)) == pairs(encode(score))


def test_time_passes_in_as_few_events_as_possible():
    events = pairs(encode(piano((0, 1, 60), (251, 351, 62))))
    shifts = [value for kind, value in events if kind == TIME_SHIFT]
    assert shifts == [1, 100, 100, 50, 100]


def test_a_velocity_is_written_only_when_it_changes():
    score = piano((0, 10, 60), (10, 20, 62), (20, 30, 64))
    score.tracks[0].notes[2].velocity = 65
    velocities = [value for kind, value in pairs(encode(score)) if kind == VELOCITY]
    assert velocities == [15, 16]


def test_reading_leaves_the_score_as_it_was(make_score):
    score = make_score(seed=3)
    before = score.copy()
    encode(score)
    assert score == before


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_score_without_music_says_what_is_wrong(broken_midis, flaw):
    with pytest.raises(ValueError, match=BROKEN[flaw]):
        read_notes(Score.from_midi(broken_midis[flaw]))


def test_times_and_pitches_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="2000 hours long"):
        read_notes(piano((0, 10, 60), (720_000_000, 720_000_010, 60)))
    score = piano((0, 10, 60))
    score.tracks[0].notes[0].pitch = -3
    with pytest.raises(ValueError, match="pitch -3"):
        read_notes(score)


@pytest.mark.parametrize("seed", range(20))
def test_any_events_whatever_become_a_score_of_sound_notes(seed):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, 300)
    limit = np.array([128, 128, 100, 32])[kind]
    events = Events(kind, rng.integers(0, limit) + (kind == TIME_SHIFT))
    score = decode(events)
    assert len(score.tracks[0].notes) == np.count_nonzero(kind == NOTE_ON)
    for note in score.tracks[0].notes:
        assert note.duration >= 10
        assert 0 <= note.pitch <= 127
        assert 1 <= note.velocity <= 127
    assert pairs(encode(decode(encode(score)))) == pairs(encode(score))


def test_no_events_become_an_empty_score():
    assert decode(as_events()).note_num() == 0


def test_keys_that_come_up_alone_are_ignored_and_keys_left_down_end_with_the_piece():
    score = decode(as_events((NOTE_OFF, 60), (NOTE_ON, 62), (TIME_SHIFT, 30), (NOTE_OFF, 64), (TIME_SHIFT, 20)))
    assert [(n.start, n.duration, n.pitch, n.velocity) for n in score.tracks[0].notes] == [(0, 500, 62, 64)]


def test_time_beyond_a_day_stands_still():
    shifts = [(TIME_SHIFT, 100)] * 90_000
    score = decode(as_events(*shifts, (NOTE_ON, 60), *shifts, (NOTE_OFF, 60)))
    assert score.tracks[0].notes[0].start == 24 * 3600 * 1000


def test_every_slice_stays_itself_when_nothing_is_augmented(make_score):
    events = encode(make_score(seed=5, seconds=20.0))
    rng = random.Random(0)
    for _ in range(200):
        start = rng.randrange(len(events.kind))
        cut = slice(start, start + rng.randrange(150))
        part = Events(events.kind[cut], events.value[cut])
        assert pairs(augment_events(part)) == pairs(part)


@pytest.mark.parametrize("semitones", [-7, 3])
def test_transposed_events_are_the_events_of_the_transposed_score(make_score, semitones):
    score = make_score(seed=6)
    transposed = score.copy()
    for note in transposed.tracks[0].notes:
        note.pitch += semitones
    assert pairs(augment_events(encode(score), semitones=semitones)) == pairs(encode(transposed))


@pytest.mark.parametrize("stretch", [0.5, 0.8, 1.25, 2.0])
def test_stretched_events_are_the_events_of_the_slower_score(make_score, stretch):
    for seed in range(10):
        events = encode(make_score(seed))
        slower = decode(events)
        slower.tempos[0].mspq = int(500_000 * stretch)
        assert pairs(augment_events(events, stretch=stretch)) == pairs(encode(slower))


def test_a_slice_keeps_its_open_notes_its_silence_and_its_last_velocity_when_augmented():
    # Key 50 was struck before the slice, key 60 is down after it, and the last velocity is for a note to come.
    part = as_events(
        (TIME_SHIFT, 20), (NOTE_OFF, 50), (NOTE_ON, 60), (TIME_SHIFT, 40),
        (VELOCITY, 9), (NOTE_ON, 52), (TIME_SHIFT, 10), (VELOCITY, 7),
    )  # fmt: skip
    assert pairs(augment_events(part, semitones=2, stretch=0.5)) == [
        (TIME_SHIFT, 10), (NOTE_OFF, 52), (NOTE_ON, 62), (TIME_SHIFT, 20),
        (VELOCITY, 9), (NOTE_ON, 54), (TIME_SHIFT, 5), (VELOCITY, 7),
    ]  # fmt: skip
    notes, _ = events_to_notes(part)
    assert notes.start[notes.pitch == 50] == BEFORE
    assert notes.end[notes.pitch == 60] == FOREVER


def test_an_unknown_velocity_stays_unknown_when_steps_fall_together():
    part = as_events((NOTE_ON, 60), (TIME_SHIFT, 1), (VELOCITY, 9), (NOTE_ON, 52))
    assert pairs(augment_events(part, stretch=0.4)) == [(NOTE_ON, 60), (VELOCITY, 9), (NOTE_ON, 52)]


def test_augmentation_that_leaves_the_keyboard_or_turns_time_back_is_refused():
    part = as_events((NOTE_ON, 120), (TIME_SHIFT, 10), (NOTE_OFF, 3))
    with pytest.raises(ValueError, match="from -3 to 7"):
        augment_events(part, semitones=8)
    with pytest.raises(ValueError, match="must be positive"):
        augment_events(part, stretch=0.0)
