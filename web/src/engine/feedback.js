/** Keeps music to the density, loudness and note length wanted of it, as `tokenization/control_feedback.py` has it. */

import { Controls } from './controls.js';

/** @typedef {import('./model.js').Model} Model */

export class ControlFeedback {
  /**
   * @param {Model} model
   * @param {Controls} controls
   */
  constructor(model, controls) {
    this.model = model;
    this.controls = controls;
    /** The attributes that are enforced: their places in `controls`, those of density, loudness and note length. */
    this.indexes = model.feedback.ATTRIBUTES.map((name) => model.controls.findIndex((one) => one.name === name));
    /** @type {number | null} */
    this.velocity = null;
    this.time = 0;
    this.density = 0;
    this.loudness = 0;
    this.noteLength = 0;
    /** @type {[number, number][]} Keys that sound, with the steps of their onsets. */
    this.sounding = [];
    /** @type {(number | null)[]} What the model stated last. */
    this.planned = [null, null, null];
  }

  /** Take what came so far for the prompt: it does not count. */
  endPrompt() {
    this.time = this.density = this.loudness = this.noteLength = 0;
    this.sounding = [];
    this.planned = [null, null, null];
  }

  /** What is wanted now of density, loudness and note length, null where nothing is. */
  #wanted() {
    return this.indexes.map((index, place) => {
      if (index < 0 || !this.controls.stated.includes(index)) return null;
      return this.controls.number(index, this.time) ?? this.planned[place];
    });
  }

  /** @param {number} id */
  advance(id) {
    const { NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY } = this.model.performance;
    const [kind, value] = this.model.events[id];
    if (kind === VELOCITY) this.velocity = value;
    else if (kind === NOTE_ON || kind === NOTE_OFF || kind === TIME_SHIFT) this.#count(kind, value);
    else if (kind === this.model.grammar.CONTROL) {
      const place = this.indexes.indexOf(value);
      const attribute = this.model.controls[value];
      if (place >= 0) this.planned[place] = Number(attribute.values[id - attribute.span[0]]);
    }
  }

  /**
   * Count a key that went down or up, or time that passed.
   * @param {number} kind
   * @param {number} value
   */
  #count(kind, value) {
    const { DENSITY_RATE, LOUDNESS_RATE, NOTE_LENGTH_RATE, VELOCITY_UNIT, LEAST_PLANNED } = this.model.feedback;
    const { NOTE_ON, TIME_SHIFT, STEPS_PER_SECOND, VELOCITY_OF_BIN } = this.model.performance;
    const [density, loudness, noteLength] = this.#wanted();
    const steps = kind === TIME_SHIFT ? value : 0;
    const isStrike = kind === NOTE_ON;
    if (density !== null) {
      this.density = this.#bound(this.density + DENSITY_RATE * (steps / STEPS_PER_SECOND - Number(isStrike) / density));
      const isPlanned = this.controls.number(this.indexes[0], this.time) === null;
      if (isPlanned) this.density = Math.max(this.density, LEAST_PLANNED);
    }
    if (loudness !== null && isStrike && this.velocity !== null) {
      const lacking = loudness - VELOCITY_OF_BIN[this.velocity];
      this.loudness = this.#bound(this.loudness + (LOUDNESS_RATE * lacking) / VELOCITY_UNIT);
    }
    if (noteLength !== null) {
      // The latest onset of a note that has outlasted the wanted length.
      const last = this.time - noteLength * STEPS_PER_SECOND;
      let change = 0;
      if (kind === TIME_SHIFT) {
        change = this.sounding.filter(([, on]) => last <= on && on < last + steps).length;
      } else {
        change = -this.sounding.filter(([key, on]) => key === value && on > last).length;
        this.sounding = this.sounding.filter(([key]) => key !== value);
      }
      this.noteLength = this.#bound(this.noteLength + NOTE_LENGTH_RATE * change);
      if (isStrike) this.sounding.push([value, this.time]);
    }
    this.time += steps;
  }

  /** @param {number} number */
  #bound(number) {
    const { LIMIT } = this.model.feedback;
    return Math.min(Math.max(number, -LIMIT), LIMIT);
  }

  /**
   * Shift the scores of the next id, in place.
   * @param {Float64Array} scores
   */
  apply(scores) {
    const { LIMIT, VELOCITY_UNIT } = this.model.feedback;
    const { NOTE_ON, NOTE_OFF, TIME_SHIFT, VELOCITY, STEPS_PER_SECOND, VELOCITY_OF_BIN } = this.model.performance;
    const [density, loudness, noteLength] = this.#wanted();
    /** @type {(kind: number, shift: (value: number) => number) => void} */
    const add = (kind, shift) => {
      const [first, stop] = this.model.spans[kind];
      for (let id = first; id < stop; id++) scores[id] += shift(id - first);
    };
    if (density !== null) for (const kind of [NOTE_ON, VELOCITY]) add(kind, () => this.density);
    if (noteLength !== null) add(NOTE_OFF, () => this.noteLength);
    const onsets = density === null ? 0 : this.density * density;
    const ends = noteLength === null ? 0 : (this.noteLength * this.sounding.length) / noteLength;
    add(TIME_SHIFT, (value) => Math.min((-(onsets + ends) * (value + 1)) / STEPS_PER_SECOND, LIMIT));
    const { velocity } = this;
    if (loudness !== null && velocity !== null) {
      const unit = this.loudness / VELOCITY_UNIT;
      add(VELOCITY, (value) => unit * (VELOCITY_OF_BIN[value] - VELOCITY_OF_BIN[velocity]));
    }
  }
}
