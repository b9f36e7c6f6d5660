"""Tests of `tokenization/midi_reader.py`: nothing that a file says is lost, and broken files are refused by name."""

import io
import random

import numpy as np
import pytest

from tokenization.midi_reader import hold, read_midi

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
        (midi_file(NOTE + END, NOTE + END, midi_format=2), [(0, 0.5), (0.5, 1)]),
        (midi_file(tempo(0, 10**6) + NOTE + END, NOTE + END, midi_format=2), [(0, 1), (1, 1.5)]),
        (midi_file(NOTE + END, NOTE + END, num_tracks=1), [(0, 0.5), (0, 0.5)]),
        (midi_file(b"".join(tempo(0, 10**6 - 10**4 * n) for n in range(51)) + NOTE + END), [(0, 0.5)]),
        (midi_file(tempo(0, 10**6) + END, tempo(0, 250_000) + END, NOTE + END), [(0, 0.25)]),
        (midi_file(NOTE + END, division=0xE7 << 8 | 40), [(0, 0.48)]),
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
        "patterns of format 2 follow each other",
        "every pattern has tempos of its own",
        "tracks that the header does not count are read",
        "the last of many tempos at one tick",
        "the last of two tracks' tempos at one tick",
        "SMPTE division",
        "running status goes on after SysEx",
        "running status goes on after a meta event",
        "running status of one data byte",
        "running status of another length",
        "ticks beyond 2 to the 32",
    ],
)
def test_reads(midi, right):
    assert seconds(midi) == [pytest.approx(note) for note in right]


def test_a_rmi_file_is_read_as_the_file_inside():
    midi = midi_file(NOTE + END)
    content = b"RMIDdata" + len(midi).to_bytes(4, "little") + midi
    assert seconds(b"RIFF" + len(content).to_bytes(4, "little") + content) == seconds(midi)


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
        (midi_file(NOTE), None),
        (midi_file(NOTE[:-1]), "cut off"),
        (midi_file(event(0, 0xFF, 1, 100) + END), "cut off"),
        (midi_file(NOTE + END, num_tracks=2), "counts 2 tracks, but 1"),
        (midi_file(NOTE + END, division=0), "0 ticks per quarter"),
        (midi_file(NOTE + END, division=0x8001), "SMPTE division of 128"),
        (midi_file(tempo(0, 0) + NOTE + END), "a tempo of 0"),
        (midi_file(event(0, 0xFF, 0x51, 2, 7, 0) + NOTE + END), "tempo event of 2 bytes"),
        (midi_file(event(0, 60, 64) + END), "without a status byte"),
        (midi_file(event(0, 0x90, 60, 200) + END), "data byte of 128"),
        (midi_file(b"\xff\xff\xff\xff\x7f\x90\x3c\x40" + END), "more than four bytes"),
    ],
)
def test_what_is_broken_is_refused_in_one_line(midi, message):
    if message is None:
        assert len(read_midi(midi).start) == 1
        return
    with pytest.raises(ValueError, match=message) as error:
        read_midi(midi)
    assert "\n" not in str(error.value)


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
