"""Audio has onsets where the notes begin and one peak level; pictures show each note in its place."""

import io
import struct
import sys
import time
import types
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from symusic import ControlChange, Note, Score, Tempo, Track

from evaluation import rendering
from evaluation.rendering import (
    DARK,
    LIGHT,
    MidiPort,
    find_soundfont,
    key_name,
    piano_roll,
    render_audio,
    write_audio,
)
from tokenization.midi_streamer import StreamedEvent

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


def test_the_requested_soundfont_comes_first_then_the_environments_then_the_systems(
    bare_machine, monkeypatch, tmp_path
):
    assert find_soundfont() is None

    (bare_machine[0] / "FluidR3_GM.sf2").touch()
    assert find_soundfont() == bare_machine[0] / "FluidR3_GM.sf2"
    better = bare_machine[1] / "MuseScore_General.sf2"
    better.touch()
    assert find_soundfont() == better

    of_environment, requested = tmp_path / "environment.sf2", tmp_path / "requested.sf2"
    of_environment.touch()
    requested.touch()
    monkeypatch.setenv("SOUNDFONT", str(of_environment))
    assert find_soundfont() == of_environment
    assert find_soundfont(requested) == requested


def test_the_wheels_soundfont_is_found_without_importing_the_wheel(bare_machine, monkeypatch, tmp_path):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(rendering, "find_spec", {"pretty_midi": Spec}.get)
    assert find_soundfont() is None
    (tmp_path / "TimGM6mb.sf2").touch()
    assert find_soundfont() == tmp_path / "TimGM6mb.sf2"


def test_a_requested_soundfont_that_is_missing_is_an_error_that_names_it(monkeypatch):
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


def test_the_onsets_heard_in_a_render_are_those_of_its_notes(soundfont):
    onsets = [0.1, 0.35, 0.8, 1.0, 1.7, 2.05, 2.6]
    keys = [[60], [64, 67], [48], [72], [55, 59, 62], [84], [40, 65]]
    notes = [(onset, 0.3, key, 80) for onset, chord in zip(onsets, keys, strict=True) for key in chord]
    audio, rate = render_audio(score_of(*notes), soundfont)
    # A stroke raises the energy of some frequencies all at once: where the rise is steepest within 80 ms, and steep.
    hop = rate // 200
    frames = np.lib.stride_tricks.sliding_window_view(audio.mean(axis=1), 4 * hop)[::hop] * np.hanning(4 * hop)
    magnitude = np.log1p(100 * np.abs(np.fft.rfft(frames, axis=1)))
    rise = np.maximum(magnitude[2:] - magnitude[:-2], 0).sum(axis=1)
    steepest = np.lib.stride_tricks.sliding_window_view(np.pad(rise, 8), 17).max(axis=1)
    found = np.flatnonzero((rise == steepest) & (rise > 0.25 * rise.max()))
    # The middle of two frames that lie two hops apart, each four hops long.
    np.testing.assert_allclose((found + 3) * hop / rate, onsets, atol=0.025)


def test_the_last_note_dies_away_before_the_sound_ends(soundfont):
    audio, rate = render_audio(score_of((0.0, 1.0, 60, 127)), soundfont)
    assert len(audio) / rate == pytest.approx(1.0 + rendering.TAIL_SECONDS, abs=0.1)
    assert np.abs(audio[-rate // 10 :]).max() < 0.001 * np.abs(audio).max()


@pytest.mark.parametrize("velocity", [20, 64, 127])
def test_soft_and_loud_music_have_the_same_peak_below_full_scale(soundfont, velocity):
    notes = ((0.25 * i, 0.5, 48 + (7 * i) % 36, velocity) for i in range(24))
    audio, _ = render_audio(score_of(*notes), soundfont)
    assert np.abs(audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)


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


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 2**-15), (".flac", 2**-15), (".mp3", 0.02)])
def test_files_hold_the_audio_and_the_same_audio_gives_the_same_bytes(tmp_path, suffix, tolerance):
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(12 * 48_000) / 48_000
    audio = 0.5 * np.sin(2 * np.pi * np.outer(time, [330, 440])).astype(np.float32)
    for name in ("one", "two"):
        write_audio(tmp_path / f"{name}{suffix}", audio, 48_000)
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    read, rate = soundfile.read(tmp_path / f"one{suffix}")
    assert rate == 48_000
    assert len(read) == len(audio)
    # Encoders take a moment to begin and to end.
    middle = slice(4800, -4800)
    np.testing.assert_allclose(read[middle], audio[middle], atol=tolerance)


