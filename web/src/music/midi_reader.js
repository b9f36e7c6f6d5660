/**
 * MIDI files to notes on the grid, as `tokenization/midi_reader.py` and `performance.read_notes` read them: every channel
 * and track, the sustain pedal folded into the notes, any tempo map. docs/library.md has the rules.
 *
 * Errors are sentences that say what is wrong with the file.
 */

import { order, roundToSteps } from './performance.js';

/** @typedef {import('../engine/model.js').Model} Model */
/** @typedef {import('../engine/model.js').MidiConstants} MidiConstants */
/** @typedef {{tick: number, status: number, first: number, second: number, track: number}} ChannelEvent */
/** @typedef {{tick: number, kind: number, content: Uint8Array}} MetaEvent */
/** @typedef {{start: number, end: number, pitch: number, velocity: number, channel: number, track: number, program: number}} RawNote */

const MAX_TICKS = 2 ** 31;

/**
 * Read a MIDI file as a piano plays it.
 * @param {Uint8Array} bytes
 * @param {Model} model
 * @returns {import('./performance.js').Notes}
 */
export function readMidi(bytes, model) {
  const constants = model.midi;
  if (bytes.length > constants.MAX_BYTES) {
    throw new RangeError(`it has more than ${Math.floor(constants.MAX_BYTES / 1e6)} MB, and so is no music`);
  }
  let midi = bytes;
  if (name(midi, 0) === 'RIFF' && name(midi, 8) === 'RMID') midi = insideRiff(midi);
  if (name(midi, 0) !== 'MThd') throw new RangeError('it is not a MIDI file, which begins with MThd');
  const file = readFile(midi, constants);
  return playedNotes(file, model);
}

/**
 * Four bytes as text.
 * @param {Uint8Array} bytes
 * @param {number} at
 */
function name(bytes, at) {
  return String.fromCharCode(...bytes.subarray(at, at + 4));
}

/**
 * A number of up to four bytes, the highest first; bytes that are missing do not count.
 * @param {Uint8Array} bytes
 * @param {number} at
 * @param {number} length
 */
function big(bytes, at, length) {
  return bytes.subarray(at, at + length).reduce((total, byte) => total * 256 + byte, 0);
}

/** @param {Uint8Array} midi */
function insideRiff(midi) {
  /** @param {number} at */
  const little = (at) => [...midi.subarray(at, at + 4)].reverse().reduce((total, byte) => total * 256 + byte, 0);
  let at = 12;
  while (name(midi, at) !== 'data') {
    if (at + 8 > midi.length) throw new RangeError('it is a RIFF file without MIDI in it');
    const length = little(at + 4);
    at += 8 + length + (length % 2);
  }
  return midi.subarray(at + 8, at + 8 + little(at + 4));
}

/**
 * Read a file that begins with MThd.
 * @param {Uint8Array} midi
 * @param {MidiConstants} constants
 */
