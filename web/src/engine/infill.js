/**
 * A piece with a gap, and the grammar that makes the music of the gap fit exactly between what surrounds it, as
 * `tokenization/infilling.py` and `tokenization/infill_grammar.py` have them.
 */

import { GrammarState, MusicGrammar } from './grammar.js';
import { notesToEvents } from '../music/performance.js';
import { Vocabulary } from './vocabulary.js';

/** @typedef {import('./model.js').Model} Model */
/** @typedef {{step: number, kind: number, pitch: number, velocity: number}} KeptEvent */

/**
 * Round as Python does, halves to the even number.
 * @param {number} number
 */
function round(number) {
  const floor = Math.floor(number);
  if (number - floor !== 0.5) return Math.round(number);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * Divide a piece at a gap: `divide` of Python.
 * @param {number[]} ids
 * @param {Vocabulary} vocabulary
 * @param {number} start
 * @param {number} stop
 */
function divide(ids, vocabulary, start, stop) {
  const { bos, eos } = vocabulary.model;
  let first = 0;
  let last = ids.length;
  let [now, prefixSteps, end] = [0, 0, -1];
  for (let i = 0; i < ids.length; i++) {
    const steps = vocabulary.stepsOf(ids[i]);
    now += steps;
    if (steps > 0) continue;
    const isBefore = now < start || (i === 0 && ids[0] === bos);
    if (isBefore) [first, prefixSteps] = [i + 1, now];
    else if (now >= stop || ids[i] === eos) {
      [last, end] = [i, now];
      break;
    }
  }
  if (end < 0) end = Math.max(stop, now);
  return { prefix: ids.slice(0, first), middle: ids.slice(first, last), suffix: ids.slice(last), steps: end - prefixSteps };
}

/**
 * Write what comes before the prefix, the gap and the suffix: `write_gap` of Python.
 * @param {{suffix: number[], steps: number}} parts
 * @param {number[]} ids
 * @param {Vocabulary} vocabulary
 */
function writeGap(parts, ids, vocabulary) {
  const { model } = vocabulary;
  const { TIME_SHIFT, MAX_SHIFT_STEPS, VELOCITY, NOTE_ON } = model.performance;
  /** @param {number} id */
  const kindOf = (id) => model.events[id][0];
  const gap = Array(Math.floor(parts.steps / MAX_SHIFT_STEPS)).fill(vocabulary.idOf(TIME_SHIFT, MAX_SHIFT_STEPS));
  if (parts.steps % MAX_SHIFT_STEPS) gap.push(vocabulary.idOf(TIME_SHIFT, parts.steps % MAX_SHIFT_STEPS));
  const suffix = [...parts.suffix];
  const said = ids.slice(0, ids.length - suffix.length).findLast((id) => kindOf(id) === VELOCITY);
  const struck = suffix.findIndex((id) => kindOf(id) === NOTE_ON);
  const isSaid = suffix.slice(0, Math.max(struck, 0)).some((id) => kindOf(id) === VELOCITY);
  if (struck >= 0 && said !== undefined && !isSaid) suffix.splice(struck, 0, said);
  return [/** @type {import('./model.js').InfillConstants} */ (model.infill).suffix, ...gap, ...suffix];
}

/** A piece with a gap, and what of it the model sees. */
export class Gap {
  /**
   * @param {Model} model
   * @param {number[]} ids The piece from BOS on.
   * @param {number} startSeconds
   * @param {number} stopSeconds What lies beyond the end of the piece is cut off.
   */
  constructor(model, ids, startSeconds, stopSeconds) {
    const infill = model.infill;
    if (infill === null) throw new RangeError('This model was not trained for infilling.');
    const { STEPS_PER_SECOND, UNKNOWN, FOREVER, NOTE_ON, NOTE_OFF } = model.performance;
    this.model = model;
    this.vocabulary = new Vocabulary(model);
    this.ids = ids.at(-1) === model.eos ? ids : [...ids, model.eos];
    const { notes, length } = this.vocabulary.notesOf(this.ids);
    notes.velocity = notes.velocity.map((velocity) => (velocity === UNKNOWN ? infill.DEFAULT_BIN : velocity));
    this.notes = notes;
    const start = round(startSeconds * STEPS_PER_SECOND);
    let stop = round(stopSeconds * STEPS_PER_SECOND);
    const given = `The gap from ${startSeconds.toFixed(1)} to ${stopSeconds.toFixed(1)} seconds`;
    if (!(start >= 0 && start < length)) throw new RangeError(`${given} must begin within the piece.`);
    if (stop - start < 2) throw new RangeError(`${given} holds no music: choose a longer one.`);
    // The end of the piece belongs to a gap that reaches it.
    if (stop >= length) stop = length + 1;

    const parts = divide(this.ids, this.vocabulary, start, stop);
    const before = writeGap(parts, this.ids, this.vocabulary);
    const gapTokens = before.length - parts.suffix.length;
    const expected = (infill.TOKENS_PER_SECOND * (stop - start)) / STEPS_PER_SECOND;
    const spare = Math.max(infill.SPARE_TIMES * parts.middle.length, expected);
    const room = model.program.window - gapTokens - 2 - Math.trunc(spare);
    if (room < 2 * infill.MIN_CONTEXT_TOKENS) {
      throw new RangeError(`${given} is too long for what the model sees at once: choose a shorter one.`);
    }
    const half = Math.floor(room / 2);
    const suffix = before.slice(0, gapTokens + Math.max(half, room - parts.prefix.length));
    const cut = this.#cut(parts.prefix, room + gapTokens - suffix.length);
    this.origin = cut.origin;
    this.sounding = cut.sounding;
    this.prompt = [...suffix, infill.prefix, ...cut.prefix];
    const seen = parts.prefix.reduce((steps, id) => steps + this.vocabulary.stepsOf(id), 0);
    this.start = start - this.origin;
    this.stop = stop - this.origin;
    this.join = seen + parts.steps - this.origin;

    /** @type {number[]} Notes that are not replaced. */
    this.keptNotes = [];
    /** @type {KeptEvent[]} The events in the gap of notes that sound across its edges. */
    this.kept = [];
    for (let i = 0; i < notes.start.length; i++) {
      const noteStart = notes.start[i];
      const end = notes.end[i] === FOREVER ? length : notes.end[i];
      if (noteStart >= start && end < stop) continue;
      this.keptNotes.push(i);
      const fields = { pitch: notes.pitch[i], velocity: notes.velocity[i] };
      if (noteStart >= start && noteStart < stop) {
        this.kept.push({ step: noteStart - this.origin, kind: NOTE_ON, ...fields });
      } else if (noteStart < start && end >= start && end < stop) {
        this.kept.push({ step: end - this.origin, kind: NOTE_OFF, ...fields });
      }
    }
    this.kept.sort((a, b) => a.step - b.step || a.kind - b.kind || a.pitch - b.pitch || a.velocity - b.velocity);
  }

  /**
   * Return the end of the prefix that fits, the step at which it begins, and the keys that sound there.
   * @param {number[]} prefix
   * @param {number} tokens
   */
  #cut(prefix, tokens) {
    const steps = prefix.map((id) => this.vocabulary.stepsOf(id));
    let first = Math.max(prefix.length - tokens, 0);
    if (first) {
      // The first event of a step.
      let next = first;
      while (next < prefix.length - 1 && !(steps[next] > 0 && steps[next + 1] === 0)) next++;
      first = next < prefix.length - 1 ? next + 1 : first + 1;
    }
    const origin = steps.slice(0, first).reduce((total, step) => total + step, 0);
    const sounding = [];
    for (let i = 0; i < this.notes.start.length; i++) {
      if (this.notes.start[i] < origin && this.notes.end[i] >= origin) sounding.push(this.notes.pitch[i]);
    }
    return { prefix: prefix.slice(first), origin, sounding };
  }

  /**
   * Put generated music into the gap; returns the ids of the whole piece, from BOS to EOS, without controls.
   * @param {number[]} ids The prompt and what was generated after it.
   */
  fill(ids) {
    const { prefix } = /** @type {import('./model.js').InfillConstants} */ (this.model.infill);
    const { notes } = this.vocabulary.notesOf(ids.slice(this.prompt.lastIndexOf(prefix) + 1));
    /** @type {import('../music/performance.js').Notes} */
    const whole = { start: [], end: [], pitch: [], velocity: [] };
    /** @param {import('../music/performance.js').Notes} from @param {number} i @param {number} shift */
    const add = (from, i, shift) => {
      whole.start.push(from.start[i] + shift);
      whole.end.push(from.end[i] + shift);
      whole.pitch.push(from.pitch[i]);
      whole.velocity.push(from.velocity[i]);
    };
    for (const i of this.keptNotes) add(this.notes, i, 0);
    for (let i = 0; i < notes.start.length; i++) {
      if (notes.start[i] >= this.start && notes.end[i] < this.stop) add(notes, i, this.origin);
    }
    const middle = this.vocabulary.eventsToIds(notesToEvents(whole, this.model.performance));
    return [this.model.bos, ...middle, this.ids[this.ids.length - 1]];
  }
}

