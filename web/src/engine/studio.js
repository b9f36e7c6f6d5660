/**
 * What the worker does: it follows the page's messages, lets the ring take what is played, and generates ahead of the
 * time that is heard. `worker.js` gives it a thread and a program; tests give it others.
 */

import { Composer } from './composer.js';
import { Gap } from './infill.js';
import { PhraseEncoder, shifts } from './phrase.js';
import { Random } from './sampling.js';
import { Vocabulary } from './vocabulary.js';

/** @typedef {import('./model.js').Model} Model */
/** @typedef {{step: number, isOn: boolean, pitch: number, velocity: number}} StudioEvent */

/**
 * @typedef {{type: 'reset', seed: number}
 *   | {type: 'prompt', ids: number[]}
 *   | {type: 'keys', events: StudioEvent[]}
 *   | {type: 'cut', step: number}
 *   | {type: 'play', take: number, horizon: number, seconds: number | null, pause: number}
 *   | {type: 'horizon', step: number}
 *   | {type: 'stop'}
 *   | {type: 'sampling', temperature: number}
 *   | {type: 'controls', wanted: Record<string, import('./controls.js').Wanted>}
 *   | {type: 'infill', take: number, ids: number[], gap: [number, number], seed: number}} Request
 */

/**
 * @typedef {{type: 'events', take: number, events: StudioEvent[], step: number}
 *   | {type: 'ended', take: number, step: number}
 *   | {type: 'infilled', take: number, ids: number[] | null, message?: string}
 *   | {type: 'progress', take: number, seconds: number}
 *   | {type: 'speed', musicSeconds: number, seconds: number, tokens: number}
 *   | {type: 'failed', message: string}} Report
 */

// The speed is told when it has been measured over so many milliseconds: the first tokens alone say nothing of it.
const MEASURED_MILLISECONDS = 500;

export class Studio {
  /**
   * @param {Model} model
   * @param {import('./composer.js').Runs} program
   * @param {(report: Report) => void} report
   * @param {() => Promise<void>} rest Lets messages come in.
   */
  constructor(model, program, report, rest) {
    this.model = model;
    this.composer = new Composer(model, program);
    this.vocabulary = new Vocabulary(model);
    this.phrase = new PhraseEncoder(this.vocabulary);
    this.report = report;
    this.rest = rest;
    this.take = -1;
    this.isPlaying = false;
    this.horizon = 0;
    this.isBusy = false;
    /** @type {StudioEvent[]} Events of a step that is not complete. */
    this.pending = [];
    this.speed = { musicSteps: 0, milliseconds: 0, tokens: 0 };
    /** @type {Extract<Request, {type: 'infill'}> | null} */
    this.wantedInfill = null;
  }

  /** @param {Request} request */
  receive(request) {
    const { composer } = this;
    switch (request.type) {
      case 'reset':
        this.#halt();
        composer.random = new Random(request.seed);
        composer.begin([this.model.bos]);
        break;
      case 'prompt':
        this.#halt();
        composer.begin(request.ids);
        break;
      case 'keys':
        this.#halt();
        for (const event of request.events) this.#append(this.phrase.push(event, composer.grammar.state));
        break;
      case 'cut':
        this.#halt();
        this.#cut(request.step);
        break;
      case 'play':
        this.#halt();
        this.#append(this.phrase.flush(composer.grammar.state));
        if (composer.hasEnded) composer.begin(composer.ids.slice(0, -1));
        this.#letGo(request.pause);
        composer.grammar.closeAfterSteps =
          request.seconds === null ? null : Math.round(request.seconds * this.model.performance.STEPS_PER_SECOND);
        this.take = request.take;
        this.horizon = request.horizon;
        this.isPlaying = true;
        break;
      case 'horizon':
        this.horizon = request.step;
        break;
      case 'stop':
        this.#halt();
        break;
      case 'sampling':
        composer.sampling.temperature = request.temperature;
        break;
      case 'controls':
        composer.steer(request.wanted);
        break;
      case 'infill':
        this.#halt();
        this.take = request.take;
        this.wantedInfill = request;
        break;
    }
    void this.work();
  }

