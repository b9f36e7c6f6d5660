"""MIDI files to notes, controllers and tempos: every channel, every track, events in the order of the file.

`read_midi` takes the bytes of a file and returns a `MidiFile`. What files say, and how it is read:

| what the file holds | how it is read |
|---|---|
| formats 0 and 1 | all tracks at once |
| format 2 | patterns one after the other, each from 120 quarters per minute on |
| RIFF (`.rmi`) | the MIDI file inside |
| a header that counts too few tracks | all tracks that are there |
| chunks of another type | passed over |
| several tempos at one tick | the last one of the file, in the order of its tracks |
| SMPTE division | seconds by frames; tempos play no part |
| NoteOn of velocity 0 | NoteOff |
| a key struck while it sounds (in its track and channel) | ends the sounding note, and is a note itself |
| as many NoteOffs as strikes of a key, overlapping | first struck, first ended |
| fewer NoteOffs than strikes | the last strike before a NoteOff ends with it |
| a note without a NoteOff | ends with its track |
| controllers 123 (all notes off), 120 (all sound off) | end the notes of their channel; 120 also held ones |
| controller 64 (sustain pedal) | belongs to its channel, whichever track it stands on |
| a pedal that never lifts | lifts with the last note of its channel, or with the last event of a pedal (64 to 67) |
| running status after SysEx and meta events | stays as it was |
| channel 10 | drums |

Refused with a ValueError of one line: what is no MIDI file, a chunk or an event that is cut off, a data byte of 128 or
more, a tempo of 0 or of another length than three bytes, a division of 0, a variable length of more than four bytes.

Shape letters: N notes, C controllers, T tempos, E events, B bytes.
"""

from typing import NamedTuple

import numpy as np
from symusic import Note, Score, Tempo, Track

NOTE_OFF, NOTE_ON, CONTROLLER, PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0
SYSEX, SYSEX_CONTINUED, META = 0xF0, 0xF7, 0xFF
META_TEMPO, META_END_OF_TRACK = 0x51, 0x2F
DRUM_CHANNEL = 9
DEFAULT_TEMPO = 500_000

ALL_SOUND_OFF, ALL_NOTES_OFF = 120, 123

# Bytes whose events are found at once; bounds the memory of large files.
BLOCK = 1 << 18
# A delta time, a status, a meta type and a length: the bytes that tell how long an event is.
LOOK_AHEAD = 16

# Data bytes after each status byte; those of SysEx and meta events are counted by the file.
DATA_BYTES = np.zeros(256, dtype=np.int64)
DATA_BYTES[0x80:0xF0] = 2
DATA_BYTES[0xC0:0xE0] = 1
DATA_BYTES[[0xF1, 0xF2, 0xF3]] = 1, 2, 1


class MidiFile(NamedTuple):
    """What a MIDI file holds, in ticks.

    Args:
        start, end: Ticks of the notes, in the order of tracks and of strikes within a track, `[N]`.
        pitch, velocity: 0..127, `[N]`.
        channel, track, program: 0..15, the number of the track, 0..127, `[N]`.
        control_tick, control_number, control_value, control_channel: Controllers in order of time, at one tick in the
            order of the file, `[C]`.
        tempo_tick, tempo: Microseconds per quarter from a tick on, in the same order, `[T]`.
        ticks_per_quarter: 0 under SMPTE division.
        seconds_per_tick: Under SMPTE division; otherwise 0.
    """

    start: np.ndarray
    end: np.ndarray
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
    """The channel events and tempos of one track, in the order of the file."""

    tick: np.ndarray
    status: np.ndarray
    data: np.ndarray
    tempo_tick: np.ndarray
    tempo: np.ndarray
    end: int