/** Masks every token that would not fit into a gap. */
export class InfillGrammar extends MusicGrammar {
  /**
   * @param {Model} model
   * @param {Gap} gap
   * @param {number | null} softMaxTokens After so many tokens no note begins.
   * @param {import('./grammar.js').Rules} rules
   */
  constructor(model, gap, softMaxTokens, rules) {
    super(model, { ...rules, maxRestSeconds: null }, new GrammarState(model, gap.sounding));
    this.gap = gap;
    this.softMaxTokens = softMaxTokens;
    this.keptStrikes = new Set(
      gap.kept.filter(({ kind }) => kind === model.performance.NOTE_ON).map(({ pitch, step }) => `${pitch} ${step}`),
    );
  }

  allow() {
    const { NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, MAX_SHIFT_STEPS } = this.model.performance;
    const { BEGIN, END } = this.model.grammar;
    const { state, allowed, gap } = this;
    const now = state.time;
    if (state.kind === END) {
      allowed[this.model.pad] = 1;
      return;
    }
    const isInside = gap.start <= now && now < gap.stop;
    const last = gap.stop - 1; // the last step in which a note of the middle may end
    // The keys of the middle that sound, the oldest first; the others belong to notes across an edge.
    const own = new Map(
      [...state.struck].filter(([pitch, struck]) => struck >= gap.start && !this.keptStrikes.has(`${pitch} ${struck}`)),
    );
    const pending = gap.kept.filter((event) => event.step === now && !isWritten(event, state, NOTE_ON));

    const [oldest] = own.values();
    const overdue = this.maxNoteSteps === null || oldest === undefined ? null : oldest + this.maxNoteSteps;
    const offs = new Set();
    for (const event of pending) if (event.kind === NOTE_OFF || own.has(event.pitch)) offs.add(event.pitch);
    if (now >= last) for (const pitch of own.keys()) offs.add(pitch);
    else if (overdue !== null && this.maxNoteSteps !== null && now >= overdue) {
      for (const [pitch, struck] of own) if (now >= struck + this.maxNoteSteps) offs.add(pitch);
    }
    if (offs.size) {
      allowed[this.off + Math.min(...offs)] = 1;
      return;
    }
    if (pending.length) {
      const [event] = pending;
      const changes = state.velocity !== event.velocity;
      allowed[changes ? this.velocity + event.velocity : this.on + event.pitch] = 1;
      return;
    }

    const isShort = state.kind === TIME_SHIFT && state.value < MAX_SHIFT_STEPS;
    let isClosing = this.softMaxTokens !== null && state.newTokens >= this.softMaxTokens;
    // What was written for the sake of a NoteOn still gets it.
    isClosing &&= !(state.kind === VELOCITY || isShort || state.control >= 0);
    let canStrike = !isClosing && (this.maxPolyphony === null || state.struck.size < this.maxPolyphony);
    if (canStrike && isInside && now < last) {
      const lowest = Math.max(state.nextOn, this.low);
      if (state.velocity !== null) {
        for (let key = lowest; key <= this.high; key++) if (!state.down[key]) allowed[this.on + key] = 1;
      }
      if (state.kind !== VELOCITY && this.hasSilentKey(lowest)) this.allowVelocities();
    }
    if (state.kind === VELOCITY) return;
    for (const pitch of own.keys()) allowed[this.off + pitch] = pitch >= state.nextOff ? 1 : 0;
    if (now === gap.join) {
      allowed[/** @type {import('./model.js').InfillConstants} */ (this.model.infill).end] = 1;
      return;
    }
    // A piece begins with its first note.
    const [first, stop] = this.model.spans[VELOCITY];
    if (state.control >= 0 || isShort || (state.kind === BEGIN && allowed.subarray(first, stop).includes(1))) return;

    // Time runs to a step in which an event must come, or can; after the longest shift it may run on.
    let limit = own.size ? last : gap.join;
    const later = gap.kept.find((event) => event.step > now);
    if (later !== undefined) limit = Math.min(limit, later.step);
    if (overdue !== null) limit = Math.min(limit, overdue);
    canStrike &&= this.hasSilentKey(this.low);
    const latest = own.size ? limit : canStrike ? Math.min(limit, last - 1) : 0;
    const longest = Math.min(limit - now, MAX_SHIFT_STEPS);
    const shortest = Math.max(gap.start - now, 1);
    for (let steps = shortest; steps <= Math.min(latest - now, longest); steps++) allowed[this.shift + steps - 1] = 1;
    allowed[this.shift + longest - 1] = 1;
  }
}

/**
 * Tell whether an event of this very step has been written.
 * @param {KeptEvent} event
 * @param {GrammarState} state
 * @param {number} NOTE_ON
 */
function isWritten(event, state, NOTE_ON) {
  const isStruck = state.struck.get(event.pitch) === event.step;
  return event.kind === NOTE_ON ? isStruck : isStruck || !state.down[event.pitch];
}
