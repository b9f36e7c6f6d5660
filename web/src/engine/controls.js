/** What is wanted of the controls during generation, as `tokenization/controls.py` has it. */

/** @typedef {import('./model.js').Attribute} Attribute */
/** @typedef {number | string | [number, number | string][]} Wanted A value, or pairs of seconds and value. */

/**
 * Return the index of the value nearest to a number.
 * @param {Attribute} attribute
 * @param {number} number
 */
export function nearest(attribute, number) {
  const values = /** @type {number[]} */ (attribute.values);
  let index = 0;
  while (index + 1 < values.length) {
    const edge = attribute.is_ratio
      ? Math.sqrt(values[index + 1] * values[index])
      : (values[index + 1] + values[index]) / 2;
    if (number < edge) break;
    index++;
  }
  return index;
}

export class Controls {
  /**
   * @param {import('./model.js').Model} model
   * @param {Record<string, Wanted>} wanted By the options of the attributes; what is left out is off.
   */
  constructor(model, wanted = {}) {
    this.model = model;
    /** @type {number[]} Indexes of attributes that the model states itself, or that are given. */
    this.stated = [];
    /** @type {Map<number, [number, number][]>} */
    this.given = new Map();
    const { PLANNED, OFF } = model.control;
    model.controls.forEach((attribute, index) => {
      const value = wanted[attribute.option];
      if (value === undefined || value === null || value === OFF) return;
      this.stated.push(index);
      if (value === PLANNED) return;
      const pairs = /** @type {[number, number | string][]} */ (Array.isArray(value) ? value : [[0, value]]);
      this.given.set(
        index,
        pairs.map(([seconds, one]) => [seconds, attribute.isNumber ? Number(one) : this.#find(attribute, one)]),
      );
    });
  }

  /**
   * @param {Attribute} attribute
   * @param {number | string} name
   */
  #find(attribute, name) {
    const index = attribute.values.findIndex((value) => String(value).toLowerCase() === String(name).toLowerCase());
    if (index < 0) throw new RangeError(`${attribute.option} (${name}) must be one of ${attribute.values.join(', ')}.`);
    return index;
  }

  /**
   * Return the index of the value that is given for an attribute, or null.
   * @param {number} index
   * @param {number} steps Time since the end of the prompt.
   */
  value(index, steps) {
    const pairs = this.given.get(index);
    if (pairs === undefined) return null;
    const number = this.number(index, steps);
    if (number !== null) return nearest(this.model.controls[index], number);
    return pairs[Math.max(this.#next(pairs, steps) - 1, 0)][1];
  }

  /**
   * Return the number that is given for an attribute, not rounded but within its values, or null.
   * @param {number} index
   * @param {number} steps Time since the end of the prompt.
   */
  number(index, steps) {
    const pairs = this.given.get(index);
    const { isNumber, values } = this.model.controls[index];
    if (pairs === undefined || !isNumber) return null;
    const next = this.#next(pairs, steps);
    let number = pairs[Math.max(next - 1, 0)][1];
    if (next > 0 && next < pairs.length) {
      const [[t0, v0], [t1, v1]] = [pairs[next - 1], pairs[next]];
      number = v0 + ((steps / this.model.performance.STEPS_PER_SECOND - t0) * (v1 - v0)) / (t1 - t0);
    }
    return Math.min(Math.max(number, Number(values[0])), Number(values[values.length - 1]));
  }

  /**
   * Return how many of the pairs have begun.
   * @param {[number, number][]} pairs
   * @param {number} steps
   */
  #next(pairs, steps) {
    let next = 0;
    while (next < pairs.length && pairs[next][0] <= steps / this.model.performance.STEPS_PER_SECOND) next++;
    return next;
  }
}
