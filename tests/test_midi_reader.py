"""Tests of `tokenization/midi_reader.py`: nothing that a file says is lost, and broken files are refused by name."""

import io
import random

import numpy as np
import pytest

from tokenization import midi_reader
from tokenization.midi_reader import hold, read_midi, to_score

END = b"\x00\xff\x2f\x00"


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + len(content).to_bytes(4, "big") + content


def midi_file(*tracks: bytes, midi_format: int = 1, division: int = 480, num_tracks: int | None = None) -> bytes:
    counts = (midi_format, len(tracks) if num_tracks is None else num_tracks, division)
    header = b"".join(count.to_bytes(2, "big") for count in counts)
    return chunk(b"MThd", header) + b"".join(chunk(b"MTrk", track) for track in tracks)


def event(ticks: int, *data: int) -> bytes:
    length = [ticks & 127]
    while ticks := ticks >> 7:
        length.insert(0, ticks & 127 | 128)
    return bytes([*length, *data])


def riff(midi: bytes, *before: bytes) -> bytes:
    parts = (part + len(content).to_bytes(4, "little") + content for part, content in [*before, (b"data", midi)])
    content = b"RMID" + b"".join(parts)
    return b"RIFF" + len(content).to_bytes(4, "little") + content


def tempo(ticks: int, microseconds: int) -> bytes:
    return event(ticks, 0xFF, 0x51, 3) + microseconds.to_bytes(3, "big")


NOTE = event(0, 0x90, 60, 64) + event(480, 0x80, 60, 0)
RESTRIKE = event(0, 0x90, 60, 64) + event(480, 0x90, 60, 64)


def seconds(midi: bytes) -> list[tuple[float, float]]:
    read = read_midi(midi)
    return list(zip(read.to_seconds(read.start).tolist(), read.to_seconds(hold(read)).tolist(), strict=True))


PEDAL = event(0, 0xB0, 64, 127)


