/** What somebody plays, event by event, as ids in canonical order. */

/** @typedef {{step: number, isOn: boolean, pitch: number, velocity: number}} KeyEvent The velocity is one of MIDI. */

export class PhraseEncoder {
  /** @param {import('./vocabulary.js').Vocabulary} vocabulary */
  constructor(vocabulary) {
    this.vocabulary = vocabulary;
    /** @type {KeyEvent[]} Of the newest step; those before it are written. */
    this.pending = [];
  }

  /**
   * Take an event; returns the ids of the steps before it, which are complete.
   * @param {KeyEvent} event
   * @param {import('./grammar.js').GrammarState} state What the ids so far have led to.
   */
  push(event, state) {
    const step = Math.max(event.step, state.time, this.pending[0]?.step ?? 0);
    const ids = this.pending.length && step > this.pending[0].step ? this.flush(state) : [];
    this.pending.push({ ...event, step });
    return ids;
  }

  /**
   * Write the events of the newest step: first keys that come up, then keys that go down, by ascending pitch.
   * @param {import('./grammar.js').GrammarState} state
   */
  flush(state) {
    const { NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, MAX_SHIFT_STEPS, VELOCITIES_PER_BIN } =
      this.vocabulary.model.performance;
    const pending = this.pending;
    this.pending = [];
    if (!pending.length) return [];
    const ids = this.vocabulary.eventsToIds(shifts(pending[0].step - state.time, TIME_SHIFT, MAX_SHIFT_STEPS));
    /** @type {Map<number, KeyEvent>} The last event of each key counts. */
    const last = new Map(pending.map((event) => [event.pitch, event]));
    const pitches = [...last.keys()].sort((a, b) => a - b);
    const struck = pitches.filter((pitch) => last.get(pitch)?.isOn);
    for (const pitch of pitches) if (state.down[pitch]) ids.push(this.vocabulary.idOf(NOTE_OFF, pitch));
    let current = state.velocity;
    for (const pitch of struck) {
      const velocity = Math.floor(Math.max((last.get(pitch)?.velocity ?? 1) - 1, 0) / VELOCITIES_PER_BIN);
      if (velocity !== current) ids.push(this.vocabulary.idOf(VELOCITY, velocity));
      current = velocity;
      ids.push(this.vocabulary.idOf(NOTE_ON, pitch));
    }
    return ids;
  }
}

/**
 * Return the events by which time passes.
 * @param {number} steps
 * @param {number} kind
 * @param {number} longest
 */
export function shifts(steps, kind, longest) {
  const value = Array(Math.floor(Math.max(steps, 0) / longest)).fill(longest);
  if (steps > 0 && steps % longest) value.push(steps % longest);
  return { kind: value.map(() => kind), value };
}
