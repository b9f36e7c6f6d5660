"""Sound that is where the notes are, at an even loudness; pictures that show each note in its place."""

import io
import struct
import wave

import numpy as np
import pytest
from matplotlib.image import imread
from symusic import Note, Score, Tempo, Track

from evaluation import rendering
from evaluation.rendering import find_soundfont, loudness, piano_roll, render_audio, write_wav

WHITE = [1.0, 1.0, 1.0, 1.0]


def score_of(*notes, program=0, is_drum=False):
    """Writes notes (start and length in seconds, pitch, velocity) into a score."""
    score = Score(500)
    score.tempos.append(Tempo(0, 120))
    track = Track("", program, is_drum)
    for start, length, pitch, velocity in notes:
        track.notes.append(Note(round(1000 * start), round(1000 * length), pitch, velocity))
    score.tracks.append(track)
    return score


@pytest.fixture(scope="module")
def soundfont():
    pytest.importorskip("midirenderer")
    return find_soundfont() or pytest.skip("there is no SoundFont on this machine")


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """A machine whose only places for SoundFonts are two empty folders."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(rendering, "SOUNDFONT_FOLDERS", [str(folder) for folder in folders])
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    monkeypatch.delenv("SOUNDFONT", raising=False)
    return folders


def test_the_soundfont_asked_for_comes_first_then_the_environments_then_the_systems(
    bare_machine, monkeypatch, tmp_path
):
    assert find_soundfont() is None

    (bare_machine[0] / "FluidR3_GM.sf2").touch()
    assert find_soundfont() == bare_machine[0] / "FluidR3_GM.sf2"
    better = bare_machine[1] / "MuseScore_General.sf2"
    better.touch()
    assert find_soundfont() == better

    of_environment, asked_for = tmp_path / "environment.sf2", tmp_path / "asked.sf2"
    of_environment.touch()
    asked_for.touch()
    monkeypatch.setenv("SOUNDFONT", str(of_environment))
    assert find_soundfont() == of_environment
    assert find_soundfont(asked_for) == asked_for


def test_the_wheels_soundfont_is_found_without_importing_the_wheel(bare_machine, monkeypatch, tmp_path):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(rendering, "find_spec", {"pretty_midi": Spec}.get)
    assert find_soundfont() is None
    (tmp_path / "TimGM6mb.sf2").touch()
    assert find_soundfont() == tmp_path / "TimGM6mb.sf2"


def test_a_soundfont_that_was_asked_for_and_is_missing_is_an_error_that_names_it(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"absent\.sf2"):
        find_soundfont("absent.sf2")
    monkeypatch.setenv("SOUNDFONT", "nowhere.sf2")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.sf2"):
        find_soundfont()


def test_a_note_sounds_at_its_time_and_its_pitch(soundfont):
    audio, rate = render_audio(score_of((2.0, 1.0, 69, 100)), soundfont)
    assert audio.dtype == np.float32
    assert audio.shape[1] == 2
    onset = np.argmax(np.abs(audio).max(axis=1) > 0.01) / rate
    assert onset == pytest.approx(2.0, abs=0.02)
    sounding = audio[int(2.1 * rate) : int(2.9 * rate)].mean(axis=1)
    spectrum = np.abs(np.fft.rfft(sounding * np.hanning(len(sounding))))
    assert np.fft.rfftfreq(len(sounding), 1 / rate)[spectrum.argmax()] == pytest.approx(440, rel=0.01)


def test_the_last_note_dies_away_before_the_sound_ends(soundfont):
    audio, rate = render_audio(score_of((0.0, 1.0, 60, 127)), soundfont)
    assert len(audio) / rate == pytest.approx(1.0 + rendering.TAIL_SECONDS, abs=0.1)
    assert np.abs(audio[-rate // 10 :]).max() < 0.001 * np.abs(audio).max()


@pytest.mark.parametrize("velocity", [20, 64, 127])
def test_soft_and_loud_music_come_out_equally_loud_and_unclipped(soundfont, velocity):
    notes = ((0.25 * i, 0.5, 48 + (7 * i) % 36, velocity) for i in range(24))
    audio, rate = render_audio(score_of(*notes), soundfont)
    assert loudness(audio, rate) == pytest.approx(rendering.TARGET_LOUDNESS, abs=0.1)
    assert np.abs(audio).max() <= rendering.PEAK + 1e-6


def test_peaks_stay_below_full_scale_where_the_loudness_cannot_be_reached(soundfont, monkeypatch):
    monkeypatch.setattr(rendering, "TARGET_LOUDNESS", 0.0)
    audio, _ = render_audio(score_of((0.0, 0.5, 60, 90)), soundfont)
    assert np.abs(audio).max() == pytest.approx(rendering.PEAK, abs=1e-4)


def test_every_melody_is_played_on_the_piano_and_drums_are_not_played(soundfont):
    piano = score_of((0.0, 0.5, 60, 90))
    organ = score_of((0.0, 0.5, 60, 90), program=19)
    organ.tracks.extend(score_of((0.0, 0.5, 38, 127), is_drum=True).tracks)
    before = organ.dumps_midi()
    np.testing.assert_array_equal(render_audio(organ, soundfont)[0], render_audio(piano, soundfont)[0])
    assert organ.dumps_midi() == before


def test_a_score_without_notes_is_silence(soundfont):
    audio, rate = render_audio(Score(500), soundfont)
    assert len(audio) >= rate
    assert not audio.any()


def test_a_file_that_is_no_soundfont_is_refused_by_name(soundfont, tmp_path):
    pretender = tmp_path / "pretender.sf2"
    pretender.write_bytes(b"RIFF....sfbk")
    with pytest.raises(ValueError, match=r"pretender\.sf2.*\.sf2 file"):
        render_audio(score_of((0.0, 0.5, 60, 90)), pretender)


def test_loudness_agrees_with_the_broadcasters_reference_tone():
    # EBU Tech 3341, case 1: a stereo sine of 1 kHz at -23 dBFS is -23 LUFS, within 0.1.
    time = np.arange(20 * 48_000) / 48_000
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * time)
    audio = np.stack([tone, tone], axis=1).astype(np.float32)
    assert loudness(audio, 48_000) == pytest.approx(-23, abs=0.1)


def test_loudness_leaves_pauses_out():
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((5 * 48_000, 2)).astype(np.float32)
    with_pause = np.concatenate([noise, np.zeros_like(noise), 0.001 * noise])
    assert loudness(with_pause, 48_000) == pytest.approx(loudness(noise, 48_000), abs=0.5)
    assert loudness(np.zeros((48_000, 2), np.float32), 48_000) == -np.inf


def test_wav_files_hold_the_audio_in_16_bits(tmp_path):
    audio = np.random.default_rng(0).uniform(-1, 1, (1000, 2)).astype(np.float32)
    audio[:2] = [[-1, 1], [0, 0]]
    write_wav(tmp_path / "noise.wav", audio, 48_000)
    with wave.open(str(tmp_path / "noise.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 48_000, 1000)
        read = np.frombuffer(file.readframes(1000), "<i2").reshape(-1, 2) / (2**15 - 1)
    np.testing.assert_allclose(read, audio, atol=0.5 / (2**15 - 1) + 1e-6)


def draw(*notes, **options):
    """Draws a piano roll and reads it back as `[height, width, 4]`."""
    buffer = io.BytesIO()
    piano_roll(score_of(*notes), buffer, **options)
    buffer.seek(0)
    return imread(buffer)


def place(seconds, total):
    """The column of a time in a picture of one row."""
    inches = rendering.LEFT + (rendering.WIDTH - rendering.LEFT - rendering.RIGHT) * seconds / total
    return inches * rendering.DOTS_PER_INCH


FRAME = ((0.0, 0.1, 36, 64), (9.9, 0.1, 84, 64))
"""Two notes that hold the picture's limits while another one comes and goes."""


