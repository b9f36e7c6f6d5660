/**
 * The session: who plays when. It follows what is played, finds the end of a phrase, lets the engine answer, schedules
 * its notes on the audio clock and takes them back when a key is struck.
 *
 * Music has a time of its own, the steps of the ids; `base` says where it lies on the audio clock, and moves when the
 * music pauses. Seconds are those of the audio clock.
 */

import { writeMidi } from './music/midi_writer.js';

/** @typedef {import('./engine/model.js').Model} Model */
/** @typedef {import('./engine/studio.js').Report} Report */
/** @typedef {import('./engine/studio.js').Request} Request */
/** @typedef {import('./instrument/sampler.js').Voice} Voice */
/** @typedef {import('./music/performance.js').PlayedNote} PlayedNote */
/** @typedef {'you' | 'model'} Who */
/** @typedef {{start: number, end: number | null, pitch: number, velocity: number, who: Who}} SessionNote */
/** @typedef {{time: number, isOn: boolean, note: SessionNote}} QueuedEvent */
/** @typedef {'idle' | 'listening' | 'thinking' | 'answering' | 'playing'} Mode */

/**
 * @typedef {object} Sound What notes are played on.
 * @property {() => number} now
 * @property {(pitch: number, velocity: number, time: number, who: Who) => Voice | null} strike
 * @property {(voice: Voice | null, pitch: number, time: number, who: Who) => void} release
 * @property {() => void} takeBack What was scheduled for later is not to sound.
 */

// How far ahead the engine generates, and how far ahead notes are scheduled.
const AHEAD_SECONDS = 3;
const SCHEDULE_SECONDS = 0.4;

// When so much of the music ahead has been heard, the engine goes on: a few tokens at a time would cost more, because its
// threads fall asleep in between.
const STRETCH_SECONDS = 1;

// From the first note of an answer being known to its sound: time to schedule it.
const LEAD_SECONDS = 0.03;

// A note that comes later than this would be heard as late: the music waits instead, and that is counted.
const LATE_SECONDS = 0.04;

// Where the engine is hardly faster than the music, it gets a start.
const SAFE_SPEED = 1.5;
const START_SECONDS = 1.5;

// A pause between phrases is no longer than this for the model, however long it was.
const LONGEST_PAUSE_SECONDS = 2;

// Between pieces that the model plays by itself.
const BETWEEN_PIECES_SECONDS = 2;

export class Duet {
  /**
   * @param {Model} model
   * @param {Sound} sound
   * @param {(request: Request) => void} send To the engine.
   * @param {() => void} changed Called when the mode has changed.
   */
  constructor(model, sound, send, changed) {
    this.model = model;
    this.sound = sound;
    this.send = send;
    this.changed = changed;
    /** @type {Mode} */
    this.mode = 'idle';
    /** @type {SessionNote[]} In the order in which they became known. */
    this.notes = [];
    this.silenceSeconds = 1;
    /** @type {number | null} Seconds of an answer; null for no end. */
    this.answerSeconds = 20;
    this.stats = { firstNote: /** @type {number | null} */ (null), underruns: 0, musicPerSecond: 0, tokensPerSecond: 0 };
    this.take = 0;
    this.base = { time: 0, step: 0 };
    this.lastStep = 0; // of the music, where it has been heard or played
    this.generatedStep = 0;
    this.hasEnded = false;
    /** @type {number | null} When to begin another piece. */
    this.nextPiece = null;
    this.isEndless = false;
    /** @type {QueuedEvent[]} */
    this.queue = [];
    /** @type {Map<SessionNote, Voice | null>} Scheduled notes of the model that have not ended. */
    this.voices = new Map();
    /** @type {Map<number, SessionNote>} The model's notes by key, as they become known. */
    this.open = new Map();
    /** @type {Map<number, {note: SessionNote, voice: Voice | null, isHeld: boolean}>} */
    this.yours = new Map();
    this.isPedalDown = false;
    this.lastPlayed = 0;
    this.asked = 0;
  }

  get rate() {
    return this.model.performance.STEPS_PER_SECOND;
  }

  /** @param {number} step */
  timeOf(step) {
    return this.base.time + (step - this.base.step) / this.rate;
  }

  /** @param {number} time */
  stepOf(time) {
    return Math.round(this.base.step + (time - this.base.time) * this.rate);
  }

