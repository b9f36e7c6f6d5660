/**
 * Masks every token that would make a sequence malformed, as `tokenization/grammar.py` has it, for one sequence. The
 * rules depend on a small state that each token updates.
 */

import { Controls } from './controls.js';

/** @typedef {import('./model.js').Model} Model */

/** The state of the grammar after some tokens; the attributes are those of `GrammarState` in Python. */
export class GrammarState {
  /**
   * @param {Model} model
   * @param {number[]} [sounding] Keys that sound at the beginning.
   */
  constructor(model, sounding = []) {
    const { NUM_PITCHES, BEFORE } = model.performance;
    this.model = model;
    this.sounding = sounding;
    this.kind = model.grammar.NOTHING;
    this.value = 0;
    /** @type {number | null} */
    this.velocity = null;
    this.time = 0;
    this.promptTime = 0;
    this.onset = 0;
    this.nextOff = 0;
    this.nextOn = 0;
    this.segment = -1;
    this.control = -1;
    this.newTokens = 0;
    this.down = new Uint8Array(NUM_PITCHES);
    /** @type {Map<number, number>} The step of the strike of each sounding key, the oldest first. */
    this.struck = new Map();
    this.offs = 0;
    /** @type {Map<number, number>} The step of the first release that left out each of these keys. */
    this.leftOut = new Map();
    for (const pitch of sounding) {
      this.down[pitch] = 1;
      this.struck.set(pitch, BEFORE);
    }
  }

  /** Take what came so far for the prompt. */
  endPrompt() {
    this.promptTime = this.time;
    this.segment = this.control = -1;
    this.newTokens = 0;
  }

  /**
   * Update the state by one token, whether the rules allow it or not.
   * @param {number} kind
   * @param {number} value
   */
  advance(kind, value) {
    const { NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY, NUM_PITCHES } = this.model.performance;
    const { NOTHING, PREFIX, CONTROL, SEGMENT_STEPS, RELEASED_KEYS } = this.model.grammar;
    if (kind === NOTHING) return;
    if (kind === PREFIX) {
      // What came before is the music after a gap.
      Object.assign(this, new GrammarState(this.model, this.sounding));
      return;
    }
    this.control = kind === CONTROL ? value : -1;
    if (kind === CONTROL) return;
    if (kind === TIME_SHIFT) {
      this.time += value;
      this.nextOff = this.nextOn = this.offs = 0;
    } else {
      this.segment = Math.floor((this.time - this.promptTime) / SEGMENT_STEPS);
    }
    if (kind === NOTE_ON) {
      this.down[value] = 1;
      this.struck.delete(value);
      this.leftOut.delete(value);
      this.struck.set(value, this.time);
      this.onset = this.time;
      this.nextOff = NUM_PITCHES;
      this.nextOn = value + 1;
    } else if (kind === NOTE_OFF) {
      this.down[value] = 0;
      this.struck.delete(value);
      this.leftOut.delete(value);
      this.nextOff = value + 1;
      if (++this.offs === RELEASED_KEYS) {
        // Keys that this release does not leave out come up in this very step.
        for (const key of this.struck.keys()) if (!this.leftOut.has(key)) this.leftOut.set(key, this.time);
      }
    } else if (kind === VELOCITY) {
      this.velocity = value;
    }
    this.kind = kind;
    this.value = value;
  }
}

/**
 * @typedef {object} Rules
 * @property {number | null} [maxPolyphony] Most keys that may sound at once.
 * @property {number | null} [maxNoteSeconds] Longest time that a key may sound.
 * @property {number | null} [maxRestSeconds] Longest time without a strike.
 * @property {[number, number] | null} [pitchRange] Lowest and highest key that may be struck.
 * @property {number | null} [closeAfterSeconds] Seconds after the prompt after which no note begins.
 * @property {Controls} [controls]
 */

/**
 * Return the rules of a piano.
 * @param {Model} model
 * @returns {Rules}
 */