@pytest.mark.parametrize(("start", "length", "pitch"), [(1.0, 2.0, 60), (5.5, 0.5, 41), (7.0, 1.0, 80)])
def test_a_note_is_drawn_at_its_time_and_its_key(start, length, pitch):
    added = np.any(draw(*FRAME, (start, length, pitch, 64)) != draw(*FRAME), axis=2)
    rows, columns = np.nonzero(added)
    assert columns.min() == pytest.approx(place(start, 10), abs=1.5)
    assert columns.max() == pytest.approx(place(start + length, 10), abs=3)
    # The lowest lane is 34, two keys below the lowest note; lanes are counted from the bottom of the row.
    bottom = added.shape[0] - rendering.BOTTOM * rendering.DOTS_PER_INCH
    lane = (bottom - (rows.min() + rows.max() + 1) / 2) / (rendering.KEY * rendering.DOTS_PER_INCH)
    assert lane == pytest.approx(pitch - 34 + 0.5, abs=0.1)


def test_louder_notes_are_darker():
    column, without, brightness = round(place(5.02, 10)), draw(*FRAME), []
    for velocity in (10, 40, 64, 90, 120):
        with_note = draw(*FRAME, (5.0, 2.0, 60, velocity))
        note = np.any(with_note != without, axis=2)[:, column]
        brightness.append(with_note[note, column, :3].mean())
    assert brightness == sorted(brightness, reverse=True)
    assert brightness[0] - brightness[-1] > 0.4


