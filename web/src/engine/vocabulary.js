/** Ids for the events of `music/performance.js`, as `tokenization/performance_encoding.py` has them. */

import { eventsToNotes, notesToEvents, playedNotes } from '../music/performance.js';

/** @typedef {import('../music/performance.js').Events} Events */
/** @typedef {import('../music/performance.js').Notes} Notes */

export class Vocabulary {
  /** @param {import('./model.js').Model} model */
  constructor(model) {
    this.model = model;
    this.size = model.events.length;
  }

  /**
   * Return the id of an event.
   * @param {number} kind
   * @param {number} value
   */
  idOf(kind, value) {
    const [first] = this.model.spans[kind];
    return first + value - (kind === this.model.performance.TIME_SHIFT ? 1 : 0);
  }

  /**
   * Steps by which an id moves time on.
   * @param {number} id
   */
  stepsOf(id) {
    const [kind, value] = this.model.events[id];
    return kind === this.model.performance.TIME_SHIFT ? value : 0;
  }

  /**
   * Return the ids of notes, from BOS on.
   * @param {Notes} notes
   */
  encode(notes) {
    return [this.model.bos, ...this.eventsToIds(notesToEvents(notes, this.model.performance))];
  }

  /**
   * Return the ids of events.
   * @param {Events} events
   */
  eventsToIds(events) {
    return events.kind.map((kind, index) => this.idOf(kind, events.value[index]));
  }

  /**
   * Return the events of any ids; those of an infilled piece in the order in which they sound.
   * @param {number[]} ids
   * @returns {Events}
   */
  idsToEvents(ids) {
    const { NOTE_OFF, VELOCITY } = this.model.performance;
    /** @type {Events} */
    const events = { kind: [], value: [] };
    for (const id of this.joinInfilled(ids)) {
      const [kind, value] = this.model.events[id] ?? [this.model.grammar.NOTHING, 0];
      if (kind < NOTE_OFF || kind > VELOCITY) continue;
      events.kind.push(kind);
      events.value.push(value);
    }
    return events;
  }

  /**
   * Return the notes of any ids, in seconds.
   * @param {number[]} ids
   */
  decode(ids) {
    return playedNotes(this.idsToEvents(ids), this.model.performance);
  }

  /**
   * Return the notes of any ids on the grid, and the step of the end.
   * @param {number[]} ids
   */
  notesOf(ids) {
    return eventsToNotes(this.idsToEvents(ids), this.model.performance);
  }

  /**
   * Return the ids of an infilled piece in the order prefix, middle, suffix; others as they are.
   * @param {number[]} ids
   */
  joinInfilled(ids) {
    const infill = this.model.infill;
    const border = infill === null ? -1 : ids.indexOf(infill.prefix);
    if (infill === null || border < 0) return ids;
    const before = ids.slice(0, border);
    // The suffix begins with an event; the TimeShifts before it are the gap.
    const first = before.findIndex((id) => this.stepsOf(id) === 0 && id !== infill.suffix);
    return [...ids.slice(border + 1), ...(first < 0 ? [] : before.slice(first))];
  }
}