export function pianoRules(model) {
  const { pitch_range, max_note_seconds, max_rest_seconds } = model.grammar.PIANO;
  return { pitchRange: pitch_range, maxNoteSeconds: max_note_seconds, maxRestSeconds: max_rest_seconds };
}

/**
 * @param {number | null | undefined} seconds
 * @param {Model} model
 */
function stepsOf(seconds, model) {
  return seconds === null || seconds === undefined ? null : Math.round(seconds * model.performance.STEPS_PER_SECOND);
}

export class MusicGrammar {
  /**
   * @param {Model} model
   * @param {Rules} [rules]
   * @param {GrammarState} [state]
   */
  constructor(model, rules = pianoRules(model), state = new GrammarState(model)) {
    const { NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY, NUM_PITCHES } = model.performance;
    this.model = model;
    this.state = state;
    this.on = model.spans[NOTE_ON][0];
    this.off = model.spans[NOTE_OFF][0];
    this.shift = model.spans[TIME_SHIFT][0];
    this.velocity = model.spans[VELOCITY][0];
    const [low, high] = rules.pitchRange ?? [0, NUM_PITCHES - 1];
    this.low = low;
    this.high = high;
    this.maxPolyphony = rules.maxPolyphony ?? null;
    this.maxNoteSteps = stepsOf(rules.maxNoteSeconds, model);
    this.maxRestSteps = stepsOf(rules.maxRestSeconds, model);
    this.closeAfterSteps = stepsOf(rules.closeAfterSeconds, model);
    this.controls = rules.controls ?? new Controls(model);
    this.allowed = new Uint8Array(model.program.vocabulary);
    this.isEvent = model.events.map(([kind]) => kind === NOTE_ON || kind === NOTE_OFF || kind === VELOCITY);
  }

  /** @param {number} id */
  advance(id) {
    const [kind, value] = this.model.events[id] ?? [this.model.grammar.NOTHING, 0];
    this.state.advance(kind, value);
    this.state.newTokens++;
  }

  /**
   * Mask the scores of the next token, in place.
   * @param {Float64Array} scores
   */
  apply(scores) {
    this.allowed.fill(0);
    this.allow();
    const demanded = this.controls.stated.length ? this.demandControl() : null;
    if (demanded !== null) {
      // Otherwise the model's view of the control, not of the time, would decide whether an event comes now.
      const ids = Array.from({ length: demanded.stop - demanded.first }, (_, index) => demanded.first + index);
      const shift = logSumExp(scores, demanded.events) - logSumExp(scores, ids);
      for (const id of ids) scores[id] += shift;
    }
    for (let id = 0; id < scores.length; id++) if (!this.allowed[id]) scores[id] = -Infinity;
  }

  /**
   * Return which tokens may come next, controls included.
   * @returns {Uint8Array}
   */
  mask() {
    this.apply(new Float64Array(this.allowed.length));
    return this.allowed;
  }

