/**
 * Piano music on a grid of steps: notes to events and back, as `tokenization/performance.py` has it.
 *
 * Arrays of one kind of number stand side by side, as in Python: N notes, L events.
 */

/**
 * @typedef {object} Notes Notes on the grid, the notes of one key in the order of its strikes.
 * @property {number[]} start Step in which the key goes down, or BEFORE.
 * @property {number[]} end Step in which the sound ends, or FOREVER.
 * @property {number[]} pitch 0..127.
 * @property {number[]} velocity Bin 0..31, or UNKNOWN.
 */

/**
 * @typedef {object} Events Events in sequence.
 * @property {number[]} kind NOTE_OFF, NOTE_ON, TIME_SHIFT or VELOCITY.
 * @property {number[]} value Accordingly a pitch, a pitch, steps or a velocity bin.
 */

/** @typedef {import('../engine/model.js').PerformanceConstants} PerformanceConstants */

/**
 * Round to whole steps, halves up; what is a millionth of a step short of a half counts as one.
 * @param {number} steps
 */
export function roundToSteps(steps) {
  return Math.floor(steps + (0.5 + 1e-6));
}

/**
 * Return the indexes 0..length - 1 sorted by several keys, the first one first; equal ones keep their order.
 * @param {number} length
 * @param {...ArrayLike<number>} keys
 */
export function order(length, ...keys) {
  const indexes = Array.from({ length }, (_, index) => index);
  return indexes.sort((a, b) => {
    for (const key of keys) if (key[a] !== key[b]) return key[a] - key[b];
    return a - b;
  });
}

/**
 * Write notes as events in canonical order.
 * @param {Notes} notes Those from BEFORE only come up, those until FOREVER only go down.
 * @param {PerformanceConstants} constants
 * @param {number} [length] Step until which time runs on after the last note.
 * @returns {Events}
 */
export function notesToEvents(notes, constants, length = 0) {
  const { NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, MAX_SHIFT_STEPS, UNKNOWN } = constants;
  /** @type {Events} */
  const events = { kind: [], value: [] };
  let now = 0;
  let current = UNKNOWN;
  /** @param {number} kind @param {number} value */
  const write = (kind, value) => {
    events.kind.push(kind);
    events.value.push(value);
  };
  /** @param {number} step */
  const runTo = (step) => {
    for (; step - now >= MAX_SHIFT_STEPS; now += MAX_SHIFT_STEPS) write(TIME_SHIFT, MAX_SHIFT_STEPS);
    if (step > now) write(TIME_SHIFT, step - now);
    now = step;
  };
  for (const { step, kind, pitch, velocity } of keyEvents(notes, constants)) {
    runTo(step);
    if (kind === NOTE_ON && velocity !== current) write(VELOCITY, velocity);
    if (kind === NOTE_ON) current = velocity;
    write(kind === NOTE_ON ? NOTE_ON : NOTE_OFF, pitch);
  }
  runTo(Math.max(length, now));
  return events;
}

/**
 * Sort what keys do into canonical order.
 * @param {Notes} notes
 * @param {PerformanceConstants} constants
 */
export function keyEvents(notes, constants) {
  const { NOTE_OFF, NOTE_ON, BEFORE, FOREVER, UNKNOWN } = constants;
  const sorted = order(notes.start.length, notes.pitch, notes.start);
  const all = [];
  for (let i = 0; i < sorted.length; i++) {
    const note = sorted[i];
    const next = sorted[i + 1];
    const [start, pitch, velocity] = [notes.start[note], notes.pitch[note], notes.velocity[note]];
    let end = Math.max(notes.end[note], start + 1);
    if (next !== undefined && notes.pitch[next] === pitch) end = Math.min(end, notes.start[next]);
    if (end <= start) continue;
    // Velocities that are not known go before those that are, or their notes would take these for theirs.
    if (end < FOREVER) all.push({ step: end, kind: NOTE_OFF, known: 0, pitch, velocity: UNKNOWN });
    if (start > BEFORE) all.push({ step: start, kind: NOTE_ON, known: velocity === UNKNOWN ? 0 : 1, pitch, velocity });
  }
  return all.sort((a, b) => a.step - b.step || a.kind - b.kind || a.known - b.known || a.pitch - b.pitch);
}

/**
 * Read notes from any events whatever.
 * @param {Events} events
 * @param {PerformanceConstants} constants
 * @returns {{notes: Notes, length: number}} The notes in the order in which they began, and the step of the end.
 */
export function eventsToNotes(events, constants) {
  const { NOTE_OFF, NOTE_ON, TIME_SHIFT, VELOCITY, MAX_STEPS, BEFORE, FOREVER, UNKNOWN } = constants;
  /** @type {Notes} */
  const notes = { start: [], end: [], pitch: [], velocity: [] };
  const open = new Map(); // pitch to the index of its last note
  const seen = new Set();
  let step = 0;
  let velocity = UNKNOWN;
  for (let i = 0; i < events.kind.length; i++) {
    const [kind, value] = [events.kind[i], events.value[i]];
    if (kind === TIME_SHIFT) step = Math.min(step + value, MAX_STEPS);
    else if (kind === VELOCITY) velocity = value;
    else if (kind === NOTE_ON || kind === NOTE_OFF) {
      if (open.has(value)) notes.end[open.get(value)] = step;
      open.delete(value);
      if (kind === NOTE_ON || !seen.has(value)) {
        if (kind === NOTE_ON) open.set(value, notes.start.length);
        notes.start.push(kind === NOTE_ON ? step : BEFORE);
        notes.end.push(kind === NOTE_ON ? FOREVER : step);
        notes.pitch.push(value);
        notes.velocity.push(kind === NOTE_ON ? velocity : UNKNOWN);
      }
      seen.add(value);
    }
  }
  return { notes, length: step };
}

/**
 * @typedef {object} PlayedNote A note in seconds and in MIDI's velocities.
 * @property {number} start
 * @property {number} end
 * @property {number} pitch
 * @property {number} velocity 1..127.
 */

/**
 * Read the notes of events as they sound, as `write_score` does.
 * @param {Events} events
 * @param {PerformanceConstants} constants
 * @returns {PlayedNote[]}
 */
export function playedNotes(events, constants) {
  const { STEPS_PER_SECOND, BEFORE, FOREVER, UNKNOWN, DEFAULT_VELOCITY, VELOCITY_OF_BIN } = constants;
  const { notes, length } = eventsToNotes(events, constants);
  const played = [];
  for (let i = 0; i < notes.start.length; i++) {
    const start = notes.start[i];
    if (start === BEFORE) continue;
    const end = Math.max(notes.end[i] === FOREVER ? length : notes.end[i], start + 1);
    const velocity = notes.velocity[i] === UNKNOWN ? DEFAULT_VELOCITY : VELOCITY_OF_BIN[notes.velocity[i]];
    played.push({ start: start / STEPS_PER_SECOND, end: end / STEPS_PER_SECOND, pitch: notes.pitch[i], velocity });
  }
  return played;
}
