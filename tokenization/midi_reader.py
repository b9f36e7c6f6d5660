"""MIDI files to notes, controllers and tempos: every channel, every track, events in the order of the file.

`read_midi` reads a file, `hold` lets its notes sound as long as the pedals hold them, and `to_score` writes it as a
score. docs/library.md has the rules by which files are read, and tells what is refused.

Shape letters: N notes, C controllers, P pitch bends, T tempos, E events, B bytes.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from symusic import ControlChange, KeySignature, Note, Pedal, PitchBend, Score, Tempo, TimeSignature, Track

# What files of MIDI are called.
MIDI_SUFFIXES = (".mid", ".midi", ".smf", ".kar", ".rmi")

# Counted by two bytes of the header.
MAX_TRACKS = (1 << 16) - 1

# A day of piano at ten notes a second, eight bytes each. To read a byte takes some fifty bytes of memory.
MAX_BYTES = 8_000_000

NOTE_OFF, NOTE_ON, CONTROLLER, PROGRAM_CHANGE, PITCH_BEND = 0x80, 0x90, 0xB0, 0xC0, 0xE0
SYSEX, SYSEX_CONTINUED, META = 0xF0, 0xF7, 0xFF
META_TRACK_NAME, META_END_OF_TRACK, META_TEMPO = 0x03, 0x2F, 0x51
META_TIME_SIGNATURE, META_KEY_SIGNATURE = 0x58, 0x59
DRUM_CHANNEL = 9
DEFAULT_TEMPO = 500_000

SUSTAIN_PEDAL, ALL_SOUND_OFF, RESET_ALL_CONTROLLERS, ALL_NOTES_OFF = 64, 120, 121, 123
# Value of the pedal from which on it is down.
PEDAL_DOWN = 64
# Sustain, portamento, sostenuto and soft pedal. Recordings go on until the last notes have faded, and so do the pedals
# that are still moving: up to 8.9 seconds in MAESTRO. What comes later is a stray event.
PEDALS, FADING_SECONDS = (64, 65, 66, 67), 10
# Pitch bends stand among the controllers, with a number that no controller has.
PITCH_BEND_NUMBER = 128

# Bytes whose events are found at once; bounds the memory of large files.
BLOCK = 1 << 18
# A delta time, a status, a meta type and a length: the bytes that tell how long an event is.
LOOK_AHEAD = 16

# Data bytes after each status byte; those of SysEx and meta events are counted by the file.
DATA_BYTES = np.zeros(256, dtype=np.int64)
DATA_BYTES[0x80:0xF0] = 2
DATA_BYTES[0xC0:0xE0] = 1
DATA_BYTES[[0xF1, 0xF2, 0xF3]] = 1, 2, 1

# System messages that the standard leaves undefined: what holds one is out of step.
UNDEFINED = (0xF4, 0xF5, 0xF9, 0xFD)

KEPT_METAS = (META_TRACK_NAME, META_TEMPO, META_TIME_SIGNATURE, META_KEY_SIGNATURE)


class MidiFile(NamedTuple):
    """What a MIDI file holds, in ticks.

    Args:
        start, end: Ticks of the notes, in the order of tracks and of strikes within a track, `[N]`.
        written_end: The ends by their NoteOffs, which may lie after the next strike of the key, `[N]`.
        pitch, velocity: 0..127, `[N]`.
        channel, track, program: 0..15, the number of the track, 0..127, `[N]`.
        control_tick, control_number, control_value, control_channel: Controllers, and pitch bends as number
            PITCH_BEND_NUMBER with values -8192..8191, in order of time, at one tick in that of the file, `[C]`.
        tempo_tick, tempo: Microseconds per quarter from a tick on, in the same order, `[T]`.
        time_signatures: Tick, numerator and denominator of each.
        key_signatures: Tick, sharps (flats below 0) and whether it is minor, of each.
        track_names: One for each track, empty if it has none.
        ticks_per_quarter: 0 under SMPTE division.
        seconds_per_tick: Under SMPTE division; otherwise 0.
    """

    start: np.ndarray
    end: np.ndarray
    written_end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    channel: np.ndarray
    track: np.ndarray
    program: np.ndarray
    control_tick: np.ndarray
    control_number: np.ndarray
    control_value: np.ndarray
    control_channel: np.ndarray
    tempo_tick: np.ndarray
    tempo: np.ndarray
    time_signatures: list[tuple[int, int, int]]
    key_signatures: list[tuple[int, int, int]]
    track_names: list[str]
    ticks_per_quarter: int
    seconds_per_tick: float

    @property
    def is_drum(self) -> np.ndarray:
        """Which notes are drums: those of channel 10, `[N]`."""
        return self.channel == DRUM_CHANNEL

    def to_seconds(self, ticks: np.ndarray) -> np.ndarray:
        """Convert ticks to seconds; before the first tempo, 120 quarters per minute."""
        if self.seconds_per_tick:
            return ticks * self.seconds_per_tick
        since = np.append(0, self.tempo_tick)
        seconds_per_tick = np.append(DEFAULT_TEMPO, self.tempo) / (1e6 * self.ticks_per_quarter)
        seconds = np.append(0, np.cumsum(np.diff(since) * seconds_per_tick[:-1]))
        at = np.searchsorted(self.tempo_tick, ticks, side="right")
        return seconds[at] + (ticks - since[at]) * seconds_per_tick[at]


class _Track(NamedTuple):
    """What one track holds, in the order of the file.

    Args:
        tick, status, data: The events of the channels, `[E]`, `[E]` and `[E, 2]`.
        metas: Tick, type and content of the meta events that are kept.
        end: Tick of its end.
        length: Bytes up to its event End of Track; None if it has none.
    """

    tick: np.ndarray
    status: np.ndarray
    data: np.ndarray
    metas: list[tuple[int, int, bytes]]
    end: int
    length: int | None


_NO_EVENTS = _Track(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros((0, 2), np.uint8), [], 0, None)


def read_midi(music: bytes | bytearray | str | os.PathLike) -> MidiFile:
    """Read a MIDI file.

    Args:
        music: The bytes of a MIDI file, or of a RIFF file around one; or its path.

    Returns:
        The notes, controllers and tempos.

    Raises:
        ValueError: It is no MIDI file, or a broken one.
        OSError: There is no such file.
    """
    if isinstance(music, (str, os.PathLike)):
        with Path(music).open("rb") as file:
            music = file.read(MAX_BYTES + 1)
    midi = bytes(music)
    if len(midi) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 1_000_000} MB, and so no music")
    if midi[:4] == b"RIFF" and midi[8:12] == b"RMID":
        midi = _inside_riff(midi)
    if midi[:4] != b"MThd":
        raise ValueError("not a MIDI file, which begins with MThd")
    try:
        return _read(midi)
    except ValueError as error:
        raise ValueError(f"a broken MIDI file: {error}") from None


def hold(midi: MidiFile) -> np.ndarray:
    """Return the ticks at which the sound of the notes ends, held by the sustain pedal of their channel, `[N]`."""
    end = midi.end.copy()
    for channel in np.unique(midi.channel).tolist():
        notes = np.flatnonzero(midi.channel == channel)
        down, lift = _pedal(midi, channel)
        held = np.append(0, lift)[np.searchsorted(down, end[notes], side="right")]
        end[notes] = np.maximum(end[notes], held)
        is_stop = (midi.control_channel == channel) & (midi.control_number == ALL_SOUND_OFF)
        stops = np.append(midi.control_tick[is_stop], np.iinfo(np.int64).max)
        end[notes] = np.minimum(end[notes], stops[np.searchsorted(stops, midi.start[notes], side="right")])
    return end


def _pedal(midi: MidiFile, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ticks at which the sustain pedal of a channel goes down, and those at which it lifts, as many."""
    is_pedal = np.isin(midi.control_number, (SUSTAIN_PEDAL, RESET_ALL_CONTROLLERS))
    at = np.flatnonzero(is_pedal & (midi.control_channel == channel))
    is_down = (midi.control_number[at] == SUSTAIN_PEDAL) & (midi.control_value[at] >= PEDAL_DOWN)
    moves = midi.control_tick[at][np.diff(is_down, prepend=False)]
    if len(moves) % 2:
        last_note = midi.end[midi.channel == channel].max(initial=0)
        is_any_pedal = (midi.control_channel == channel) & np.isin(midi.control_number, PEDALS)
        seconds = midi.to_seconds(midi.control_tick) - midi.to_seconds(last_note)
        last_pedal = midi.control_tick[is_any_pedal & (seconds <= FADING_SECONDS)].max(initial=0)
        moves = np.append(moves, max(moves[-1], last_note, last_pedal))
    return moves[::2], moves[1::2]