  /** Apply every rule to the next token. */
  allow() {
    const { NOTE_OFF, TIME_SHIFT, VELOCITY, MAX_SHIFT_STEPS, NUM_PITCHES } = this.model.performance;
    const { BEGIN, END, CLOSING_STEPS, CLOSING_REST_STEPS } = this.model.grammar;
    const { state, allowed } = this;
    if (state.kind === END) {
      allowed[this.model.pad] = 1;
      return;
    }
    // The longest shift, whether a key may go down, and below which key keys may come up.
    const isShort = state.kind === TIME_SHIFT && state.value < MAX_SHIFT_STEPS;
    let shift = isShort || state.control >= 0 ? 0 : MAX_SHIFT_STEPS;
    let on = this.maxPolyphony === null || state.struck.size < this.maxPolyphony;
    let off = NUM_PITCHES;
    let closing = false;
    if (this.closeAfterSteps !== null) {
      const left = state.promptTime + this.closeAfterSteps - state.time;
      closing =
        left <= 0 ||
        (left <= Math.min(CLOSING_STEPS, Math.floor(this.closeAfterSteps / 4)) &&
          state.time - state.onset >= CLOSING_REST_STEPS);
      on &&= !closing;
      // No rest reaches into the closing phase: a piece ends with its last NoteOff.
      if (!state.struck.size) shift = Math.min(shift, closing ? 0 : left - 1);
    }
    if (this.maxRestSteps !== null && on) shift = Math.min(shift, state.onset + this.maxRestSteps - state.time);
    if (this.maxNoteSteps !== null && state.struck.size) {
      // Of the struck keys the first has sounded longest.
      const latest = state.time - this.maxNoteSteps;
      const [oldest] = state.struck.values();
      shift = Math.min(shift, oldest - latest);
      const overdue = shift <= 0 ? [...state.struck].filter(([, struck]) => struck <= latest) : [];
      if (overdue.length) {
        // They come up before anything else happens, and no higher key before them.
        on = false;
        off = Math.min(...overdue.map(([key]) => key)) + 1;
      }
    }

    const lowest = Math.max(state.nextOn, this.low);
    on &&= this.hasSilentKey(lowest);
    if (on && state.kind !== BEGIN) {
      for (let key = lowest; key <= this.high; key++) if (!state.down[key]) allowed[this.on + key] = 1;
    }
    if (on && state.kind !== VELOCITY) this.allowVelocities();
    if (state.kind !== BEGIN && state.kind !== VELOCITY) {
      for (let key = state.nextOff; key < off; key++) if (state.down[key]) allowed[this.off + key] = 1;
      for (let steps = 0; steps < shift; steps++) allowed[this.shift + steps] = 1;
      if (state.kind === NOTE_OFF && !state.struck.size && state.control < 0) allowed[this.model.eos] = 1;
    }
    if (!allowed.includes(1)) {
      // Only a malformed prompt leads here, such as a Velocity after the top key: allow the shortest shift.
      allowed[closing && !state.struck.size ? this.model.eos : this.shift] = 1;
    }
  }

  /**
   * Tell whether a key of the range from `lowest` on is silent.
   * @param {number} lowest
   */
  hasSilentKey(lowest) {
    for (let key = lowest; key <= this.high; key++) if (!this.state.down[key]) return true;
    return false;
  }

  /** Allow the velocities that change the current one. */
  allowVelocities() {
    const [first, stop] = this.model.spans[this.model.performance.VELOCITY];
    this.allowed.fill(1, first, stop);
    if (this.state.velocity !== null) this.allowed[first + this.state.velocity] = 0;
  }

  /**
   * Demand the next control in place of the first event of a segment.
   * @returns {{first: number, stop: number, events: number[]} | null} The ids that are demanded, one if the control is
   *   given and all if it is planned, and the events after it.
   */
  demandControl() {
    const { state, allowed, model } = this;
    const since = state.time - state.promptTime;
    const isStated = state.control < 0 && Math.floor(since / model.grammar.SEGMENT_STEPS) <= state.segment;
    if (state.kind === model.performance.VELOCITY || state.kind === model.grammar.END || isStated) return null;
    const attribute = this.controls.stated.find((one) => one > state.control);
    const events = [];
    for (let id = 0; id < this.isEvent.length; id++) if (allowed[id] && this.isEvent[id]) events.push(id);
    if (attribute === undefined || !events.length) return null;
    let [first, stop] = model.controls[attribute].span;
    const value = this.controls.value(attribute, since);
    if (value !== null) [first, stop] = [first + value, first + value + 1];
    for (const id of events) allowed[id] = 0;
    allowed.fill(1, first, stop);
    return { first, stop, events };
  }
}

/**
 * @param {Float64Array} scores
 * @param {number[]} ids
 */
function logSumExp(scores, ids) {
  const top = Math.max(...ids.map((id) => scores[id]));
  return top + Math.log(ids.reduce((total, id) => total + Math.exp(scores[id] - top), 0));
}