function readFile(midi, constants) {
  const headerLength = big(midi, 4, 4);
  const header = midi.subarray(8, 8 + headerLength);
  if (header.length < 6) throw new RangeError(`it is broken: a header of ${header.length} bytes; it has 6`);
  const [format, numTracks] = [big(header, 0, 2), big(header, 2, 2)];
  let ticksPerQuarter = big(header, 4, 2);
  let secondsPerTick = 0;
  if (format > 2) throw new RangeError(`it is broken: format ${format}; known are 0, 1 and 2`);
  if (ticksPerQuarter & 0x8000) {
    const [frames, ticksPerFrame] = [256 - header[4], header[5]];
    if (![24, 25, 29, 30].includes(frames) || !ticksPerFrame) {
      throw new RangeError(`it is broken: an SMPTE division of ${frames} frames and ${ticksPerFrame} ticks`);
    }
    ticksPerQuarter = 0;
    secondsPerTick = (frames === 29 ? 1.001 / 30 : 1 / frames) / ticksPerFrame;
  } else if (!ticksPerQuarter) {
    throw new RangeError('it is broken: 0 ticks per quarter; at least 1 is needed');
  }

  const tracks = readTracks(midi, 8 + headerLength, numTracks, constants);
  /** @type {ChannelEvent[]} */
  const events = [];
  /** @type {MetaEvent[]} */
  const metas = [];
  const ends = [];
  let offset = 0;
  for (const [index, track] of tracks.entries()) {
    // Every pattern of format 2 starts at its own time 0 and without the tempo of the one before.
    if (format === 2) {
      const tempo = constants.DEFAULT_TEMPO;
      const content = Uint8Array.of(tempo >> 16, (tempo >> 8) & 255, tempo & 255);
      metas.push({ tick: offset, kind: constants.META_TEMPO, content });
    }
    for (const event of track.events) events.push({ ...event, tick: event.tick + offset, track: index });
    for (const meta of track.metas) metas.push({ ...meta, tick: meta.tick + offset });
    ends.push(track.end + offset);
    if (format === 2) offset += track.end;
  }
  metas.sort((a, b) => a.tick - b.tick);
  const tempos = metas.filter(({ kind }) => kind === constants.META_TEMPO).map(({ tick, content }) => {
    if (content.length !== 3) throw new RangeError(`it is broken: a tempo event of ${content.length} bytes; it has 3`);
    const tempo = big(content, 0, 3);
    if (!tempo) throw new RangeError('it is broken: a tempo of 0 microseconds per quarter');
    return { tick, tempo };
  });
  const controls = events
    .filter(({ status }) => (status & 0xf0) === constants.CONTROLLER)
    .map(({ tick, status, first, second }) => ({ tick, channel: status & 15, number: first, value: second }))
    .sort((a, b) => a.tick - b.tick);
  const bends = events.filter(({ status }) => (status & 0xf0) === constants.PITCH_BEND);
  const stops = new Map();
  for (const { tick, channel, number } of controls) {
    if (number !== constants.ALL_NOTES_OFF && number !== constants.ALL_SOUND_OFF) continue;
    stops.set(channel, [...(stops.get(channel) ?? []), tick]);
  }
  const notes = pair(events, ends, stops, constants);
  setPrograms(notes, events, constants);
  // Other meta events count for the length of a score, too.
  const lastTick = Math.max(0, ...[tempos, bends].map((all) => all.reduce((most, { tick }) => Math.max(most, tick), 0)));
  const signatureTick = metas.reduce((most, meta) => (isSignature(meta) ? Math.max(most, meta.tick) : most), 0);
  return { notes, controls, tempos, ticksPerQuarter, secondsPerTick, lastTick: Math.max(lastTick, signatureTick) };
}

/**
 * Tell whether a meta event is a time or key signature that a score can write.
 * @param {MetaEvent} meta
 */
function isSignature({ kind, content }) {
  if (content.length < 2) return false;
  return (kind === 0x58 && content[0] > 0 && content[1] < 8) || (kind === 0x59 && content[1] < 2);
}

/**
 * @param {Uint8Array} midi
 * @param {number} at Where the header ends.
 * @param {number} numTracks How many tracks the header counts; those that are there are read.
 * @param {MidiConstants} constants
 */
function readTracks(midi, at, numTracks, constants) {
  const tracks = [];
  while (isChunk(midi, at)) {
    const [kind, length] = [name(midi, at), big(midi, at + 4, 4)];
    const start = at + 8;
    at = start + length;
    if (kind === 'MThd') throw new RangeError('it is broken: a second header');
    if (kind !== 'MTrk') continue;
    // Where bytes were lost on the way, as in files copied as text, tracks are shorter than they say.
    if (at > midi.length) {
      throw new RangeError(`it is cut off: a track of ${length} bytes has ${midi.length - start}`);
    }
    const track = readTrack(midi.subarray(start, at), constants);
    const isLast = at === midi.length || isChunk(midi, at);
    if (track.length === null && !isLast) {
      throw new RangeError(`it is broken: track ${tracks.length + 1} is cut off, or longer than it says`);
    }
    if (track.length !== null && name(midi.subarray(start + track.length, at), 0) === 'MTrk') {
      throw new RangeError(`it is broken: track ${tracks.length + 1} is shorter than it says`);
    }
    tracks.push(track);
    if (tracks.length > constants.MAX_TRACKS) throw new RangeError('it has more tracks than a header can count');
  }
  // Files of old systems are filled up.
  if (tracks.length < numTracks && midi.subarray(at).some((byte) => byte !== 0 && byte !== 0x1a)) {
    throw new RangeError(`it is broken: no track where track ${tracks.length + 1} of ${numTracks} should begin`);
  }
  return tracks;
}

/**
 * Tell whether a chunk of the file begins here.
 * @param {Uint8Array} midi
 * @param {number} at
 */
function isChunk(midi, at) {
  if (midi.length - at < 8) return false;
  const kind = name(midi, at);
  return kind === 'MThd' || kind === 'MTrk' || (/^[0-9A-Za-z]{4}$/.test(kind) && at + 8 + big(midi, at + 4, 4) <= midi.length);
}

/**
 * Read the events of a track.
 * @param {Uint8Array} chunk
 * @param {MidiConstants} constants
 */
