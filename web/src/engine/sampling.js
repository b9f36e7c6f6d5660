/** Drawing the next token: temperature, top-p, min-p and a seeded generator, all in double precision. */

/**
 * A generator of random numbers with a seed: Mulberry32, 32 bits of state. Two outputs make one number of 53 bits, so
 * that rare tokens are drawn as often as they should.
 */
export class Random {
  /** @param {number} seed A whole number; its lowest 32 bits count. */
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** Return a whole number from 0 to 2 ** 32 - 1. */
  bits() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let bits = this.state;
    bits = Math.imul(bits ^ (bits >>> 15), bits | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return (bits ^ (bits >>> 14)) >>> 0;
  }

  /** Return a number from 0 to below 1. */
  next() {
    const high = this.bits() >>> 5;
    const low = this.bits() >>> 6;
    return (high * 2 ** 26 + low) / 2 ** 53;
  }
}

/**
 * Return the token of the largest score; of equal ones the first.
 * @param {ArrayLike<number>} scores
 */
export function argmax(scores) {
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best]) best = id;
  return best;
}

/**
 * Draw a token. As in Transformers: scores are divided by the temperature, then the least likely tokens that together
 * have at most 1 - topP are left out, and those less than minP times as likely as the most likely one, which stays.
 * @param {Float64Array} scores Minus infinity for tokens that may not come.
 * @param {{temperature: number, topP: number, minP: number}} options A temperature of 0 takes the most likely token.
 * @param {Random} random
 */
export function sample(scores, { temperature, topP, minP }, random) {
  if (temperature === 0) return argmax(scores);
  const top = scores[argmax(scores)];
  const candidates = [];
  let total = 0;
  for (let id = 0; id < scores.length; id++) {
    if (scores[id] === -Infinity) continue;
    const weight = Math.exp((scores[id] - top) / temperature);
    candidates.push({ id, weight });
    total += weight;
  }
  // The most likely last; of equal ones the later id is kept first.
  candidates.sort((a, b) => a.weight - b.weight || a.id - b.id);
  let left = 0;
  let first = 0;
  const isLeftOut = (/** @type {number} */ weight) =>
    weight < minP || (topP < 1 && left + weight <= (1 - topP) * total);
  while (first < candidates.length - 1 && isLeftOut(candidates[first].weight)) left += candidates[first++].weight;
  let rest = random.next() * (total - left);
  for (let index = candidates.length - 1; index > first; index--) {
    rest -= candidates[index].weight;
    if (rest < 0) return candidates[index].id;
  }
  return candidates[first].id;
}
