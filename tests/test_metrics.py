"""The statistics of a score, against a count by hand, against plain loops, and against another library."""

import itertools
import json
import math

import numpy as np
import pytest
from symusic import ControlChange, Note, Score, Tempo, Track

from evaluation.metrics import (
    TIME_BOUNDS,
    cut,
    describe,
    histograms,
    main,
    midi_to_arrays,
    read_folder,
    score_to_arrays,
    self_similarity,
    tabulate,
)


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
        **bar_by_bar(notes, first, last),
        **second_by_second(notes, first, last),
        **figure_by_figure([pitch for _, _, pitch, _ in sorted(notes, key=lambda note: (note[0], note[2]))]),
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


def bar_by_bar(notes, first, last):
    """The similarity of bars of two seconds, sixteen cells each, pair by pair."""
    bars = [set() for _ in range((last - first) // 2000)]
    for start, *_ in notes:
        bar, place = divmod(start - first, 2000)
        if bar < len(bars):
            bars[bar].add(place // 125)
    pairs = [1 - len(one ^ other) / 16 for one, other in itertools.combinations(bars, 2)]
    return {"grooving_similarity": sum(pairs) / len(pairs)} if pairs else {}


def second_by_second(notes, first, last):
    """The cosine of the pitch classes that sound in two seconds, pair by pair."""
    windows = np.zeros(((last - first) // 1000, 12))
    for window, (start, length, pitch, _) in itertools.product(range(len(windows)), notes):
        begin, end = first + 1000 * window, first + 1000 * (window + 1)
        windows[window, pitch % 12] += max(0, min(end, start + length) - max(begin, start))
    found = {"short": [], "middle": [], "long": []}
    for one, other in itertools.combinations(range(len(windows)), 2):
        product = np.linalg.norm(windows[one]) * np.linalg.norm(windows[other])
        if product and other - one >= 3:
            name = "short" if other - one < 8 else "middle" if other - one < 15 else "long"
            found[name].append(windows[one] @ windows[other] / product)
    return {f"self_similarity_{name}": np.mean(values) for name, values in found.items() if values}


def figure_by_figure(pitches):
    """The share of runs of eight notes that were there before."""
    runs = [tuple(pitches[place : place + 8]) for place in range(len(pitches) - 7)]
    return {"repeated_figures": 1 - len(set(runs)) / len(runs)} if len(runs) > 1 else {}


@pytest.mark.parametrize("seed", range(20))
def test_statistics_equal_a_count_of_every_millisecond_and_every_pair(seed):
    # Few keys, so that figures come again.
    notes = [(start, length, pitch % (2 + seed), velocity) for start, length, pitch, velocity in random_notes(seed)]
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
    notes = score_to_arrays(score_of((500, 100, 64, 64), (0, 100, 67, 64), (0, 100, 60, 64)))
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


def scale(times, seconds=0.25):
    """Plays up and down a scale of eight notes, so many times."""
    keys = [60, 62, 64, 65, 67, 69, 71, 72] * times
    return [(int(1000 * seconds * place), int(900 * seconds), key, 64) for place, key in enumerate(keys)]


def test_a_loop_is_told_from_music_that_goes_on():
    loop, once = (
        describe(score_of(*scale(10))),
        describe(score_of(*((200 * i, 200, 40 + 7 * i % 48, 64) for i in range(40)))),
    )
    assert loop["repeated_figures"] == pytest.approx(65 / 73)
    assert once["repeated_figures"] == 0
    assert loop["grooving_similarity"] == 1


def test_what_returns_after_twenty_seconds_shows_at_that_lag():
    theme = [(1000 * second, 1000, 60 + 7 * second % 12, 64) for second in range(10)]
    other = [(10_000 + 500 * place, 250, (61, 63)[place % 2], 64) for place in range(20)]
    again = [(20_000 + start, *rest) for start, *rest in theme]
    similarity, pairs = self_similarity(score_to_arrays(score_of(*theme, *other, *again)))
    assert pairs.tolist() == list(range(30, 0, -1))
    assert similarity[20] == pytest.approx(1)
    assert similarity[[19, 21]].max() < 0.1


def test_silent_seconds_are_like_nothing_and_do_not_count():
    similarity, pairs = self_similarity(score_to_arrays(score_of((0, 1000, 60, 64), (5000, 1000, 72, 64))))
    assert pairs.tolist() == [2, 0, 0, 0, 0, 1]
    assert similarity == pytest.approx([1, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_histograms_equal_those_of_numpy(seed):
    start, length, pitch, velocity = (np.array(column) for column in zip(*sorted(random_notes(seed)), strict=True))
    bounds = [-1, *TIME_BOUNDS, 1000]
    expected = {
        "pitch_classes": np.histogram(pitch % 12, range(13))[0],
        "note_lengths": np.histogram(length / 1000, bounds)[0],
        "inter_onsets": np.histogram(np.diff(start) / 1000, bounds)[0],
        "velocities": np.histogram(velocity, range(1, 130, 4))[0],
    }
    found = histograms(score_of(*zip(start, length, pitch, velocity, strict=True)))
    assert found.keys() == expected.keys()
    for name, counts in expected.items():
        assert found[name] == pytest.approx(counts / counts.sum())


@pytest.mark.parametrize("notes", [[], [(0, 500, 60, 64)]])
def test_less_than_two_notes_have_no_histograms(notes):
    assert histograms(score_of(*notes)) == {}


def test_pretty_midi_finds_the_same(tmp_path):
    pretty_midi = pytest.importorskip("pretty_midi")
    random = np.random.default_rng(0)
    # Every key once, for the end of a note whose key is struck again is told in more than one way.
    keys, starts, lengths = random.permutation(np.arange(21, 109)), random.integers(0, 30_000, 88), (20, 300, 2000)
    score = score_of(*((start, random.choice(lengths), key, 64) for start, key in zip(starts, keys, strict=True)))
    score.tempos.extend([Tempo(7000, 70), Tempo(11_000, 180)])
    score.dump_midi(tmp_path / "piece.mid")

    midi, found = pretty_midi.PrettyMIDI(str(tmp_path / "piece.mid")), describe(Score(tmp_path / "piece.mid"))
    notes = [note for instrument in midi.instruments for note in instrument.notes]
    start = midi.get_onsets()[0]
    sounding = (midi.get_piano_roll(fs=2000)[:, int(2000 * start) :] > 0).sum(axis=0)
    assert found["notes"] == len(notes) == 88
    assert found["seconds"] == pytest.approx(midi.get_end_time() - start, rel=1e-4)
    assert found["note_seconds"] == pytest.approx(np.mean([note.get_duration() for note in notes]), rel=1e-4)
    assert found["silence"] == pytest.approx((sounding == 0).mean(), abs=0.002)
    assert found["polyphony"] == pytest.approx(sounding[sounding > 0].mean(), rel=0.01)
    assert histograms(Score(tmp_path / "piece.mid"))["pitch_classes"] == pytest.approx(
        midi.get_pitch_class_histogram(normalize=True)
    )


def test_music_is_cut_so_many_seconds_after_its_first_note():
    notes = cut(score_to_arrays(score_of((1000, 5000, 60, 64), (2500, 100, 62, 64), (3000, 100, 64, 64))), seconds=2)
    assert notes.start == pytest.approx([1, 2.5])
    assert notes.end == pytest.approx([3, 2.6])


def test_a_table_has_a_row_for_each_piece_that_has_the_statistic():
    low, high = score_of((0, 1000, 60, 40)), score_of((0, 1000, 64, 80), (1000, 1000, 64, 80))
    table = tabulate([low, high, score_of()])
    assert table["notes"].tolist() == [1, 2, 0]
    assert table["pitch_mean"].tolist() == [60, 64]
    assert table["pitch_classes"].shape == (1, 12)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        tabulate([])


def test_the_command_describes_a_folder_and_passes_over_what_is_broken(midi_folder, broken_midis, tmp_path, capsys):
    (midi_folder / "broken.mid").write_bytes(broken_midis["text"])
    output = tmp_path / "found.json"
    main([str(midi_folder), "--seconds", "5", "--output", str(output)])
    printed = capsys.readouterr()
    assert printed.err.startswith(f"passed over {midi_folder / 'broken.mid'}")
    assert printed.err.count("\n") == 1
    assert "midi: 6" in printed.out
    pieces = json.loads(output.read_text())["pieces"]
    (six,) = (piece for path, piece in pieces.items() if path.endswith("six.mid"))
    assert six == describe(cut(midi_to_arrays(midi_folder / "deeper" / "six.mid"), 5))
    assert max(piece["seconds"] for piece in pieces.values()) == pytest.approx(5)


def test_the_command_compares_a_folder_with_another_and_that_with_itself(midi_folder, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    score_of(*scale(4)).dump_midi(other / "scale.mid")
    output = tmp_path / "found.json"
    main([str(other), "--reference", str(midi_folder), "--output", str(output)])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("velocity std"))
    compared = json.loads(output.read_text())["comparison"]["velocity_std"]
    overlap, _, _ = compared["pieces"]["overlap"]
    assert f"{overlap:.3f} [" in row
    assert overlap < compared["reference"]["overlap"][0]


def test_with_the_pedal_notes_last_as_long_as_they_sound(make_score, tmp_path):
    make_score(seed=2).dump_midi(tmp_path / "piece.mid")
    lengths = []
    for pedal in ([], ["--pedal"]):
        main([str(tmp_path), "--output", str(tmp_path / "found.json"), *pedal])
        (piece,) = json.loads((tmp_path / "found.json").read_text())["pieces"].values()
        lengths.append(piece["note_seconds"])
    assert lengths[1] > 1.5 * lengths[0]


@pytest.mark.parametrize("suffix", [".mid", ".kar", ".RMI"])
def test_files_have_the_clock_of_the_tokenizer(tmp_path, suffix):
    # Of seventeen tempos and more at hand, two at one tick: the last of the file counts.
    tempos = b"".join(b"\0\xff\x51\3" + (10**6 - 10_000 * number).to_bytes(3, "big") for number in range(51))
    track = tempos + bytes.fromhex("00903c40 8360803c00 00903e40 8360803e00 00ff2f00")
    midi = bytes.fromhex("4d546864 00000006 0000 0001 01e0 4d54726b") + len(track).to_bytes(4, "big") + track
    if suffix == ".RMI":
        midi = b"RIFF" + (len(midi) + 12).to_bytes(4, "little") + b"RMIDdata" + len(midi).to_bytes(4, "little") + midi
    path = tmp_path / f"piece{suffix}"
    path.write_bytes(midi)
    for pedal in (False, True):
        (notes,) = read_folder(tmp_path, pedal=pedal).values()
        assert notes.start.tolist() == pytest.approx([0, 0.5])
        assert notes.end.tolist() == pytest.approx([0.5, 1])


@pytest.mark.parametrize("pedal", [[], ["--pedal"]])
def test_music_of_more_than_a_day_is_passed_over(midi_folder, pedal, capsys):
    # Two notes 35 million seconds apart: a few dozen bytes, and 35 million windows of a second.
    score_of((0, 500, 60, 64), (35_000_000, 500, 62, 64), quarters_per_minute=0.12).dump_midi(midi_folder / "year.mid")
    assert main([str(midi_folder), *pedal]) == 0
    error = capsys.readouterr().err
    assert "year.mid: " in error
    assert "more than 24 mean that the file is broken" in error


def test_escapes_in_a_file_name_do_not_reach_the_terminal(midi_folder, broken_midis, capsys):
    (midi_folder / "\x1b[31mred.mid").write_bytes(broken_midis["text"])
    assert main([str(midi_folder)]) == 0
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"\x1b[31mred.mid" in error


def test_a_folder_without_music_ends_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