function readTrack(chunk, constants) {
  const { META, META_END_OF_TRACK, SYSEX, SYSEX_CONTINUED, NOTE_ON, UNDEFINED, DATA_BYTES } = constants;
  /** @type {ChannelEvent[]} */
  const events = [];
  /** @type {MetaEvent[]} */
  const metas = [];
  let [at, tick, running] = [0, 0, 0];
  /** @type {number | null} */
  let length = null;
  /** @param {number} place Bytes beyond the end count as 0, and the event as cut off. */
  const byte = (place) => (place < chunk.length ? chunk[place] : 0);
  const variable = () => {
    for (let value = 0, count = 1; ; count++) {
      value = value * 128 + (byte(at) & 0x7f);
      if (byte(at++) < 0x80) return value;
      if (count === 4) throw new RangeError('it is broken: a variable length of more than four bytes');
    }
  };
  while (at < chunk.length && length === null) {
    tick += variable();
    const isExplicit = byte(at) >= 0x80;
    const status = isExplicit ? byte(at++) : running;
    if (!status) throw new RangeError('it is broken: a track that begins without a status byte');
    if (UNDEFINED.includes(status)) {
      throw new RangeError(`it is broken: a status byte of 0x${status.toString(16)}, which means nothing`);
    }
    if (status < SYSEX) {
      running = status;
      const [first, second] = [byte(at), DATA_BYTES[status] < 2 ? 0 : byte(at + 1)];
      at += DATA_BYTES[status];
      if (status < NOTE_ON + 16 && first > 127) {
        throw new RangeError(`it is broken: a note of key ${first}; keys are 0 to 127`);
      }
      events.push({ tick, status, first: Math.min(first, 127), second: Math.min(second, 127), track: 0 });
    } else if (status === META || status === SYSEX || status === SYSEX_CONTINUED) {
      const kind = status === META ? byte(at++) : -1;
      const size = variable();
      if (kind >= 0) metas.push({ tick, kind, content: chunk.subarray(at, at + size) });
      at += size;
      if (kind === META_END_OF_TRACK) length = Math.min(at, chunk.length);
    } else {
      at += DATA_BYTES[status];
    }
    if (length === null && at > chunk.length) {
      throw new RangeError('it is cut off: the last event of a track is longer than its track');
    }
  }
  return { events, metas, end: tick, length };
}

/**
 * Find the end of every note: `_pair` of Python.
 * @param {ChannelEvent[]} events
 * @param {number[]} trackEnds
 * @param {Map<number, number[]>} stops For channels with controllers that end all notes, the ticks of these.
 * @param {MidiConstants} constants
 * @returns {RawNote[]} In the order of tracks and of strikes within a track.
 */
function pair(events, trackEnds, stops, constants) {
  /** @type {Map<string, {place: number, tick: number, isOn: boolean, limit: number}[]>} */
  const groups = new Map();
  events.forEach(({ tick, status, first, second, track }, place) => {
    if ((status & 0xf0) !== constants.NOTE_ON && (status & 0xf0) !== constants.NOTE_OFF) return;
    const isOn = (status & 0xf0) === constants.NOTE_ON && second > 0;
    let [period, limit] = [0, trackEnds[track]];
    const ticks = stops.get(status & 15);
    if (ticks !== undefined) {
      // Notes before a controller that ends them have nothing to do with what comes after it.
      while (period < ticks.length && (isOn ? ticks[period] <= tick : ticks[period] < tick)) period++;
      if (period < ticks.length) limit = Math.min(limit, ticks[period]);
    }
    const key = `${track} ${status & 15} ${first} ${period}`;
    const group = groups.get(key) ?? [];
    if (!group.length) groups.set(key, group);
    group.push({ place, tick, isOn, limit });
  });
  /** @type {{place: number, end: number}[]} */
  const found = [];
  for (const group of groups.values()) for (const note of pairGroup(group)) found.push(note);
  found.sort((a, b) => a.place - b.place);
  return found.map(({ place, end }) => {
    const { tick, status, first, second, track } = events[place];
    return { start: tick, end, pitch: first, velocity: second, channel: status & 15, track, program: 0 };
  });
}

/**
 * Pair the strikes and NoteOffs of one key.
 * @param {{place: number, tick: number, isOn: boolean, limit: number}[]} group
 */