def test_audio_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    pytest.importorskip("soundfile")
    silence = np.zeros((100, 2), np.float32)
    with pytest.raises(ValueError, match=r"music\.doc.*\.wav, \.flac, \.mp3"):
        write_audio(tmp_path / "music.doc", silence, 48_000)
    with pytest.raises(OSError, match=r"music\.wav cannot be written"):
        write_audio(tmp_path / "absent" / "music.wav", silence, 48_000)


@pytest.fixture
def instrument(monkeypatch):
    """A machine with two MIDI ports; what is sent to them is (port, time, message) here."""
    sent = []

    class MidiOut:
        def get_ports(self):
            return ["Through 14:0", "Piano 20:0"]

        def open_port(self, number):
            self.name = self.get_ports()[number]

        def send_message(self, message):
            sent.append((self.name, time.monotonic(), message))

        def close_port(self):
            sent.append((self.name, time.monotonic(), "closed"))

    monkeypatch.setitem(sys.modules, "rtmidi", types.SimpleNamespace(MidiOut=MidiOut))
    return sent


def test_a_port_plays_each_event_at_its_time_and_then_closes(instrument):
    port = MidiPort("Piano")
    for event in [(5.0, 60, 70), (5.0, 64, 70), (5.15, 60, 0), (5.3, 64, 0)]:
        port.put(StreamedEvent(*event))
    assert port.close() == []
    assert {name for name, _, _ in instrument} == {"Piano 20:0"}
    messages = [message for _, _, message in instrument]
    assert messages == [[144, 60, 70], [144, 64, 70], [144, 60, 0], [144, 64, 0], [176, 123, 0], "closed"]
    times = np.array([sent for _, sent, _ in instrument[:4]])
    # Never early; how late depends on the machine.
    assert np.all(times - times[0] >= [-0.001, -0.001, 0.13, 0.28])


def test_when_the_music_comes_late_the_port_waits_and_says_so(instrument, monkeypatch):
    monkeypatch.setattr(rendering, "LATE_SECONDS", 0.1)
    port = MidiPort("Through")
    port.put(StreamedEvent(0.0, 60, 70))
    time.sleep(rendering.PORT_DELAY_SECONDS + 0.5)
    port.put(StreamedEvent(0.1, 60, 0))
    port.put(StreamedEvent(0.4, 62, 70))
    (late, *_) = port.close()
    assert late >= 0.35
    (_, off, _), (_, on, _) = instrument[1:3]
    # The events after it keep their distances.
    assert on - off >= 0.28


def test_a_port_stops_in_the_middle_when_asked_to(instrument):
    port = MidiPort("Piano")
    port.put(StreamedEvent(0.0, 60, 70))
    port.put(StreamedEvent(1000.0, 60, 0))
    port.close(at_once=True)
    assert [message for _, _, message in instrument][-2:] == [[176, 123, 0], "closed"]


def test_a_port_that_is_not_there_is_an_error_that_names_those_that_are(instrument, monkeypatch):
    with pytest.raises(OSError, match=r"no MIDI port Organ; there are: Through 14:0, Piano 20:0"):
        MidiPort("Organ")

    def no_midi():
        raise SystemError("no sequencer")

    monkeypatch.setitem(sys.modules, "rtmidi", types.SimpleNamespace(MidiOut=no_midi))
    with pytest.raises(OSError, match="no MIDI on this machine: no sequencer"):
        MidiPort("Piano")
    assert instrument == []