@pytest.mark.parametrize(
    ("midi", "right"),
    [
        (midi_file(NOTE + END, PEDAL + event(1920, 0xB0, 64, 0) + END), [(0, 2)]),
        (midi_file(NOTE + END, event(0, 0xB1, 64, 127) + event(1920, 0xB1, 64, 0) + END), [(0, 0.5)]),
        (midi_file(RESTRIKE + event(480, 0x80, 60, 0) + END), [(0, 0.5), (0.5, 1)]),
        (midi_file(RESTRIKE + event(1, 0x80, 60, 0) + event(479, 0x80, 60, 0) + END), [(0, 0.5), (0.5, 1)]),
        (midi_file(RESTRIKE + event(0, 0x80, 60, 0) + event(480, 0x80, 60, 0) + END), [(0, 0.5), (0.5, 1)]),
        (midi_file(NOTE + event(0, 0x90, 62, 64) + event(480, 0xFF, 0x2F, 0)), [(0, 0.5), (0.5, 1)]),
        (midi_file(event(0, 0x90, 60, 64) + event(480, 0xB0, 123, 0) + event(480, 0x80, 60, 0) + END), [(0, 0.5)]),
        (midi_file(PEDAL + NOTE + event(480, 0xB0, 120, 0) + event(960, 0xB0, 64, 0) + END), [(0, 1)]),
        (midi_file(PEDAL + NOTE + event(4_000_000, 0xB0, 7, 0) + END), [(0, 0.5)]),
        (midi_file(PEDAL + NOTE + event(4_000_000, 0xB0, 67, 0) + END), [(0, 0.5)]),
        (midi_file(PEDAL + NOTE + event(960, 0xB0, 64, 70) + event(960, 0xB0, 67, 9) + END), [(0, 2.5)]),
        (midi_file(PEDAL + NOTE + event(0, 0x91, 60, 64) + event(960, 0x81, 60, 0) + END), [(0, 0.5), (0.5, 1.5)]),
        (midi_file(PEDAL + NOTE + event(480, 0xB0, 121, 0) + event(480, 0xB0, 64, 0) + END), [(0, 1)]),
        (
            midi_file(PEDAL + event(0, 0xC0, 5) + NOTE + event(480, 0xC0, 7) + event(480, 0xB0, 64, 0) + END),
            [(0, 1.5)],
        ),
        (midi_file(event(0, 0xB0, 64, 63) + NOTE + event(480, 0xB0, 64, 0) + END), [(0, 0.5)]),
        (midi_file(NOTE + PEDAL + event(480, 0xB0, 64, 0) + END), [(0, 1)]),
        (midi_file(RESTRIKE + event(480, 0x90, 62, 64) + END, NOTE + END), [(0, 0.5), (0.5, 1), (1, 1), (0, 0.5)]),
        (midi_file(event(0, 0x90, 60, 64) + event(960, 0x80, 60, 0) + END, NOTE + END), [(0, 1), (0, 0.5)]),
        (midi_file(event(0, 0x80, 60, 0) + NOTE + event(480, 0x80, 60, 0) + END), [(0, 0.5)]),
        (midi_file(event(0, 0xB0, 123, 0) + NOTE + END, event(0, 0xB0, 123, 0) + END), [(0, 0.5)]),
        (
            midi_file(PEDAL + NOTE[:4] + event(480, 0xB0, 123, 0) + event(480, 0xB0, 64, 0) + END),
            [(0, 1)],
        ),
        (
            midi_file(
                NOTE[:4]
                + event(480, 0xB0, 123, 0)
                + NOTE[:4]
                + event(480, 0x80, 60, 0)
                + event(480, 0x80, 60, 0)
                + END
            ),
            [(0, 0.5), (0.5, 1)],
        ),
        (midi_file(NOTE + END, NOTE + END, midi_format=2), [(0, 0.5), (0.5, 1)]),
        (midi_file(tempo(0, 10**6) + NOTE + END, NOTE + END, midi_format=2), [(0, 1), (1, 1.5)]),
        (midi_file(NOTE + END, NOTE + END, num_tracks=1), [(0, 0.5), (0, 0.5)]),
        (midi_file(NOTE + END, num_tracks=2), [(0, 0.5)]),
        (midi_file(NOTE + END, num_tracks=2) + bytes(100), [(0, 0.5)]),
        (midi_file(NOTE + END) + b"\x01\x02\x03 what a disk held before", [(0, 0.5)]),
        (midi_file(NOTE + END, num_tracks=2) + chunk(b"XFIH", bytes(5)) + chunk(b"MTrk", NOTE + END), 2 * [(0, 0.5)]),
        (midi_file(NOTE), [(0, 0.5)]),
        (midi_file(b"".join(tempo(0, 10**6 - 10**4 * n) for n in range(51)) + NOTE + END), [(0, 0.5)]),
        (midi_file(tempo(0, 10**6) + END, tempo(0, 250_000) + END, NOTE + END), [(0, 0.25)]),
        (midi_file(NOTE + END, division=0xE7 << 8 | 40), [(0, 0.48)]),
        (midi_file(tempo(0, 250_000) + NOTE + END, division=0xE3 << 8 | 80), [(0, 0.2002)]),
        (riff(midi_file(NOTE + END)), [(0, 0.5)]),
        (riff(midi_file(NOTE + END), (b"LIST", b"odd\0")), [(0, 0.5)]),
        (midi_file(event(0, 0x90, 60, 64) + event(0, 0xF0, 2, 1, 0xF7) + event(480, 60, 0) + END), [(0, 0.5)]),
        (midi_file(event(0, 0x90, 60, 64) + event(0, 0xFF, 1, 1, 65) + event(480, 60, 0) + END), [(0, 0.5)]),
        (midi_file(event(0, 0xC0, 1) + event(480, 2) + NOTE + END), [(0.5, 1)]),
        (midi_file(NOTE + event(0, 0xC0, 5) + event(0, 0x90, 64, 64) + event(480, 64, 0)), [(0, 0.5), (0.5, 1)]),
        (
            midi_file(b"".join(event(2**28 - 1, 0xB0, 7, 0) for _ in range(20)) + NOTE + END),
            [(5592405.3125, 5592405.8125)],
        ),
    ],
    ids=[
        "a pedal belongs to its channel, on whichever track it stands",
        "a pedal of another channel holds nothing",
        "a restrike ends the sounding note and is a note itself",
        "of two NoteOffs after two strikes the last ends the second",
        "a NoteOff at the tick of a second strike is that of the first",
        "a note without a NoteOff ends with its track",
        "all notes off ends notes",
        "all sound off ends what the pedal holds",
        "a pedal that never lifts ends with the last note",
        "a pedal that never lifts ends with the last note, whatever another pedal does later",
        "a pedal that never lifts ends when the pedals stop moving, soon after the last note",
        "a pedal that never lifts ends with the last note of its channel",
        "a reset of all controllers lifts the pedal",
        "a change of program does not move the pedal",
        "a pedal of less than 64 is up",
        "a pedal that goes down at the end of a note holds it",
        "a note struck as its track ends has no length",
        "the same key on two tracks",
        "NoteOffs of what does not sound",
        "all notes off before the first note",
        "all notes off leaves to the pedal what it holds",
        "a NoteOff that all notes off made superfluous is not that of the next strike",
        "patterns of format 2 follow each other",
        "every pattern has tempos of its own",
        "tracks that the header does not count are read",
        "tracks that the header counts in vain",
        "a file that is filled up",
        "rubbish after the last track",
        "chunks of another kind",
        "a track without its End of Track",
        "the last of many tempos at one tick",
        "the last of two tracks' tempos at one tick",
        "SMPTE division",
        "SMPTE division of 29.97 frames, whatever the tempo",
        "RIFF",
        "RIFF with other things before the music",
        "running status goes on after SysEx",
        "running status goes on after a meta event",
        "running status of one data byte",
        "running status of another length",
        "ticks beyond 2 to the 32",
    ],
)
def test_reads(midi, right):
    assert seconds(midi) == [pytest.approx(note) for note in right]


