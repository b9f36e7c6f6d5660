/** Lets keys come up which the model has forgotten, as `tokenization/forgotten_keys.py` has it. */

/**
 * Raise the scores of their NoteOffs, in place.
 * @param {Float64Array} scores
 * @param {import('./grammar.js').MusicGrammar} grammar The grammar, whose state tells which keys they are.
 */
export function raiseForgottenKeys(scores, { model, state, off }) {
  for (const [key, step] of state.leftOut) {
    const seconds = (state.time - Math.max(step, state.promptTime)) / model.performance.STEPS_PER_SECOND;
    scores[off + key] += model.forgotten.RATE * seconds ** 2;
  }
}