def read_midi(midi: bytes) -> MidiFile:
    """Read a MIDI file.

    Args:
        midi: The bytes of a MIDI file, or of a RIFF file around one.

    Returns:
        The notes, controllers and tempos.

    Raises:
        ValueError: It is no MIDI file, or a broken one.
    """
    chunks = _chunks(midi)
    header = next(chunks, b"")
    if len(header) < 6:
        raise ValueError(f"a MIDI header of {len(header)} bytes; it has 6")
    midi_format, num_tracks = int.from_bytes(header[:2], "big"), int.from_bytes(header[2:4], "big")
    if midi_format > 2:
        raise ValueError(f"MIDI format {midi_format}; known are 0, 1 and 2")
    ticks_per_quarter, seconds_per_tick = int.from_bytes(header[4:6], "big"), 0.0
    if ticks_per_quarter & 0x8000:
        frames, ticks_per_frame = 256 - header[4], header[5]
        if frames not in (24, 25, 29, 30) or not ticks_per_frame:
            raise ValueError(f"an SMPTE division of {frames} frames and {ticks_per_frame} ticks")
        ticks_per_quarter = 0
        seconds_per_tick = (1.001 / 30 if frames == 29 else 1 / frames) / ticks_per_frame
    elif not ticks_per_quarter:
        raise ValueError("0 ticks per quarter; at least 1 is needed")

    tracks, offset = [], 0
    for chunk in chunks:
        track = _read_track(chunk)
        if midi_format == 2:
            # Every pattern starts at its own time 0 and without the tempo of the one before.
            track = track._replace(
                tick=track.tick + offset,
                tempo_tick=np.append(offset, track.tempo_tick + offset),
                tempo=np.append(DEFAULT_TEMPO, track.tempo),
                end=track.end + offset,
            )
            offset = track.end
        tracks.append(track)
    if len(tracks) < num_tracks:
        raise ValueError(f"the header counts {num_tracks} tracks, but {len(tracks)} are there")

    number = np.concatenate([np.full(len(track.tick), index) for index, track in enumerate(tracks)] or [[]])
    tick, status, data, tempo_tick, tempo = (
        np.concatenate([track[field] for track in tracks]) if tracks else np.zeros((0, 2) if field == 2 else 0, int)
        for field in range(5)
    )
    track_end = np.array([track.end for track in tracks], dtype=np.int64)
    order = np.argsort(tempo_tick, kind="stable")
    tempo_tick, tempo = tempo_tick[order], tempo[order]

    is_control = status & 0xF0 == CONTROLLER
    at = np.flatnonzero(is_control)
    at = at[np.argsort(tick[at], kind="stable")]
    controls = tick[at], data[at, 0].astype(np.int64), data[at, 1].astype(np.int64), (status[at] & 15).astype(np.int64)
    notes = _pair(tick, status, data, number.astype(np.int64), track_end)
    notes = _end_by_controller(notes, controls, ALL_NOTES_OFF)
    program = _programs(tick, status, data, notes)
    return MidiFile(*notes[:6], program, *controls, tempo_tick, tempo, ticks_per_quarter, seconds_per_tick)


def hold(midi: MidiFile, pedal: int = 64, down: int = 64) -> np.ndarray:
    """Return the ticks at which the sound of the notes ends, held by the sustain pedal of their channel.

    Args:
        midi: The file.
        pedal: Number of the controller.
        down: Value from which on the pedal is down.

    Returns:
        End of each note, `[N]`.
    """
    end = midi.end.copy()
    for channel in np.unique(midi.channel):
        notes = np.flatnonzero(midi.channel == channel)
        at = np.flatnonzero((midi.control_channel == channel) & (midi.control_number == pedal))
        moves = midi.control_tick[at][np.diff(midi.control_value[at] >= down, prepend=False)]
        moves_before = np.searchsorted(moves, end[notes], side="right")
        # Pedals of recordings go on moving after the last note, and sound with it.
        pedals = (midi.control_channel == channel) & (midi.control_number >= 64) & (midi.control_number <= 67)
        last = max(end[notes].max(), midi.control_tick[pedals].max(initial=0))
        lift = np.append(moves, last)[moves_before]
        end[notes] = np.where(moves_before % 2 == 1, lift, end[notes])
    controls = midi.control_tick, midi.control_number, midi.control_value, midi.control_channel
    return _end_by_controller((midi.start, end, midi.pitch, midi.velocity, midi.channel), controls, ALL_SOUND_OFF)[1]