@pytest.mark.parametrize(("pitch", "name"), [(60, "C4"), (21, "A0"), (108, "C8"), (61, "C#4"), (0, "C-1")])
def test_keys_are_named_as_pianists_name_them(pitch, name):
    assert key_name(pitch) == name


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


@pytest.mark.parametrize(("theme", "direction"), [(LIGHT, -1), (DARK, 1)])
def test_louder_notes_stand_out_more_from_the_paper(theme, direction):
    column, without, brightness = round(place(5.02, 10)), draw(*FRAME, theme=theme), []
    for velocity in (10, 40, 64, 90, 120):
        with_note = draw(*FRAME, (5.0, 2.0, 60, velocity), theme=theme)
        note = np.any(with_note != without, axis=2)[:, column]
        brightness.append(with_note[note, column, :3].mean())
    assert brightness == sorted(brightness, reverse=direction < 0)
    assert abs(brightness[0] - brightness[-1]) > 0.4
    # Even the softest note differs from it.
    assert abs(brightness[0] - without[0, 0, :3].mean()) > 0.1


def test_the_pedal_has_a_lane_below_the_keys_where_there_is_one():
    score = score_of(*FRAME)
    for seconds, value in ((2.0, 127), (3.0, 64), (4.0, 63), (6.0, 100)):
        score.tracks[0].controls.append(ControlChange(round(1000 * seconds), 64, value))
    buffer = io.BytesIO()
    piano_roll(score, buffer)
    buffer.seek(0)
    with_pedal, without = imread(buffer), draw(*FRAME)
    lane = round(rendering.PEDAL * rendering.DOTS_PER_INCH)
    assert with_pedal.shape[0] == pytest.approx(without.shape[0] + lane, abs=1)
    bottom = with_pedal.shape[0] - rendering.BOTTOM * rendering.DOTS_PER_INCH
    row = with_pedal[round(bottom - lane / 2)]
    down = np.any(row != with_pedal[0, 0], axis=1)
    changes = [(1.9, False), (2.1, True), (3.5, True), (3.9, True), (4.1, False), (5.9, False), (9.0, True)]
    for seconds, expected in changes:
        assert down[round(place(seconds, 10))] == expected


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


def test_an_svg_holds_a_shape_for_each_note_and_its_words_as_words(tmp_path):
    piano_roll(score_of(*FRAME), tmp_path / "two.svg", prompt_seconds=4.0)
    piano_roll(score_of(*FRAME, (5.0, 1.0, 60, 64)), tmp_path / "three.svg", prompt_seconds=4.0)
    two, three = ((tmp_path / name).read_text() for name in ("two.svg", "three.svg"))
    words = {element.text for element in ElementTree.fromstring(two).iter("{http://www.w3.org/2000/svg}text")}
    assert {"C4", "seconds", "127"} <= words
    assert {"prompt", "continuation"} <= {word.strip() for word in words}
    assert three.count("<path") - two.count("<path") == 1


def test_a_score_without_notes_gives_an_empty_roll():
    picture = draw()
    assert np.all(picture[0, 0] == WHITE)
    assert np.any(picture != WHITE)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_notes_give_the_same_bytes_and_no_dates_or_versions(tmp_path, suffix):
    for name in ("one", "two"):
        piano_roll(score_of(*FRAME), tmp_path / f"{name}{suffix}")
    data = (tmp_path / f"one{suffix}").read_bytes()
    assert data == (tmp_path / f"two{suffix}").read_bytes()
    if suffix == ".svg":
        assert b"date" not in data
        assert matplotlib.__version__.encode() not in data
        return
    kinds, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        kinds.append(kind)
        position += 12 + length
    assert set(kinds) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