  #halt() {
    this.isPlaying = false;
    this.pending = [];
    this.wantedInfill = null;
    this.take = -1;
  }

  /** @param {number[]} ids */
  #append(ids) {
    if (!ids.length) return;
    if (this.composer.hasEnded) this.composer.begin(this.composer.ids.slice(0, -1));
    this.composer.append(ids);
  }

  /**
   * Let the keys go that are still held, after a pause: the model would take them for its own.
   * @param {number} pause Steps.
   */
  #letGo(pause) {
    const { state } = this.composer.grammar;
    const { TIME_SHIFT, MAX_SHIFT_STEPS, NOTE_OFF } = this.model.performance;
    if (!state.struck.size) return;
    const ids = this.vocabulary.eventsToIds(shifts(pause, TIME_SHIFT, MAX_SHIFT_STEPS));
    for (const pitch of [...state.struck.keys()].sort((a, b) => a - b)) ids.push(this.vocabulary.idOf(NOTE_OFF, pitch));
    this.#append(ids);
  }

  /**
   * Take back what lies after a step, and let the keys go that sound there.
   * @param {number} step
   */
  #cut(step) {
    const { composer } = this;
    const ids = composer.ids;
    let [count, time] = [0, 0];
    for (; count < ids.length; count++) {
      time += this.vocabulary.stepsOf(ids[count]);
      if (time > step) break;
    }
    if (ids[count - 1] === this.model.eos) count--;
    if (count < ids.length) composer.begin(ids.slice(0, Math.max(count, 1)));
    this.#letGo(Math.max(step - composer.grammar.state.time, 0));
  }

  /** Do what there is to do, until there is nothing. */
  async work() {
    if (this.isBusy) return;
    this.isBusy = true;
    try {
      for (;;) {
        if (this.wantedInfill !== null) await this.#infill(this.wantedInfill);
        else if (this.isPlaying && this.composer.grammar.state.time < this.horizon) await this.#step();
        else if (!this.isPlaying && this.composer.waiting > 0) await this.composer.prefill();
        else break;
        await this.rest();
      }
    } catch (error) {
      this.#halt();
      this.report({ type: 'failed', message: error instanceof Error ? error.message : String(error) });
    }
    this.isBusy = false;
  }

  async #step() {
    const { composer } = this;
    const { NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY_OF_BIN, DEFAULT_VELOCITY } = this.model.performance;
    const [take, began, before] = [this.take, performance.now(), composer.grammar.state.time];
    const id = await composer.next();
    const { state } = composer.grammar;
    const [kind, value] = this.model.events[id];
    this.#measure(state.time - before, performance.now() - began);
    if (kind === TIME_SHIFT) this.#pass(take);
    if (kind === NOTE_ON || kind === NOTE_OFF) {
      const velocity = state.velocity === null ? DEFAULT_VELOCITY : VELOCITY_OF_BIN[state.velocity];
      this.pending.push({ step: state.time, isOn: kind === NOTE_ON, pitch: value, velocity });
    }
    if (composer.hasEnded) {
      this.#pass(take);
      this.isPlaying = false;
      this.report({ type: 'ended', take, step: state.time });
    }
  }

  /**
   * Hand out the events of a step that is complete.
   * @param {number} take
   */
  #pass(take) {
    this.report({ type: 'events', take, events: this.pending, step: this.composer.grammar.state.time });
    this.pending = [];
  }

  /**
   * @param {number} steps
   * @param {number} milliseconds
   */
  #measure(steps, milliseconds) {
    const { speed } = this;
    speed.musicSteps += steps;
    speed.milliseconds += milliseconds;
    speed.tokens++;
    if (speed.milliseconds < MEASURED_MILLISECONDS) return;
    this.report({
      type: 'speed',
      musicSeconds: speed.musicSteps / this.model.performance.STEPS_PER_SECOND,
      seconds: speed.milliseconds / 1000,
      tokens: speed.tokens,
    });
    // What was measured long ago counts less and less.
    speed.musicSteps /= 2;
    speed.milliseconds /= 2;
    speed.tokens /= 2;
  }

  /** @param {Extract<Request, {type: 'infill'}>} request */
  async #infill(request) {
    const { take } = request;
    this.wantedInfill = null;
    try {
      const gap = new Gap(this.model, request.ids, ...request.gap);
      this.composer.random = new Random(request.seed);
      let tokens = 0;
      const ids = await this.composer.infill(gap, async () => {
        await this.rest();
        if (++tokens % 20 === 0) {
          const seconds = (this.composer.grammar.state.time - gap.start) / this.model.performance.STEPS_PER_SECOND;
          this.report({ type: 'progress', take, seconds: Math.max(seconds, 0) });
        }
        return this.take === take;
      });
      if (ids !== null) this.report({ type: 'infilled', take, ids });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.report({ type: 'infilled', take, ids: null, message: error.message });
    }
  }
}