def to_score(midi: MidiFile, pedal: bool = True) -> Score:
    """Write a file as a score, with a track for each program that a channel has in a track of the file.

    Args:
        midi: The file.
        pedal: Whether notes last as long as the pedals hold them; then the score has no controllers. Otherwise they
            are as written, and the controllers of a channel stand in its first track.

    Returns:
        The score, in ticks, with one tempo at a tick at most.

    Raises:
        ValueError: The file has more ticks than a score can count.
    """
    end = hold(midi) if pedal else midi.written_end
    ticks = (field.max(initial=0) for field in (end, midi.tempo_tick, midi.control_tick))
    signatures = (tick for tick, *_ in midi.time_signatures + midi.key_signatures)
    last_tick = max(*ticks, *signatures, 0)
    if last_tick >= 2**31:
        raise ValueError(f"{last_tick} ticks long; a score counts to {2**31 - 1}")
    if midi.seconds_per_tick:
        # A second is a quarter of this score, or 1.001 seconds where 30 frames are 1.001 seconds.
        score = Score(round(1 / midi.seconds_per_tick))
        tempos = [(0, round(1e6 * midi.seconds_per_tick * score.ticks_per_quarter))]
        if abs(score.ticks_per_quarter * midi.seconds_per_tick - 1) > 1e-9:
            score = Score(round(1.001 / midi.seconds_per_tick))
            tempos = [(0, 1_001_000)]
    else:
        score = Score(midi.ticks_per_quarter)
        is_last = np.diff(midi.tempo_tick, append=-1) != 0
        tempos = zip(midi.tempo_tick[is_last].tolist(), midi.tempo[is_last].tolist(), strict=True)
    for tick, microseconds in tempos:
        tempo = Tempo(tick, 120)
        tempo.mspq = microseconds
        score.tempos.append(tempo)
    score.time_signatures.extend([TimeSignature(*signature) for signature in midi.time_signatures])
    score.key_signatures.extend([KeySignature(*signature) for signature in midi.key_signatures])

    # One integer for track, channel and program.
    group = (midi.track << 4 | midi.channel) << 7 | midi.program
    order = np.argsort(group, kind="stable")
    with_controls = set()
    for notes in np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else ():
        each = int(group[notes[0]])
        channel = each >> 7 & 15
        track = Track(midi.track_names[each >> 11], each & 127, channel == DRUM_CHANNEL)
        track.notes = Note.from_numpy(
            midi.start[notes].astype(np.int32),
            (end - midi.start)[notes].astype(np.int32),
            midi.pitch[notes].astype(np.int8),
            midi.velocity[notes].astype(np.int8),
            "tick",
        )
        if not pedal and channel not in with_controls:
            with_controls.add(channel)
            _add_controls(track, midi, channel)
        score.tracks.append(track)
    return score


