/** A file of the visitor: continued from a place, or with a part of it played anew. */

import { Vocabulary } from './engine/vocabulary.js';
import { readMidi } from './music/midi_reader.js';
import { writeMidi } from './music/midi_writer.js';
import { Overview } from './view/overview.js';
import { box, button, input, say } from './view/panel.js';

/** @typedef {import('./engine/model.js').Model} Model */
/** @typedef {import('./duet.js').Duet} Duet */
/** @typedef {import('./music/performance.js').PlayedNote} PlayedNote */

// What is played of the file before the model goes on, and around a part that is played anew.
const LEAD_IN_SECONDS = 4;

/**
 * Offer a file for download.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {string} name
 */
export function save(bytes, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], { type: 'audio/midi' }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export class FilePiece {
  /**
   * @param {Model} model
   * @param {Duet} duet
   * @param {import('./view/roll.js').Roll} roll
   */
  constructor(model, duet, roll) {
    this.model = model;
    this.duet = duet;
    this.vocabulary = new Vocabulary(model);
    this.name = '';
    /** @type {number[]} */
    this.ids = [];
    /** @type {PlayedNote[]} */
    this.notes = [];
    this.take = 0;
    this.seed = 1;
    this.overview = new Overview(
      /** @type {HTMLCanvasElement} */ (box('overview')),
      roll,
      (start, stop) => this.#mark(start, stop),
    );
    for (const id of ['from', 'to']) {
      input(id).addEventListener('input', () => this.#mark(Number(input('from').value), Number(input('to').value)));
    }
    button('listen').addEventListener('click', () => this.#listen());
    button('continue').addEventListener('click', () => this.#continue());
    button('infill').addEventListener('click', () => this.#infill());
    button('infill').hidden = model.infill === null;
    box('infill-hint').hidden = model.infill === null;
  }

  /**
   * Read a file.
   * @param {File} file
   */
  async open(file) {
    if (file.size > this.model.midi.MAX_BYTES) {
      say(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB, and so is no music: choose a MIDI file.`, true);
      return;
    }
    try {
      const bytes = new Uint8Array(await file.arrayBuffer());
      this.ids = this.vocabulary.encode(readMidi(bytes, this.model));
    } catch (error) {
      const reason = error instanceof RangeError ? error.message : 'it could not be read';
      say(`${file.name} cannot be played: ${reason}. Choose another file.`, true);
      return;
    }
    say('');
    this.name = file.name;
    this.notes = this.vocabulary.decode(this.ids);
    const length = this.notes.reduce((most, { end }) => Math.max(most, end), 0);
    this.overview.notes = this.notes;
    this.overview.length = length;
    this.overview.isNew = () => false;
    box('versions').replaceChildren();
    box('file-name').textContent = `${file.name}, ${time(length)}, ${this.notes.length} notes`;
    for (const id of ['from', 'to']) input(id).max = length.toFixed(1);
    box('piece').hidden = false;
    this.#mark(Math.min(6, length / 3), Math.min(12, (2 * length) / 3));
  }

  /**
   * @param {number} start
   * @param {number} stop
   */
  #mark(start, stop) {
    const { overview } = this;
    overview.start = Math.min(start, stop);
    overview.stop = Math.max(start, stop);
    for (const [id, second] of /** @type {const} */ ([['from', overview.start], ['to', overview.stop]])) {
      input(id).value = String(second);
      input(id).setAttribute('aria-valuetext', time(second));
      box(`${id}-value`).textContent = time(second);
    }
    overview.draw();
  }

  #listen() {
    this.duet.play(this.notes.map((note) => ({ ...note, who: 'you' })), this.overview.start);
  }

  #continue() {
    const { stop } = this.overview;
    const limit = stop * this.model.performance.STEPS_PER_SECOND;
    let steps = 0;
    const ids = this.ids.filter((id) => (steps += this.vocabulary.stepsOf(id)) <= limit);
    this.duet.continueFrom(ids, this.notes, Math.max(stop - LEAD_IN_SECONDS, 0), stop);
  }

  #infill() {
    this.take = -2 - this.seed;
    if (this.duet.mode !== 'idle') this.duet.interrupt();
    this.duet.send({
      type: 'infill', take: this.take, ids: this.ids, gap: [this.overview.start, this.overview.stop], seed: this.seed++,
    });
    box('infill-progress').textContent = 'The model is playing the part anew …';
    button('infill').disabled = true;
  }

  /**
   * Follow the engine.
   * @param {import('./engine/studio.js').Report} report
   */
  receive(report) {
    if (!('take' in report) || report.take !== this.take) return;
    if (report.type === 'progress') {
      box('infill-progress').textContent = `The model has played ${report.seconds.toFixed(1)} s of the part …`;
    }
    if (report.type !== 'infilled') return;
    box('infill-progress').textContent = '';
    button('infill').disabled = false;
    if (report.ids === null) say(report.message ?? 'The part could not be played.', true);
    else this.#add(report.ids);
  }

  /** The engine has other work: the part is given up. */
  giveUp() {
    button('infill').disabled = false;
    box('infill-progress').textContent = '';
  }

  /** @param {number[]} ids The whole piece with another part. */
  #add(ids) {
    const { start, stop } = this.overview;
    const notes = this.vocabulary.decode(ids);
    const key = (/** @type {PlayedNote} */ { start, end, pitch }) => `${start} ${end} ${pitch}`;
    const old = new Set(this.notes.map(key));
    const isNew = (/** @type {PlayedNote} */ note) => !old.has(key(note));
    const number = box('versions').children.length + 1;
    const row = document.createElement('li');
    const title = document.createElement('span');
    title.textContent = `Version ${number}: ${time(start)} to ${time(stop)}, ${notes.filter(isNew).length} new notes`;
    const listen = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Listen' });
    const keep = Object.assign(document.createElement('button'), { type: 'button', textContent: 'Download' });
    const play = () => {
      this.overview.notes = notes;
      this.overview.isNew = isNew;
      this.overview.draw();
      const heard = notes.filter((note) => note.start < stop + LEAD_IN_SECONDS);
      this.duet.play(
        heard.map((note) => ({ ...note, who: isNew(note) ? 'model' : 'you' })),
        Math.max(start - LEAD_IN_SECONDS, 0),
      );
    };
    listen.addEventListener('click', play);
    keep.addEventListener('click', () => {
      save(writeMidi(notes, this.model.performance), `${this.name.replace(/\.[^.]*$/, '')}-version-${number}.mid`);
    });
    row.append(title, listen, keep);
    box('versions').append(row);
    play();
  }
}

/** @param {number} seconds */
function time(seconds) {
  const tenths = Math.round(10 * seconds);
  return `${Math.floor(tenths / 600)}:${String(Math.floor((tenths % 600) / 10)).padStart(2, '0')}.${tenths % 10}`;
}