function pairGroup(group) {
  // How many strikes still wait for a NoteOff; superfluous NoteOffs do not count.
  /** @type {number[]} */
  const waiting = [];
  let count = 0;
  for (const { isOn } of group) waiting.push((count = isOn ? count + 1 : Math.max(count - 1, 0)));
  const strikes = group.flatMap(({ isOn }, index) => (isOn ? [index] : []));
  const ends = strikes.map((on, index) => {
    const following = strikes[index + 1] ?? group.length;
    const nextTick = following < group.length ? group[following].tick : group[on].limit;
    const numOffs = following - on - 1;
    const lastOff = group[on + Math.min(waiting[on], numOffs)];
    // A NoteOff at the tick of a second strike is that of the first one.
    const belongs = numOffs > 0 && (lastOff.tick > group[on].tick || waiting[on] < 2);
    return { following, nextTick, end: belongs ? lastOff.tick : nextTick };
  });
  // Where every strike gets its NoteOff until none waits, the first NoteOff is that of the first strike, and so on.
  let [begin, strike] = [0, 0];
  for (let index = 0; index < group.length; index++) {
    if (waiting[index] > 0) continue;
    for (let off = begin + 1; off <= index; off++) if (!group[off].isOn) ends[strike++].end = group[off].tick;
    begin = index + 1;
  }
  return strikes.map((on, index) => {
    const { following, nextTick, end } = ends[index];
    return { place: group[on].place, end: following < group.length ? Math.min(end, nextTick) : end };
  });
}

/**
 * Set the program of notes: the last change for their channel, on their own track if that has any.
 * @param {RawNote[]} notes
 * @param {ChannelEvent[]} events
 * @param {MidiConstants} constants
 */
function setPrograms(notes, events, constants) {
  const changes = events.filter(({ status }) => (status & 0xf0) === constants.PROGRAM_CHANGE);
  changes.sort((a, b) => a.tick - b.tick);
  if (!changes.length) return;
  /** @type {Map<string, {ticks: number[], programs: number[]}>} */
  const lists = new Map();
  for (const { tick, status, first, track } of changes) {
    for (const key of [`${status & 15}`, `${status & 15} ${track}`]) {
      const list = lists.get(key) ?? { ticks: [], programs: [] };
      lists.set(key, list);
      list.ticks.push(tick);
      list.programs.push(first);
    }
  }
  for (const note of notes) {
    for (const key of [`${note.channel}`, `${note.channel} ${note.track}`]) {
      const list = lists.get(key);
      const count = list === undefined ? 0 : countUpTo(list.ticks, note.start);
      if (list !== undefined && count) note.program = list.programs[count - 1];
    }
  }
}

/**
 * Notes as a piano plays them: held by the pedals, in steps from the first onset on.
 * @param {ReturnType<typeof readFile>} file
 * @param {Model} model
 * @returns {import('./performance.js').Notes}
 */
function playedNotes(file, model) {
  const { STEPS_PER_SECOND, MAX_STEPS, VELOCITIES_PER_BIN } = model.performance;
  hold(file, model.midi);
  const lastTick = [...file.notes.map(({ end }) => end), ...file.controls.map(({ tick }) => tick)].reduce(
    (most, tick) => Math.max(most, tick),
    file.lastTick,
  );
  if (lastTick >= MAX_TICKS) throw new RangeError(`it is ${lastTick} ticks long; a score counts to ${MAX_TICKS - 1}`);
  const melodic = file.notes.filter(({ channel }) => channel !== model.midi.DRUM_CHANNEL);
  if (!melodic.length) {
    throw new RangeError(`it has ${file.notes.length ? 'only drums' : 'no notes'} in it; a piano needs a melodic note`);
  }
  // The order of a score: by program, then by track, channel and strike.
  melodic.sort((a, b) => a.program - b.program || a.track - b.track || a.channel - b.channel);
  const sorted = order(melodic.length, melodic.map(({ start }) => start), melodic.map(({ end }) => end));
  const seconds = scoreClock(file, model.midi);
  const notes = sorted.map((index) => melodic[index]);
  const start = notes.map((note) => seconds(note.start));
  const end = notes.map((note) => seconds(note.end));
  const length = end.reduce((most, time) => Math.max(most, time), 0) - start[0];
  if (length * STEPS_PER_SECOND > MAX_STEPS) {
    throw new RangeError(`it is ${(length / 3600).toFixed(0)} hours long; more than 24 mean that the file is broken`);
  }
  return {
    start: start.map((time) => roundToSteps((time - start[0]) * STEPS_PER_SECOND)),
    end: end.map((time) => roundToSteps((time - start[0]) * STEPS_PER_SECOND)),
    pitch: notes.map(({ pitch }) => pitch),
    velocity: notes.map(({ velocity }) => Math.floor(Math.max(velocity - 1, 0) / VELOCITIES_PER_BIN)),
  };
}

/**
 * Return the function from ticks to seconds by a tempo map; before its first tempo, 120 quarters per minute.
 * @param {{tick: number, tempo: number}[]} tempos In the order of time.
 * @param {number} ticksPerQuarter
 * @param {number} defaultTempo
 */