def test_notes_carry_their_track_channel_and_program():
    tracks = event(0, 0xC3, 40) + END, event(0, 0x93, 60, 1) + END, event(0, 0x99, 35, 2) + END
    read = read_midi(midi_file(*tracks))
    assert read.track.tolist() == [1, 2]
    assert read.channel.tolist() == [3, 9]
    assert read.program.tolist() == [40, 0]
    assert read.is_drum.tolist() == [False, True]
    assert read.velocity.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("midi", "message"),
    [
        (b"", "not a MIDI file"),
        (b"RIFF\x00\x00\x00\x00RMID", "without MIDI"),
        (midi_file(NOTE + END)[:-3], "cut off"),
        (midi_file(NOTE[:-1]), "cut off"),
        (midi_file(event(0, 0xFF, 1, 100) + END), "cut off"),
        (midi_file(NOTE + END, num_tracks=2) + b"MTrkMTrk", "cut off"),
        (midi_file(NOTE + END, num_tracks=2) + b"\x01\x02\x03", "no track where track 2 of 2 should begin"),
        (midi_file(NOTE, num_tracks=2) + b"\x01\x02\x03", "track 1 is cut off, or longer than it says"),
        (midi_file(NOTE + END) + midi_file(NOTE + END), "a second header"),
        (midi_file()[:-1] + b"\xe0MTrk\xff\xff\xff\xff" + NOTE + END, "cut off: a track of 4294967295 bytes has 13"),
        (midi_file(NOTE + END + chunk(b"MTrk", NOTE + END), num_tracks=2), "track 1 is shorter than it says"),
        (midi_file(NOTE + END, midi_format=3), "format 3"),
        (midi_file(NOTE + END, division=0), "0 ticks per quarter"),
        (midi_file(NOTE + END, division=0x8001), "SMPTE division of 128"),
        (midi_file(tempo(0, 0) + NOTE + END), "a tempo of 0"),
        (midi_file(event(0, 0xFF, 0x51, 2, 7, 0) + NOTE + END), "tempo event of 2 bytes"),
        (midi_file(event(0, 60, 64) + END), "without a status byte"),
        (midi_file(event(0, 0x90, 200, 60) + END), "a note of key 200"),
        (midi_file(event(0, 0xF4) + NOTE + END), "a status byte of 0xf4"),
        (midi_file(b"\xff\xff\xff\xff\x7f\x90\x3c\x40" + END), "more than four bytes"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(midi, message):
    with pytest.raises(ValueError, match=message) as error:
        read_midi(midi)
    assert "\n" not in str(error.value)


def test_a_program_is_that_of_the_own_track_or_else_of_the_channel():
    note = event(0, 0x90, 60, 1) + END
    tracks = event(0, 0xC0, 10) + END, event(0, 0xC0, 72) + note, note, event(0, 0xC0, 43) + note
    assert read_midi(midi_file(*tracks)).program.tolist() == [72, 43, 43]


def test_values_above_127_count_as_127():
    events = event(0, 0xB0, 7, 255) + event(0, 0xC0, 200) + event(0, 0x90, 60, 254) + event(480, 0x80, 60, 144)
    read = read_midi(midi_file(events + END))
    assert [read.velocity.tolist(), read.program.tolist(), read.control_value.tolist()] == [[127], [127], [127]]
    assert read.end.tolist() == [480]


def test_what_is_larger_than_any_music_is_refused_unread(monkeypatch, tmp_path):
    monkeypatch.setattr(midi_reader, "MAX_BYTES", 1_000_000)
    (tmp_path / "large.mid").write_bytes(midi_file(NOTE + END) + bytes(1_000_000))
    with pytest.raises(ValueError, match="more than 1 MB"):
        read_midi(tmp_path / "large.mid")


def test_a_score_has_a_track_for_each_program_of_a_channel_and_what_the_channel_does():
    one = event(0, 0xFF, 3, 1, 65) + event(0, 0xC3, 40) + event(0, 0xB3, 64, 127) + event(0, 0xE3, 0, 65)
    one += event(0, 0x93, 60, 1) + event(480, 0x83, 60, 0) + event(0, 0xC3, 41) + event(0, 0x93, 62, 1)
    signatures = event(0, 0xFF, 0x58, 4, 3, 3, 24, 8) + event(0, 0xFF, 0x59, 2, 0xFD, 1)
    two = event(960, 0xB3, 64, 0) + event(0, 0x99, 35, 2) + event(480, 0x89, 35, 0)
    read = read_midi(midi_file(signatures + END, one + event(480, 0x83, 62, 0) + END, two + END))
    score = to_score(read, pedal=False)
    assert [(track.name, track.program, track.is_drum) for track in score.tracks] == [
        ("A", 40, False),
        ("A", 41, False),
        ("", 0, True),
    ]
    (signature,), (key,) = score.time_signatures, score.key_signatures
    assert [signature.numerator, signature.denominator, key.key, key.tonality] == [3, 8, -3, 1]
    first, second, drums = score.tracks
    assert [(pedal.time, pedal.duration) for pedal in first.pedals] == [(0, 960)]
    assert [(bend.time, bend.value) for bend in first.pitch_bends] == [(0, 128)]
    assert [(control.time, control.number, control.value) for control in first.controls] == [
        (0, 64, 127),
        (960, 64, 0),
    ]
    assert not second.controls
    assert not drums.controls
    assert [note.duration for track in score.tracks for note in track.notes] == [480, 480, 480]
    held = to_score(read)
    assert [note.duration for track in held.tracks for note in track.notes] == [960, 480, 480]
    assert not any(track.controls or track.pedals or track.pitch_bends for track in held.tracks)


def test_a_score_of_more_ticks_than_it_can_count_is_refused():
    midi = midi_file(b"".join(event(2**28 - 1, 0xB0, 7, 0) for _ in range(20)) + NOTE + END)
    with pytest.raises(ValueError, match=r"5368709580 ticks long; a score counts to 2147483647"):
        to_score(read_midi(midi))


def plain_notes(midi: bytes) -> list[list[int]]:
    """Read notes event by event with mido: tick, pitch, velocity, channel of every strike."""
    mido = pytest.importorskip("mido")
    strikes = []
    for track in mido.MidiFile(file=io.BytesIO(midi)).tracks:
        now = 0
        for message in track:
            now += message.time
            if message.type == "note_on" and message.velocity:
                strikes.append([now, message.note, message.velocity, message.channel])
    return strikes


def random_track(generator: random.Random, length: int) -> bytes:
    events = []
    for _ in range(length):
        kind = generator.choice([0x90, 0x90, 0x80, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0, 0xFF])
        ticks, first, second = (generator.randrange(limit) for limit in (100_000, 128, 128))
        if kind == 0xF0:
            events.append(event(ticks, 0xF0, 2, first, 0xF7))
        elif kind == 0xFF:
            events.append(event(ticks, 0xFF, 1, 2, first, second))
        else:
            data = (first,) if kind in (0xC0, 0xD0) else (first, second)
            events.append(event(ticks, kind | generator.randrange(16), *data))
    return b"".join(events) + END


def test_strikes_are_those_that_mido_reads():
    generator = random.Random(0)
    # Longer than a block, so that events lie across its border.
    for length in (1, 10, 1000, 80_000):
        midi = midi_file(random_track(generator, length), random_track(generator, 10))
        read = read_midi(midi)
        strikes = np.stack([read.start, read.pitch, read.velocity, read.channel], axis=1)
        assert strikes.tolist() == plain_notes(midi)


def test_any_bytes_are_read_or_refused():
    generator = random.Random(1)
    midi = midi_file(random_track(generator, 200), random_track(generator, 20))
    for _ in range(1000):
        mutated = bytearray(midi)
        for _ in range(generator.randrange(1, 8)):
            mutated[generator.randrange(len(midi))] = generator.randrange(256)
        try:
            read = read_midi(bytes(mutated[: generator.randrange(len(midi)) if generator.random() < 0.2 else None]))
        except ValueError:
            continue
        assert (hold(read) >= read.start).all()
