/**
 * Music one token at a time: what has been played, the program's ring over it, grammar, loop breaker and sampling.
 *
 * `Composer` keeps the ids of the whole session and the ring in step with them. It is the page's `generate_music`.
 */

import { Controls } from './controls.js';
import { ControlFeedback } from './feedback.js';
import { raiseForgottenKeys } from './forgotten.js';
import { GrammarState, MusicGrammar, pianoRules } from './grammar.js';
import { Gap, InfillGrammar } from './infill.js';
import { LoopBreaker } from './repetition.js';
import { Random, sample } from './sampling.js';

/** @typedef {import('./model.js').Model} Model */
/** @typedef {{shape: import('./model.js').ProgramShape, position: number, run: (ids: number[]) => Promise<Float32Array>}} Runs */
/** @typedef {{temperature: number, topP: number, minP: number}} Sampling */

export class Composer {
  /**
   * @param {Model} model
   * @param {Runs} program
   */
  constructor(model, program) {
    this.model = model;
    this.program = program;
    /** @type {Sampling} */
    this.sampling = { ...model.sampling };
    this.random = new Random(0);
    /** What is wanted of the controls, in a continuation and in a gap. */
    this.controls = new Controls(model, model.control.DEFAULT_CONTROLS);
    this.controlsInGap = new Controls(model);
    /** The session, from BOS on. */
    this.ids = [model.bos];
    /** How many ids the ring holds, or held before newer ones took their place; and the id at its position 0. */
    this.taken = 0;
    this.origin = 0;
    this.grammar = new MusicGrammar(model);
    this.loops = new LoopBreaker(model);
    this.feedback = new ControlFeedback(model, this.controls);
    this.begin(this.ids);
  }

  /**
   * Begin anew with some ids; those that are already in the ring stay there.
   * @param {number[]} ids From BOS on, at least one.
   * @param {Controls} [controls]
   */
  begin(ids, controls = this.controls) {
    const old = this.ids;
    let same = 0;
    while (same < Math.min(old.length, ids.length) && old[same] === ids[same]) same++;
    this.ids = [...ids];
    // The last one is always computed: its scores are those of the next.
    this.#keep(Math.min(same, ids.length - 1));
    this.grammar = new MusicGrammar(this.model, { ...pianoRules(this.model), controls });
    this.loops = new LoopBreaker(this.model);
    // What the model cannot see any more still tells which keys sound.
    for (const id of ids) this.grammar.advance(id);
    for (const id of ids.slice(-this.model.program.window)) this.loops.advance(id);
    this.feedback = new ControlFeedback(this.model, controls);
    for (const id of ids.slice(-this.model.program.window)) this.feedback.advance(id);
    this.#endPrompt();
  }

  /**
   * Note that the ring holds the first ids, and no others.
   * @param {number} count
   */
  #keep(count) {
    const { window } = this.model.program;
    this.taken = Math.min(count, this.taken);
    const held = this.taken - this.origin;
    const isOverwritten = this.program.position > window && held < this.program.position;
    const isFarBehind = this.ids.length - this.taken > window;
    if (held < 0 || isOverwritten || isFarBehind) {
      // Slots of the tokens that are taken back held older ones: read what the model sees of the music again.
      this.origin = this.taken = Math.max(this.ids.length - window, 0);
      this.program.position = 0;
    } else {
      this.program.position = held;
    }
  }

  /**
   * Append ids that were played or read; nothing is computed yet.
   * @param {number[]} ids
   */
  append(ids) {
    this.ids.push(...ids);
    for (const id of ids) {
      this.grammar.advance(id);
      this.loops.advance(id);
      this.feedback.advance(id);
    }
    this.#endPrompt();
  }

  #endPrompt() {
    this.grammar.state.endPrompt();
    this.feedback.endPrompt();
  }

  /** How many ids the ring has not taken yet, the last one not counted. */
  get waiting() {
    return this.ids.length - 1 - this.taken;
  }

  /** Let the ring take the next ids, so that less is left to do when the music is to go on. */
  async prefill() {
    if (this.waiting <= 0) return;
    const ids = this.ids.slice(this.taken, Math.min(this.taken + this.model.program.chunk, this.ids.length - 1));
    await this.program.run(ids);
    this.taken += ids.length;
  }

  /** Generate the next id. */
  async next() {
    while (this.ids.length - this.taken > this.model.program.chunk) await this.prefill();
    const ids = this.ids.slice(this.taken);
    const scores = new Float64Array(await this.program.run(ids));
    this.taken = this.ids.length;
    this.feedback.apply(scores);
    raiseForgottenKeys(scores, this.grammar);
    // The grammar after what shifts scores, for it gives a control the probability of all events that it allows.
    this.grammar.apply(scores);
    this.loops.apply(scores);
    const id = sample(scores, this.sampling, this.random);
    this.ids.push(id);
    this.grammar.advance(id);
    this.loops.advance(id);
    this.feedback.advance(id);
    return id;
  }

  /** @param {Record<string, import('./controls.js').Wanted>} wanted What is left out has its default; in a gap it is off. */
  steer(wanted) {
    this.controls = new Controls(this.model, { ...this.model.control.DEFAULT_CONTROLS, ...wanted });
    this.controlsInGap = new Controls(this.model, wanted);
    this.grammar.controls = this.controls;
    this.feedback.controls = this.controls;
  }

  /** Whether the music has come to its end. */
  get hasEnded() {
    return this.grammar.state.kind === this.model.grammar.END;
  }

  /**
   * Fill a gap.
   * @param {Gap} gap
   * @param {() => Promise<boolean>} goesOn Called after every token; the music is given up when it returns false.
   * @returns {Promise<number[] | null>} The ids of the whole piece.
   */
  async infill(gap, goesOn) {
    const { SPARE_TOKENS, TOKENS_PER_SECOND } = this.model.generation;
    const steps = gap.stop - gap.start;
    const most = SPARE_TOKENS + Math.ceil((TOKENS_PER_SECOND * steps) / this.model.performance.STEPS_PER_SECOND);
    this.begin(gap.prompt, this.controlsInGap);
    const rules = { ...pianoRules(this.model), controls: this.controlsInGap };
    this.grammar = new InfillGrammar(this.model, gap, most, rules);
    for (const id of gap.prompt) this.grammar.advance(id);
    this.grammar.state.endPrompt();
    while (!this.hasEnded) {
      await this.next();
      if (!(await goesOn())) return null;
    }
    return gap.fill(this.ids);
  }
}

export { Controls, Gap, GrammarState };