def _add_controls(track: Track, midi: MidiFile, channel: int) -> None:
    """Write the controllers, pedals and pitch bends of a channel to a track of a score."""
    down, lift = _pedal(midi, channel)
    track.pedals = Pedal.from_numpy(down.astype(np.int32), (lift - down).astype(np.int32), "tick")
    is_bend = midi.control_number == PITCH_BEND_NUMBER
    at = (midi.control_channel == channel) & ~is_bend
    tick, number, value = (field[at] for field in (midi.control_tick, midi.control_number, midi.control_value))
    track.controls = ControlChange.from_numpy(
        tick.astype(np.int32), number.astype(np.uint8), value.astype(np.uint8), "tick"
    )
    at = (midi.control_channel == channel) & is_bend
    tick, value = midi.control_tick[at].astype(np.int32), midi.control_value[at].astype(np.int32)
    track.pitch_bends = PitchBend.from_numpy(tick, value, "tick")


def _inside_riff(midi: bytes) -> bytes:
    """Return the MIDI file inside a RIFF file."""
    at = 12
    while midi[at : at + 4] != b"data":
        if at + 8 > len(midi):
            raise ValueError("a RIFF file without MIDI in it")
        # RIFF counts from the low byte on, and fills up to an even length.
        length = int.from_bytes(midi[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return midi[at + 8 : at + 8 + int.from_bytes(midi[at + 4 : at + 8], "little")]


def _read(midi: bytes) -> MidiFile:
    """Read a file that begins with MThd."""
    header_length = int.from_bytes(midi[4:8], "big")
    header = midi[8 : 8 + header_length]
    if len(header) < 6:
        raise ValueError(f"a header of {len(header)} bytes; it has 6")
    midi_format, num_tracks, ticks_per_quarter = (int.from_bytes(header[at : at + 2], "big") for at in (0, 2, 4))
    if midi_format > 2:
        raise ValueError(f"format {midi_format}; known are 0, 1 and 2")
    seconds_per_tick = 0.0
    if ticks_per_quarter & 0x8000:
        frames, ticks_per_frame = 256 - header[4], header[5]
        if frames not in (24, 25, 29, 30) or not ticks_per_frame:
            raise ValueError(f"an SMPTE division of {frames} frames and {ticks_per_frame} ticks")
        ticks_per_quarter = 0
        seconds_per_tick = (1.001 / 30 if frames == 29 else 1 / frames) / ticks_per_frame
    elif not ticks_per_quarter:
        raise ValueError("0 ticks per quarter; at least 1 is needed")

    tracks = _read_tracks(midi, 8 + header_length, num_tracks)
    if midi_format == 2:
        # Every pattern starts at its own time 0 and without the tempo of the one before.
        offset = 0
        default = DEFAULT_TEMPO.to_bytes(3, "big")
        for index, track in enumerate(tracks):
            metas = [(tick + offset, *meta) for tick, *meta in [(0, META_TEMPO, default), *track.metas]]
            tracks[index] = track._replace(tick=track.tick + offset, metas=metas, end=track.end + offset)
            offset = tracks[index].end

    number = np.repeat(np.arange(len(tracks), dtype=np.int32), [len(track.tick) for track in tracks])
    tick, status, data = (np.concatenate([track[field] for track in [_NO_EVENTS, *tracks]]) for field in range(3))
    kind, channel = status & 0xF0, status & 15
    metas = sorted((meta for track in tracks for meta in track.metas), key=lambda meta: meta[0])
    tempo_tick, tempo = _tempos(metas)

    def in_time(event: np.ndarray) -> np.ndarray:
        at = np.flatnonzero(event)
        return at[np.argsort(tick[at], kind="stable")]

    at = in_time((kind == CONTROLLER) | (kind == PITCH_BEND))
    is_bend = kind[at] == PITCH_BEND
    first, second = data[at].astype(np.int64).T
    control_number = np.where(is_bend, PITCH_BEND_NUMBER, first)
    control_value = np.where(is_bend, (second << 7 | first) - 8192, second)
    controls = tick[at], control_number, control_value, channel[at].astype(np.int64)
    is_stop = (control_number == ALL_NOTES_OFF) | (control_number == ALL_SOUND_OFF)
    stops = {each: tick[at][is_stop & (channel[at] == each)] for each in np.unique(channel[at][is_stop]).tolist()}

    track_end = np.array([track.end for track in tracks], dtype=np.int64)
    strike, written_end, end = _pair(tick, kind, channel, data, number, track_end, stops)
    at = in_time(kind == PROGRAM_CHANGE)
    changes = tick[at], data[at, 0].astype(np.int64), channel[at], number[at]
    pitch, velocity = data[strike].astype(np.int64).T
    return MidiFile(
        tick[strike],
        end,
        written_end,
        pitch,
        velocity,
        channel[strike].astype(np.int64),
        number[strike].astype(np.int64),
        _programs(changes, tick[strike], channel[strike], number[strike]),
        *controls,
        tempo_tick,
        tempo,
        # A numerator of 0 is no time, and a score writes denominators up to 128.
        [
            (tick, content[0], 1 << content[1])
            for tick, kind, content in metas
            if kind == META_TIME_SIGNATURE and len(content) > 1 and content[0] and content[1] < 8
        ],
        [
            (tick, int.from_bytes(content[:1], "big", signed=True), content[1])
            for tick, kind, content in metas
            if kind == META_KEY_SIGNATURE and len(content) > 1 and content[1] < 2
        ],
        [_name(track) for track in tracks],
        ticks_per_quarter,
        seconds_per_tick,
    )


def _read_tracks(midi: bytes, at: int, num_tracks: int) -> list[_Track]:
    """Read the tracks of a file.

    Args:
        midi: The file.
        at: Where the header ends.
        num_tracks: How many tracks the header counts. Those that are there are read, be they more or fewer.
    """
    tracks = []
    while _is_chunk(midi, at):
        kind, length = midi[at : at + 4], int.from_bytes(midi[at + 4 : at + 8], "big")
        start, at = at + 8, at + 8 + length
        if kind == b"MThd":
            raise ValueError("a second header")
        if kind != b"MTrk":
            continue
        # Where bytes were lost on the way, as in files copied as text, tracks are shorter than they say.
        if at > len(midi):
            raise ValueError(f"cut off: a track of {length} bytes has {len(midi) - start}")
        track = _read_track(midi[start:at])
        if track.length is None and not (at == len(midi) or _is_chunk(midi, at)):
            raise ValueError(f"track {len(tracks) + 1} is cut off, or longer than it says")
        if track.length is not None and midi[start + track.length : at].startswith(b"MTrk"):
            raise ValueError(f"track {len(tracks) + 1} is shorter than it says: another begins in it")
        tracks.append(track)
        if len(tracks) > MAX_TRACKS:
            raise ValueError(f"more than {MAX_TRACKS:,} tracks, as many as a header can count")
    # Files of old systems are filled up.
    if len(tracks) < num_tracks and midi[at:].strip(b"\0\x1a"):
        raise ValueError(f"no track where track {len(tracks) + 1} of {num_tracks} should begin")
    return tracks


def _is_chunk(midi: bytes, at: int) -> bool:
    """Tell whether a chunk of the file begins here."""
    kind, length = midi[at : at + 4], int.from_bytes(midi[at + 4 : at + 8], "big")
    return len(midi) - at >= 8 and (
        kind in (b"MThd", b"MTrk") or (kind.isascii() and kind.isalnum() and at + 8 + length <= len(midi))
    )


def _read_track(chunk: bytes) -> _Track:
    """Find the events of a track and decode those that are kept."""
    content = np.frombuffer(chunk, dtype=np.uint8)
    now, running, at, length = 0, 0, 0, None
    parts, metas = [_NO_EVENTS[:3]], []
    while at < len(content):
        block = np.append(content[at : at + BLOCK + LOOK_AHEAD], np.zeros(LOOK_AHEAD, dtype=np.uint8))
        events, step = _event_starts(block, min(BLOCK, len(content) - at), int(DATA_BYTES[running]) or 2)
        delta, status_at = _variable_length(block, events)
        tick = now + np.cumsum(delta)
        is_explicit = block[status_at] >= 0x80
        status = block[status_at].astype(np.int64)
        # The status of the last channel event, for those that have none of their own.
        is_channel = is_explicit & (status < SYSEX)
        last = np.maximum.accumulate(np.where(is_channel, np.arange(len(events)), -1))
        inherited = np.where(last >= 0, status[last], running)
        status = np.where(is_explicit, status, inherited)
        if not status.all():
            raise ValueError("a track that begins without a status byte")
        if np.isin(status, UNDEFINED).any():
            raise ValueError(f"a status byte of {status[np.isin(status, UNDEFINED)][0]:#x}, which means nothing")
        running = int(inherited[-1])
        data_at = status_at + is_explicit

        ended = np.flatnonzero((status == META) & (block[data_at] == META_END_OF_TRACK))
        if len(ended):
            size, first = _variable_length(block, data_at[ended] + 1)
            step = int(first[0] + size[0])
            length = min(at + step, len(content))
        elif at + step > len(content):
            raise ValueError("cut off: the last event of a track is longer than its track")
        kept = np.flatnonzero(status < SYSEX)
        data = np.stack([block[data_at[kept]], block[data_at[kept] + 1]], axis=1)
        data[DATA_BYTES[status[kept]] < 2, 1] = 0
        is_key = status[kept] < NOTE_ON + 16
        if (data[is_key, 0] > 127).any():
            raise ValueError(f"a note of key {data[is_key, 0].max()}; keys are 0 to 127")
        parts.append((tick[kept], status[kept].astype(np.uint8), np.minimum(data, 127)))
        is_meta = (status == META) & np.isin(block[data_at], KEPT_METAS)
        events = np.flatnonzero(is_meta)
        size, first = _variable_length(block, data_at[events] + 1)
        for event, start, stop in zip(
            events.tolist(), (at + first).tolist(), (at + first + size).tolist(), strict=True
        ):
            metas.append((int(tick[event]), int(block[data_at[event]]), chunk[start:stop]))
        now = int(tick[-1])
        if length is not None:
            break
        at += step
    return _Track(*(np.concatenate(field) for field in zip(*parts, strict=True)), metas, now, length)


def _event_starts(block: np.ndarray, length: int, data_bytes: int) -> tuple[np.ndarray, int]:
    """Find where events begin.

    For every byte, compute where the next event would begin if one began here: once for a running status of one data
    byte and once for two. Then only these pointers need to be followed.

    Args:
        block: The bytes, with LOOK_AHEAD more, `[B]`.
        length: Events that begin before it are wanted.
        data_bytes: Data bytes of the running status, 1 or 2.

    Returns:
        The starts, `[E]`, and where the next event begins, at least `length`.
    """
    every = np.arange(length)
    # The first byte below 128 from each byte on: the last one of a variable length.
    is_last = block < 0x80
    ends = np.where(is_last, np.arange(len(block)), len(block))
    last = np.minimum.accumulate(ends[::-1])[::-1]
    status_at = last[:length] + 1
    is_broken = (status_at - every > 4) | (status_at + 1 >= len(block))
    status_at = np.where(is_broken, every, status_at)
    status = block[status_at]
    is_explicit = status >= 0x80
    # Explicit events lead to the same place from both running statuses; pointers are 2 * place + (data bytes - 1).
    is_counted = (status == SYSEX) | (status == SYSEX_CONTINUED) | (status == META)
    after = status_at + 1 + DATA_BYTES[status]
    counted = np.flatnonzero(is_counted & ~is_broken)
    pointers = np.empty((length, 2), dtype=np.int64)
    if len(counted):
        at = np.minimum(status_at[counted] + 1 + (status[counted] == META), len(block) - LOOK_AHEAD)
        size, first = _variable_length(block, at, strict=False)
        after[counted] = np.where(size < 0, -1, first + size)
    is_channel = is_explicit & (status < SYSEX)
    for index in range(2):
        following = np.where(is_explicit, after, status_at + index + 1)
        state = np.where(is_channel, DATA_BYTES[status] - 1, index)
        is_wrong = is_broken | (following < 0)
        is_end = (status == META) & (block[np.minimum(status_at + 1, len(block) - 1)] == META_END_OF_TRACK)
        following = np.where(is_end, len(block), following)
        pointers[:, index] = np.where(is_wrong, -1, 2 * following + state)
    pointers = pointers.ravel().tolist()
    starts, place, stop = [], data_bytes - 1, 2 * length
    append = starts.append
    while 0 <= place < stop:
        append(place)
        place = pointers[place]
    if place < 0:
        raise ValueError("a variable length of more than four bytes, or one that is cut off")
    return np.array(starts, dtype=np.int64) >> 1, place >> 1


def _variable_length(block: np.ndarray, at: np.ndarray, strict: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Read variable lengths: seven bits a byte, the last byte below 128.

    Returns:
        The values, -1 for those of more than four bytes, and where the next byte is.
    """
    value, at = np.zeros(len(at), dtype=np.int64), at.copy()
    continued = np.arange(len(at))
    for _ in range(4):
        byte = block[at[continued]]
        value[continued] = value[continued] << 7 | byte & 0x7F
        at[continued] += 1
        continued = continued[byte >= 0x80]
        if not len(continued):
            break
    value[continued] = -1
    return value, at


def _tempos(metas: list[tuple[int, int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ticks and the tempos of meta events in order of time, `[T]` each."""
    tempos = [(tick, content) for tick, kind, content in metas if kind == META_TEMPO]
    for _, content in tempos:
        if len(content) != 3:
            raise ValueError(f"a tempo event of {len(content)} bytes; it has 3")
        if not any(content):
            raise ValueError("a tempo of 0 microseconds per quarter")
    ticks = np.array([tick for tick, _ in tempos], dtype=np.int64)
    return ticks, np.array([int.from_bytes(content, "big") for _, content in tempos], dtype=np.int64)


def _name(track: _Track) -> str:
    """Return the name of a track; empty if it has none."""
    names = [content for _, kind, content in track.metas if kind == META_TRACK_NAME]
    return names[-1].decode("utf-8", "replace") if names else ""


def _pair(tick, kind, channel, data, track, track_end, stops):
    """Find the end of every note.

    Args:
        tick, kind, channel, data, track: The events of all tracks, one after the other, `[E]`, data `[E, 2]`.
        track_end: Ticks at which the tracks end.
        stops: For channels with controllers that end all notes, the ticks of these.

    Returns:
        The place of each strike among the events, the tick at which the note ends, and the same where the next strike
        of the key has not ended it before, `[N]` each.
    """
    at = np.flatnonzero((kind == NOTE_ON) | (kind == NOTE_OFF))
    is_on = (kind[at] == NOTE_ON) & (data[at, 1] > 0)
    key = (track[at].astype(np.int64) << 4 | channel[at]) << 7 | data[at, 0]
    limit = track_end[track[at]]
    if stops:
        # Notes before a controller that ends them have nothing to do with what comes after it.
        most = max(map(len, stops.values())) + 1
        key *= most
        for each, ticks in stops.items():
            mine = np.flatnonzero(channel[at] == each)
            time = tick[at[mine]]
            period = np.where(is_on[mine], *(np.searchsorted(ticks, time, side=side) for side in ("right", "left")))
            key[mine] += period
            limit[mine] = np.minimum(limit[mine], np.append(ticks, np.iinfo(np.int64).max)[period])
    order = np.argsort(key, kind="stable")
    at, key, is_on, limit = at[order], key[order], is_on[order], limit[order]
    time = tick[at]
    is_first = np.diff(key, prepend=-1) != 0
    group = np.cumsum(is_first) - 1
    # How many strikes still wait for a NoteOff; superfluous NoteOffs do not count. Groups go down by more than any sum
    # can rise, so that the running minimum starts anew in each.
    total = np.cumsum(np.where(is_on, 1, -1))
    before = (total - np.where(is_on, 1, -1))[is_first]
    total = total - before[group] if len(group) else total
    low = np.minimum.accumulate(np.minimum(total, 0) - group * (2 * len(at) + 1)) + group * (2 * len(at) + 1)
    waiting = total - low

    on = np.flatnonzero(is_on)
    group_stop = np.append(np.flatnonzero(is_first)[1:], len(at))[group[on]] if len(on) else on
    # The next strike of the key, or the end of its events.
    following = np.minimum(np.append(on[1:], len(at)), group_stop)
    num_offs = following - on - 1
    last_off = np.minimum(on + np.minimum(waiting[on], num_offs), len(at) - 1)
    has_next = following < group_stop
    next_time = np.where(has_next, time[np.minimum(following, len(at) - 1)], limit[on])
    # A NoteOff at the tick of a second strike is that of the first one.
    belongs = (num_offs > 0) & ((time[last_off] > time[on]) | (waiting[on] < 2))
    end = np.where(belongs, time[last_off], next_time)

    # Where every strike gets its NoteOff until none waits, the first NoteOff is that of the first strike, and so on.
    begins = is_first | (np.append(0, waiting[:-1]) == 0)
    period = np.cumsum(begins) - 1
    is_last = np.append(begins[1:], True)[: len(at)]
    is_balanced = (waiting[is_last] == 0)[period] if len(at) else is_on
    is_due = ~is_on & ~begins
    end[is_balanced[on]] = time[is_balanced & is_due]
    strike = at[on]
    back = np.argsort(strike)
    return strike[back], end[back], np.where(has_next, np.minimum(end, next_time), end)[back]


def _programs(changes, tick, channel, track):
    """Return the program of events: the last change for their channel, on their own track if that has any, `[N]`."""
    change_tick, number, change_channel, change_track = changes
    ticks = np.unique(np.append(change_tick, tick))
    change_place, place = np.searchsorted(ticks, change_tick), np.searchsorted(ticks, tick)
    program = np.zeros(len(tick), dtype=np.int64)
    if not len(number):
        return program
    for change_key, key in (
        (change_channel, channel),
        (change_track.astype(np.int64) << 4 | change_channel, track.astype(np.int64) << 4 | channel),
    ):
        change_at, at = (each.astype(np.int64) * len(ticks) for each in (change_key, key))
        order = np.argsort(change_at + change_place, kind="stable")
        last = np.searchsorted((change_at + change_place)[order], at + place, side="right") - 1
        is_found = (last >= 0) & (change_key[order][last] == key)
        program = np.where(is_found, number[order][last], program)
    return program
