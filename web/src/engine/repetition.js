/** Ends figures that repeat for longer than in any performance, as `tokenization/repetition.py` has it. */

export class LoopBreaker {
  /** @param {import('./model.js').Model} model */
  constructor(model) {
    const { MAX_LAG, MAX_REPEATED_NOTES, PENALTY } = model.repetition;
    this.model = model;
    this.limit = MAX_REPEATED_NOTES;
    this.penalty = PENALTY;
    /** The last keys struck, the newest first; for each lag the count of repeats, and whether it is a loop. */
    this.keys = new Int16Array(MAX_LAG).fill(-1);
    this.repeated = new Int32Array(MAX_LAG);
    this.isLoop = new Uint8Array(MAX_LAG);
  }

  copy() {
    const copy = new LoopBreaker(this.model);
    copy.keys.set(this.keys);
    copy.repeated.set(this.repeated);
    copy.isLoop.set(this.isLoop);
    return copy;
  }

  /** @param {number} id */
  advance(id) {
    const [first, stop] = this.model.spans[this.model.performance.NOTE_ON];
    if (id < first || id >= stop) return;
    const key = id - first;
    for (let lag = 0; lag < this.keys.length; lag++) {
      this.repeated[lag] =
        this.keys[lag] === key ? this.repeated[lag] + 1 : Math.floor((this.repeated[lag] * 3) / 4);
      const bound = Math.max(this.isLoop[lag] ? Math.floor(this.limit / 10) : this.limit, 1);
      this.isLoop[lag] = this.repeated[lag] >= bound ? 1 : 0;
    }
    this.keys.copyWithin(1, 0, this.keys.length - 1);
    this.keys[0] = key;
  }

  /**
   * Lower the scores of the keys of a loop, in place.
   * @param {Float64Array} scores
   */
  apply(scores) {
    // The shortest lag is the figure's length. All its keys are penalised: with one, the others would loop on.
    const lag = this.isLoop.indexOf(1);
    if (lag < 0) return;
    const [first] = this.model.spans[this.model.performance.NOTE_ON];
    for (const key of new Set(this.keys.subarray(0, lag + 1))) if (key >= 0) scores[first + key] -= this.penalty;
  }
}