  /** From a note being known to its sound, where the music begins or begins again. */
  get lead() {
    const speed = this.stats.musicPerSecond;
    return speed && speed < SAFE_SPEED ? START_SECONDS : LEAD_SECONDS;
  }

  /** Seconds of music that are generated but not heard yet. */
  get buffered() {
    return this.mode === 'answering' ? Math.max(this.timeOf(this.generatedStep) - this.sound.now(), 0) : 0;
  }

  /** @param {Mode} mode */
  #enter(mode) {
    if (mode === this.mode) return;
    this.mode = mode;
    this.changed();
  }

  // What you play ----------------------------------------------------------------------------------------------------

  /**
   * A key goes down.
   * @param {number} pitch
   * @param {number} velocity
   */
  strike(pitch, velocity) {
    const now = this.sound.now();
    if (this.mode === 'idle') {
      const pause = Math.min(Math.max(now - this.lastPlayed, 0), LONGEST_PAUSE_SECONDS) * this.rate;
      this.base = { time: now, step: this.lastStep + (this.notes.length ? Math.round(pause) : 0) };
    } else if (this.mode !== 'listening') {
      this.interrupt();
    }
    if (this.yours.has(pitch)) this.#end(pitch, now);
    /** @type {SessionNote} */
    const note = { start: now, end: null, pitch, velocity, who: 'you' };
    this.notes.push(note);
    this.yours.set(pitch, { note, voice: this.sound.strike(pitch, velocity, now, 'you'), isHeld: true });
    this.#played(pitch, velocity, true, now);
    this.#enter('listening');
  }

  /**
   * A key comes up; the pedal may hold its sound.
   * @param {number} pitch
   */
  release(pitch) {
    const sounding = this.yours.get(pitch);
    if (sounding === undefined || !sounding.isHeld) return;
    sounding.isHeld = false;
    this.lastPlayed = this.sound.now();
    if (!this.isPedalDown) this.#end(pitch, this.lastPlayed);
  }

  /** @param {boolean} isDown */
  pedal(isDown) {
    this.isPedalDown = isDown;
    if (isDown) return;
    for (const [pitch, { isHeld }] of this.yours) if (!isHeld) this.#end(pitch, this.sound.now());
  }

  /**
   * @param {number} pitch
   * @param {number} now
   */
  #end(pitch, now) {
    const sounding = this.yours.get(pitch);
    if (sounding === undefined) return;
    this.yours.delete(pitch);
    sounding.note.end = now;
    this.sound.release(sounding.voice, pitch, now, 'you');
    this.#played(pitch, 0, false, now);
  }

  /**
   * @param {number} pitch
   * @param {number} velocity
   * @param {boolean} isOn
   * @param {number} now
   */
  #played(pitch, velocity, isOn, now) {
    // Once the model answers, a key that comes up late is no part of the music.
    if (!isOn && this.mode !== 'listening') return;
    this.lastPlayed = now;
    this.lastStep = Math.max(this.stepOf(now), this.lastStep);
    this.send({ type: 'keys', events: [{ step: this.lastStep, isOn, pitch, velocity }] });
  }

  // What the model plays ----------------------------------------------------------------------------------------------

  /**
   * Let the model go on from what has been played.
   * @param {number | null} seconds How long; null for no end.
   * @param {{time: number, step: number} | null} [at] Where its music lies; unless given it begins with its first note.
   */
  answer(seconds, at = null) {
    const now = this.sound.now();
    const pause = Math.round(Math.max(now - this.lastPlayed, 0) * this.rate);
    for (const pitch of [...this.yours.keys()]) {
      const sounding = this.yours.get(pitch);
      if (sounding && !sounding.isHeld) this.#end(pitch, now);
    }
    if (this.mode !== 'listening') this.#takeBack(now);
    this.isEndless = seconds === null;
    this.hasEnded = false;
    this.nextPiece = null;
    this.open.clear();
    this.take++;
    this.asked = performance.now();
    this.generatedStep = this.lastStep;
    if (at !== null) this.base = at;
    const from = at === null ? this.lastStep : this.stepOf(now);
    const horizon = Math.max(from, this.lastStep) + AHEAD_SECONDS * this.rate;
    this.send({ type: 'play', take: this.take, horizon, seconds, pause: Math.min(pause, this.rate) });
    this.#enter(at === null ? 'thinking' : 'answering');
  }

  /** Take the word back: what has not sounded is forgotten. */
  interrupt() {
    const now = this.sound.now();
    if (this.mode === 'answering') {
      this.lastStep = Math.max(this.stepOf(now), 0);
      this.send({ type: 'cut', step: this.lastStep });
      this.lastPlayed = now;
    } else if (this.mode === 'thinking') {
      this.send({ type: 'cut', step: this.lastStep });
    } else {
      this.send({ type: 'stop' });
      this.base = { time: now, step: this.lastStep };
    }
    this.nextPiece = null;
    this.take++;
    this.#takeBack(now);
    this.#enter('idle');
  }

  /** @param {number} now */
  #takeBack(now) {
    this.queue = [];
    this.open.clear();
    for (const [note, voice] of this.voices) {
      if (note.start <= now) this.sound.release(voice, note.pitch, now, note.who);
    }
    this.sound.takeBack();
    this.voices.clear();
    this.notes = this.notes.filter(({ start }) => start <= now);
    for (const note of this.notes.slice(-500)) {
      if (note.who === 'model' || this.yours.get(note.pitch)?.note !== note) note.end = Math.min(note.end ?? now, now);
    }
  }

  /** Begin a session without a past. */
  reset(seed = (Math.random() * 2 ** 32) >>> 0) {
    if (this.mode !== 'idle') this.interrupt();
    for (const pitch of [...this.yours.keys()]) this.#end(pitch, this.sound.now());
    this.notes = [];
    this.lastStep = 0;
    this.send({ type: 'reset', seed });
    this.changed();
  }

  /**
   * Follow the engine.
   * @param {Report} report
   */
  receive(report) {
    if (report.type === 'speed') {
      this.stats.musicPerSecond = report.musicSeconds / report.seconds;
      this.stats.tokensPerSecond = report.tokens / report.seconds;
    }
    if (!('take' in report) || report.take !== this.take) return;
    if (report.type === 'ended') {
      this.hasEnded = true;
      this.generatedStep = report.step;
      if (this.mode === 'thinking') {
        // An answer of silence.
        this.base = { time: this.sound.now(), step: report.step };
        this.#enter('answering');
      }
    }
    if (report.type !== 'events') return;
    const now = this.sound.now();
    this.generatedStep = report.step;
    const first = report.events.find(({ isOn }) => isOn);
    if (this.mode === 'thinking') {
      if (first === undefined) {
        // A rest at the beginning: the answer begins with its first note.
        this.send({ type: 'horizon', step: report.step + AHEAD_SECONDS * this.rate });
        return;
      }
      this.base = { time: now + this.lead, step: first.step };
      this.stats.firstNote = performance.now() - this.asked + 1000 * this.lead;
      this.#enter('answering');
    }
    if (first !== undefined && this.timeOf(first.step) < now - LATE_SECONDS) {
      this.base.time += now + this.lead - this.timeOf(first.step);
      this.stats.underruns++;
    }
    for (const { step, isOn, pitch, velocity } of report.events) this.#know(this.timeOf(step), isOn, pitch, velocity);
    this.schedule();
  }

  /**
   * Take a key event of the model into the queue.
   * @param {number} time
   * @param {boolean} isOn
   * @param {number} pitch
   * @param {number} velocity
   */
  #know(time, isOn, pitch, velocity) {
    const before = this.open.get(pitch);
    if (before !== undefined) {
      before.end = Math.max(time, before.start + 0.01);
      this.queue.push({ time: before.end, isOn: false, note: before });
      this.open.delete(pitch);
    }
    if (!isOn) return;
    /** @type {SessionNote} */
    const note = { start: time, end: null, pitch, velocity, who: 'model' };
    this.open.set(pitch, note);
    this.notes.push(note);
    this.queue.push({ time, isOn: true, note });
  }

  /**
   * Play notes that are known: those of a file, from now on.
   * @param {(PlayedNote & {who: Who})[]} notes
   * @param {number} from The second of the file to begin with.
   */
  play(notes, from) {
    if (this.mode !== 'idle') this.interrupt();
    const shift = this.sound.now() + 2 * LEAD_SECONDS - from;
    this.#queueNotes(notes.filter(({ start }) => start >= from), shift);
    this.#enter('playing');
    this.schedule();
    return shift;
  }

  /**
   * @param {(PlayedNote & {who: Who})[]} notes
   * @param {number} shift
   */
  #queueNotes(notes, shift) {
    for (const { start, end, pitch, velocity, who } of notes) {
      /** @type {SessionNote} */
      const note = { start: start + shift, end: end + shift, pitch, velocity, who };
      this.notes.push(note);
      this.queue.push({ time: note.start, isOn: true, note }, { time: end + shift, isOn: false, note });
    }
    this.queue.sort((a, b) => a.time - b.time || Number(a.isOn) - Number(b.isOn));
  }

  /**
   * Continue a file: its last seconds are played, and the model goes on.
   * @param {number[]} ids The file up to where it is to go on.
   * @param {PlayedNote[]} notes
   * @param {number} from The second to begin to play at.
   * @param {number} stop The second from which on the model plays.
   */
  continueFrom(ids, notes, from, stop) {
    if (this.mode !== 'idle') this.interrupt();
    this.send({ type: 'prompt', ids });
    this.lastStep = Math.round(stop * this.rate);
    const heard = notes.filter(({ start }) => start >= from && start < stop);
    const time = this.sound.now() + 2 * LEAD_SECONDS - from;
    this.lastPlayed = Infinity;
    this.answer(null, { time, step: 0 });
    this.#queueNotes(heard.map((note) => ({ ...note, end: Math.min(note.end, stop), who: 'you' })), time);
    this.schedule();
  }

  // The clock -----------------------------------------------------------------------------------------------------------

  /** Do what the time asks for; called about twenty times a second. */
  tick() {
    const now = this.sound.now();
    this.schedule();
    if (this.mode === 'listening') {
      const isHeld = [...this.yours.values()].some((sounding) => sounding.isHeld);
      if (!isHeld && now - this.lastPlayed >= this.silenceSeconds) this.answer(this.answerSeconds);
    } else if (this.mode === 'answering') {
      if (this.buffered < AHEAD_SECONDS - STRETCH_SECONDS) {
        this.send({ type: 'horizon', step: this.stepOf(now) + AHEAD_SECONDS * this.rate });
      }
      if (this.hasEnded && !this.queue.length && !this.voices.size) this.#finish(now);
    } else if (this.mode === 'playing' && !this.queue.length) {
      this.#enter('idle');
    }
  }

  /** @param {number} now */
  #finish(now) {
    if (!this.isEndless) {
      this.lastStep = this.stepOf(now);
      this.lastPlayed = now;
      this.take++;
      this.#enter('idle');
      return;
    }
    // Another piece, after a rest.
    this.nextPiece ??= now + BETWEEN_PIECES_SECONDS;
    if (now < this.nextPiece) return;
    this.lastStep = 0;
    this.send({ type: 'reset', seed: (Math.random() * 2 ** 32) >>> 0 });
    this.lastPlayed = now;
    this.answer(null);
  }

  /** Schedule what is due soon. */
  schedule() {
    const until = this.sound.now() + SCHEDULE_SECONDS;
    let count = 0;
    for (const { time, isOn, note } of this.queue) {
      if (time > until) break;
      count++;
      if (isOn) this.voices.set(note, this.sound.strike(note.pitch, note.velocity, time, note.who));
      else {
        this.sound.release(this.voices.get(note) ?? null, note.pitch, time, note.who);
        this.voices.delete(note);
      }
    }
    this.queue.splice(0, count);
  }

  /** The keys that sound now, and who plays them. */
  sounding() {
    const now = this.sound.now();
    /** @type {Map<number, Who>} */
    const keys = new Map();
    for (const { pitch, start, end, who } of this.voices.keys()) {
      if (start <= now && (end === null || end > now)) keys.set(pitch, who);
    }
    for (const pitch of this.yours.keys()) keys.set(pitch, 'you');
    return keys;
  }

  /** The session as a MIDI file, from its first note on; null if nothing has sounded. */
  download() {
    const now = this.sound.now();
    const heard = this.notes.filter(({ start }) => start <= now);
    if (!heard.length) return null;
    const first = heard.reduce((least, { start }) => Math.min(least, start), Infinity);
    const notes = heard.map(({ start, end, pitch, velocity }) => {
      return { start: start - first, end: Math.min(end ?? now, now) - first, pitch, velocity };
    });
    return writeMidi(notes, this.model.performance);
  }
}