def test_the_prompt_is_shaded_and_the_continuation_is_not():
    plain, shaded = draw(*FRAME), draw(*FRAME, prompt_seconds=4.0)
    changed = np.any(plain != shaded, axis=2)
    middle = round(rendering.TOP * rendering.DOTS_PER_INCH) + 40
    assert changed[middle, round(place(0.2, 10)) : round(place(3.9, 10))].all()
    assert not changed[middle, round(place(4.1, 10)) :].any()
    # And labelled: something is written above both parts.
    above = changed[: round(rendering.TOP * rendering.DOTS_PER_INCH) - 2]
    assert above[:, : round(place(2, 10))].any()
    assert above[:, round(place(4, 10)) : round(place(6, 10))].any()


def test_long_music_is_laid_out_in_rows_of_a_minute_at_most():
    half_minute, minute = draw((0, 30, 60, 64)), draw((0, 60, 60, 64))
    ten_minutes, two_hours = draw((0, 600, 60, 64)), draw((0, 7200, 60, 64))
    assert half_minute.shape == minute.shape
    # The narrowest roll shows 19 keys.
    row = (19 * rendering.KEY_IN_ROWS + rendering.BOTTOM) * rendering.DOTS_PER_INCH
    assert (ten_minutes.shape[0] - rendering.TOP * rendering.DOTS_PER_INCH) / row == pytest.approx(10, abs=0.1)
    assert (two_hours.shape[0] - rendering.TOP * rendering.DOTS_PER_INCH) / row == pytest.approx(20, abs=0.1)


def test_the_shortest_note_of_a_long_piece_can_still_be_seen():
    long = ((0.0, 600.0, 60, 64),)
    assert np.any(draw(*long, (300.0, 0.01, 65, 64)) != draw(*long))


def test_a_score_without_notes_gives_an_empty_roll():
    picture = draw()
    assert np.all(picture[0, 0] == WHITE)
    assert np.any(picture != WHITE)


def test_the_same_notes_give_the_same_bytes_and_no_other_text(tmp_path):
    for name in ("one.png", "two.png"):
        piano_roll(score_of(*FRAME), tmp_path / name)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "two.png").read_bytes()
    kinds, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        kinds.append(kind)
        position += 12 + length
    assert set(kinds) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