def to_score(midi: MidiFile) -> Score:
    """Write a file as a score: a track for each program and one for drums, notes as long as the pedals hold them.

    Args:
        midi: The file.

    Returns:
        The score, in ticks, with one tempo at a tick at most and without controllers.

    Raises:
        ValueError: The file has more ticks than a score can count.
    """
    end = hold(midi)
    last_tick = max(end.max(initial=0), midi.tempo_tick.max(initial=0))
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
    instrument = np.where(midi.is_drum, -1, midi.program)
    for each in np.unique(instrument).tolist():
        track = Track(program=max(each, 0), is_drum=each < 0)
        notes = instrument == each
        track.notes = Note.from_numpy(
            midi.start[notes].astype(np.int32),
            (end - midi.start)[notes].astype(np.int32),
            midi.pitch[notes].astype(np.int8),
            midi.velocity[notes].astype(np.int8),
            "tick",
        )
        score.tracks.append(track)
    return score


def _chunks(midi: bytes):
    """Yield the content of the header, then of each track."""
    if midi[:4] == b"RIFF" and midi[8:12] == b"RMID":
        at = 12
        while midi[at : at + 4] != b"data":
            if at + 8 > len(midi):
                raise ValueError("a RIFF file without MIDI in it")
            # RIFF counts from the low byte on, and fills up to an even length.
            length = int.from_bytes(midi[at + 4 : at + 8], "little")
            at += 8 + length + length % 2
        midi = midi[at + 8 : at + 8 + int.from_bytes(midi[at + 4 : at + 8], "little")]
    if midi[:4] != b"MThd":
        raise ValueError("not a MIDI file, which begins with MThd")
    at = 0
    while at + 8 <= len(midi):
        kind, length = midi[at : at + 4], int.from_bytes(midi[at + 4 : at + 8], "big")
        if kind in (b"MThd", b"MTrk"):
            if at + 8 + length > len(midi):
                raise ValueError(f"cut off: a chunk of {length} bytes has {len(midi) - at - 8}")
            if (kind == b"MThd") != (at == 0):
                raise ValueError("a second MIDI header")
            yield midi[at + 8 : at + 8 + length]
        at += 8 + length