function tempoClock(tempos, ticksPerQuarter, defaultTempo) {
  const since = [0, ...tempos.map(({ tick }) => tick)];
  const secondsPerTick = [defaultTempo, ...tempos.map(({ tempo }) => tempo)].map(
    (tempo) => tempo / (1e6 * ticksPerQuarter),
  );
  const seconds = [0];
  for (let i = 1; i < since.length; i++) seconds.push(seconds[i - 1] + (since[i] - since[i - 1]) * secondsPerTick[i - 1]);
  const changes = since.slice(1);
  /** @param {number} tick */
  return (tick) => {
    const at = countUpTo(changes, tick);
    return seconds[at] + (tick - since[at]) * secondsPerTick[at];
  };
}

/**
 * How many of some ascending ticks are not after another one.
 * @param {number[]} ticks
 * @param {number} tick
 */
function countUpTo(ticks, tick) {
  let [low, high] = [0, ticks.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ticks[middle] <= tick) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The clock of the score that Python makes of a file.
 * @param {ReturnType<typeof readFile>} file
 * @param {MidiConstants} constants
 */
function scoreClock(file, constants) {
  if (!file.secondsPerTick) {
    const last = file.tempos.filter(({ tick }, index) => file.tempos[index + 1]?.tick !== tick);
    return tempoClock(last, file.ticksPerQuarter, constants.DEFAULT_TEMPO);
  }
  // A second is a quarter of this score, or 1.001 seconds where 30 frames are 1.001 seconds.
  let ticksPerQuarter = Math.round(1 / file.secondsPerTick);
  let tempo = Math.round(1e6 * file.secondsPerTick * ticksPerQuarter);
  if (Math.abs(ticksPerQuarter * file.secondsPerTick - 1) > 1e-9) {
    ticksPerQuarter = Math.round(1.001 / file.secondsPerTick);
    tempo = 1_001_000;
  }
  return tempoClock([{ tick: 0, tempo }], ticksPerQuarter, constants.DEFAULT_TEMPO);
}

/**
 * Extend notes to where their sound ends, held by the sustain pedal of their channel.
 * @param {ReturnType<typeof readFile>} file
 * @param {MidiConstants} constants
 */
function hold(file, constants) {
  for (const channel of new Set(file.notes.map((note) => note.channel))) {
    const notes = file.notes.filter((note) => note.channel === channel);
    const { down, lift } = pedal(file, channel, notes, constants);
    const stops = file.controls
      .filter((control) => control.channel === channel && control.number === constants.ALL_SOUND_OFF)
      .map(({ tick }) => tick);
    for (const note of notes) {
      const held = countUpTo(down, note.end) - 1;
      if (held >= 0) note.end = Math.max(note.end, lift[held]);
      const stop = stops[countUpTo(stops, note.start)];
      if (stop !== undefined) note.end = Math.min(note.end, stop);
    }
  }
}

/**
 * Return the ticks at which the sustain pedal of a channel goes down, and those at which it lifts, as many.
 * @param {ReturnType<typeof readFile>} file
 * @param {number} channel
 * @param {RawNote[]} notes Those of the channel.
 * @param {MidiConstants} constants
 */
function pedal(file, channel, notes, constants) {
  const own = file.controls.filter((control) => control.channel === channel);
  const moves = [];
  let isDown = false;
  for (const { tick, number, value } of own) {
    if (number !== constants.SUSTAIN_PEDAL && number !== constants.RESET_ALL_CONTROLLERS) continue;
    const goesDown = number === constants.SUSTAIN_PEDAL && value >= constants.PEDAL_DOWN;
    if (goesDown !== isDown) moves.push(tick);
    isDown = goesDown;
  }
  if (isDown) {
    const seconds = file.secondsPerTick
      ? (/** @type {number} */ tick) => tick * file.secondsPerTick
      : tempoClock(file.tempos, file.ticksPerQuarter, constants.DEFAULT_TEMPO);
    const lastNote = notes.reduce((most, { end }) => Math.max(most, end), 0);
    const lastPedal = own
      .filter(({ number, tick }) => {
        return constants.PEDALS.includes(number) && seconds(tick) - seconds(lastNote) <= constants.FADING_SECONDS;
      })
      .reduce((most, { tick }) => Math.max(most, tick), 0);
    moves.push(Math.max(moves[moves.length - 1], lastNote, lastPedal));
  }
  return {
    down: moves.filter((_, index) => index % 2 === 0),
    lift: moves.filter((_, index) => index % 2 === 1),
  };
}