def _read_track(chunk: bytes) -> _Track:
    """Find the events of a track and decode those of the channels."""
    content = np.frombuffer(chunk, dtype=np.uint8)
    now, running, at = 0, 0, 0
    parts, tempos = [], []
    while at < len(content):
        block = np.append(content[at : at + BLOCK + LOOK_AHEAD], np.zeros(LOOK_AHEAD, dtype=np.uint8))
        events, step = _event_starts(block, min(BLOCK, len(content) - at), int(DATA_BYTES[running]) or 2)
        delta, status_at = _variable_length(block, events)
        tick = now + np.cumsum(delta)
        is_explicit = block[status_at] >= 0x80
        status = block[status_at].astype(np.int64)
        # The status of the last channel event, for those that have none of their own.
        is_channel = is_explicit & (status < 0xF0)
        last = np.maximum.accumulate(np.where(is_channel, np.arange(len(events)), -1))
        inherited = np.where(last >= 0, status[last], running)
        status = np.where(is_explicit, status, inherited)
        if not status.all():
            raise ValueError("a track that begins without a status byte")
        running = int(inherited[-1])
        data_at = status_at + is_explicit

        ended = np.flatnonzero((status == META) & (block[data_at] == META_END_OF_TRACK))
        is_over = len(ended) > 0
        if not is_over and at + step > len(content):
            raise ValueError("cut off: the last event of a track is longer than its track")
        kept = np.flatnonzero(status < 0xF0)
        data = np.stack([block[data_at[kept]], block[data_at[kept] + 1]], axis=1)
        data[DATA_BYTES[status[kept]] < 2, 1] = 0
        if (data > 127).any():
            raise ValueError("a data byte of 128 or more")
        parts.append((tick[kept], status[kept].astype(np.uint8), data))
        for event in np.flatnonzero((status == META) & (block[data_at] == META_TEMPO)):
            first = at + int(data_at[event]) + 1
            if content[first] != 3:
                raise ValueError(f"a tempo event of {content[first]} bytes; it has 3")
            tempo = int.from_bytes(chunk[first + 1 : first + 4], "big")
            if not tempo:
                raise ValueError("a tempo of 0 microseconds per quarter")
            tempos.append((int(tick[event]), tempo))
        now = int(tick[-1])
        if is_over:
            break
        at += step
    tick, status, data = (
        (np.concatenate(field) for field in zip(*parts, strict=True))
        if parts
        else (np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros((0, 2), np.uint8))
    )
    tempo_tick, tempo = np.array(tempos, dtype=np.int64).reshape(-1, 2).T
    return _Track(tick, status, data, tempo_tick, tempo, now)


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
    goes_on = np.arange(len(at))
    for _ in range(4):
        byte = block[at[goes_on]]
        value[goes_on] = value[goes_on] << 7 | byte & 0x7F
        at[goes_on] += 1
        goes_on = goes_on[byte >= 0x80]
        if not len(goes_on):
            break
    value[goes_on] = -1
    return value, at


def _pair(tick, status, data, track, track_end):
    """Find the end of every note.

    Returns:
        Start, end, pitch, velocity, channel, track and the place of the strike among the events, each `[N]`.
    """
    kind = status & 0xF0
    at = np.flatnonzero((kind == NOTE_ON) | (kind == NOTE_OFF))
    key = (track[at] << 4 | status[at] & 15) << 7 | data[at, 0]
    order = np.argsort(key, kind="stable")
    at, key = at[order], key[order]
    is_on = (kind[at] == NOTE_ON) & (data[at, 1] > 0)
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
    next_time = np.where(has_next, time[np.minimum(following, len(at) - 1)], track_end[track[at[on]]])
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
    end = np.where(has_next, np.minimum(end, next_time), end)
    strike = at[on]
    back = np.argsort(strike)
    strike, end = strike[back], end[back]
    channel, pitch, velocity = (field.astype(np.int64) for field in (status[strike] & 15, *data[strike].T))
    return tick[strike], end, pitch, velocity, channel, track[strike], strike


def _end_by_controller(notes, controls, number):
    """End the notes of a channel at the first of a controller after their start."""
    start, end, channel = notes[0], notes[1].copy(), notes[4]
    control_tick, control_number, _, control_channel = controls
    for each in np.unique(control_channel[control_number == number]):
        ticks = control_tick[(control_number == number) & (control_channel == each)]
        mine = np.flatnonzero(channel == each)
        stop = np.append(ticks, np.iinfo(np.int64).max)[np.searchsorted(ticks, start[mine], side="right")]
        end[mine] = np.minimum(end[mine], stop)
    return notes[0], end, *notes[2:]


def _programs(tick, status, data, notes):
    """Return the program of each note: the last program change of its channel before it, on whichever track."""
    changes = np.flatnonzero(status & 0xF0 == PROGRAM_CHANGE)
    program = np.zeros(len(notes[0]), dtype=np.int64)
    for channel in np.unique(status[changes] & 15):
        at = changes[status[changes] & 15 == channel]
        at = at[np.argsort(tick[at], kind="stable")]
        mine = np.flatnonzero(notes[4] == channel)
        last = np.searchsorted(tick[at], notes[0][mine], side="right") - 1
        program[mine] = np.where(last >= 0, data[at[last], 0], 0)
    return program
