/**
 * The piano roll with its keyboard: notes rise from the keys, sound where they cross the now-line, and flow on above
 * it. Below the line lies what is generated and not heard yet.
 */

/** @typedef {import('../duet.js').SessionNote} SessionNote */
/** @typedef {import('../duet.js').Who} Who */

const [LOWEST, HIGHEST] = [21, 108];
const IS_BLACK = [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0];
const WHITE_KEYS = 52;

// Seconds of the past and of the future that fit on the roll.
const PAST_SECONDS = 8;
const FUTURE_SECONDS = 2;

// No note lasts longer, so that older ones need not be looked at.
const LONGEST_SECONDS = 12;

/**
 * @typedef {object} Colours
 * @property {string} paper
 * @property {string} ink
 * @property {string} lane
 * @property {string} line
 * @property {string} white
 * @property {string} black
 * @property {[number, number, number]} you Hue, saturation and lightness.
 * @property {[number, number, number]} model
 */

/** Where each key lies, as shares of the width: [left, width]. */
const PLACES = (() => {
  /** @type {[number, number][]} */
  const places = [];
  let white = 0;
  for (let pitch = LOWEST; pitch <= HIGHEST; pitch++) {
    if (IS_BLACK[pitch % 12]) places[pitch] = [(white - 0.3) / WHITE_KEYS, 0.6 / WHITE_KEYS];
    else places[pitch] = [white++ / WHITE_KEYS, 1 / WHITE_KEYS];
  }
  return places;
})();

export class Roll {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
    this.colours = this.#colours();
    /** @type {Map<string, string>} */
    this.mixed = new Map();
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      this.colours = this.#colours();
      this.mixed.clear();
      this.drawn = '';
    });
    /** What was drawn last, where nothing moves. */
    this.drawn = '';
    new ResizeObserver(() => this.#resize()).observe(canvas);
    this.#resize();
  }

  #resize() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawn = '';
    this.keysHeight = Math.min(Math.max(this.width * 0.075, 34), 92);
  }

  /** @returns {Colours} */
  #colours() {
    const style = getComputedStyle(document.documentElement);
    /** @param {string} name */
    const value = (name) => style.getPropertyValue(name).trim();
    /** @param {string} name @returns {[number, number, number]} */
    const hsl = (name) => /** @type {[number, number, number]} */ (value(name).split(/\s+/).map(parseFloat));
    return {
      paper: value('--roll'),
      ink: value('--ink'),
      lane: value('--lane'),
      line: value('--line'),
      white: value('--white-key'),
      black: value('--black-key'),
      you: hsl('--you'),
      model: hsl('--model'),
    };
  }

  /**
   * The colour of a note: the louder, the stronger; all are opaque.
   * @param {Who} who
   * @param {number} velocity
   * @param {number} share How much of it is not the paper's.
   */
  colour(who, velocity, share = 1) {
    const [hue, saturation, lightness] = this.colours[who];
    const strength = share * (0.4 + 0.6 * Math.min(Math.max((velocity - 20) / 90, 0), 1));
    const key = `${who} ${strength.toFixed(2)}`;
    let mixed = this.mixed.get(key);
    if (mixed === undefined) {
      const ink = `hsl(${hue} ${saturation}% ${lightness}%)`;
      mixed = `color-mix(in srgb, ${ink} ${(100 * strength).toFixed(0)}%, ${this.colours.paper})`;
      this.mixed.set(key, mixed);
    }
    return mixed;
  }

  /**
   * Draw a frame.
   * @param {SessionNote[]} notes
   * @param {number} now
   * @param {Map<number, Who>} sounding
   */
  draw(notes, now, sounding) {
    const { context, width = 0, height = 0, colours } = this;
    const newest = notes.slice(-200).reduce((latest, { end }) => Math.max(latest, end ?? Infinity), -Infinity);
    const still = newest < now - PAST_SECONDS ? `still ${[...sounding.keys()]}` : '';
    if (still && still === this.drawn) return;
    this.drawn = still;
    const rollHeight = height - (this.keysHeight ?? 0);
    const scale = rollHeight / (PAST_SECONDS + FUTURE_SECONDS);
    const line = PAST_SECONDS * scale;
    context.fillStyle = colours.paper;
    context.fillRect(0, 0, width, height);
    context.fillStyle = colours.lane;
    for (let pitch = LOWEST; pitch <= HIGHEST; pitch++) {
      const [left, share] = PLACES[pitch];
      if (IS_BLACK[pitch % 12]) context.fillRect(left * width, 0, share * width, rollHeight);
      else if (pitch % 12 === 0) context.fillRect(left * width, 0, 1, rollHeight);
    }

    for (let index = notes.length - 1; index >= 0; index--) {
      const note = notes[index];
      if (note.start < now - PAST_SECONDS - LONGEST_SECONDS) break;
      if (note.start > now + FUTURE_SECONDS || !(note.pitch in PLACES)) continue;
      const end = note.end ?? Math.max(now, note.start + 0.3);
      if (end < now - PAST_SECONDS) continue;
      const [left, share] = PLACES[note.pitch];
      const top = line + (note.start - now) * scale;
      const bottom = line + (end - now) * scale;
      // Time runs downwards: what began earlier has risen higher.
      const y = Math.max(top, -4);
      const h = Math.max(Math.min(bottom, rollHeight) - y, 2);
      const w = Math.max(share * width * 0.86, 2.5);
      context.fillStyle = this.colour(note.who, note.velocity, note.start > now ? 0.5 : 1);
      context.beginPath();
      context.roundRect(left * width + (share * width - w) / 2, y, w, h, Math.min(w / 2, 3));
      context.fill();
    }

    context.fillStyle = colours.line;
    context.fillRect(0, line - 1, width, 2);
    this.#keyboard(rollHeight, sounding);
  }

  /**
   * @param {number} top
   * @param {Map<number, Who>} sounding
   */
  #keyboard(top, sounding) {
    const { context, width = 0, keysHeight = 0, colours } = this;
    context.fillStyle = colours.black;
    context.fillRect(0, top, width, keysHeight);
    for (const isBlack of [0, 1]) {
      for (let pitch = LOWEST; pitch <= HIGHEST; pitch++) {
        if (IS_BLACK[pitch % 12] !== isBlack) continue;
        const [left, share] = PLACES[pitch];
        const who = sounding.get(pitch);
        context.fillStyle = who ? this.colour(who, 110) : isBlack ? colours.black : colours.white;
        const gap = isBlack ? 0 : Math.min(1, share * width * 0.12);
        const h = isBlack ? keysHeight * 0.62 : keysHeight - 1;
        context.fillRect(left * width, top + 1, share * width - gap, h);
      }
    }
  }

  /**
   * Return the key at a place of the canvas, or null.
   * @param {number} x
   * @param {number} y
   */
  keyAt(x, y) {
    const { width = 0, height = 0, keysHeight = 0 } = this;
    const top = height - keysHeight;
    if (y < top) return null;
    const isUpper = y < top + keysHeight * 0.62;
    for (const isBlack of isUpper ? [1, 0] : [0]) {
      for (let pitch = LOWEST; pitch <= HIGHEST; pitch++) {
        const [left, share] = PLACES[pitch];
        if (IS_BLACK[pitch % 12] === isBlack && x >= left * width && x < (left + share) * width) return pitch;
      }
    }
    return null;
  }
}

/**
 * Let pointers play the keyboard of a roll, a finger each.
 * @param {Roll} roll
 * @param {import('../instrument/keys.js').Player} player
 */
export function playByPointer(roll, player) {
  /** @type {Map<number, number>} */
  const fingers = new Map();
  const { canvas } = roll;
  /** @param {PointerEvent} event */
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const pitch = roll.keyAt(event.clientX - box.left, event.clientY - box.top);
    const depth = (box.bottom - event.clientY) / (roll.keysHeight ?? 1);
    return { pitch, velocity: Math.round(50 + 50 * Math.min(Math.max(1 - depth, 0), 1)) };
  };
  /** @param {number} finger */
  const lift = (finger) => {
    const pitch = fingers.get(finger);
    if (pitch !== undefined) player.release(pitch);
    fingers.delete(finger);
  };
  canvas.addEventListener('pointerdown', (event) => {
    const { pitch, velocity } = at(event);
    if (pitch === null) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, pitch);
    player.strike(pitch, velocity);
  });
  canvas.addEventListener('pointermove', (event) => {
    const before = fingers.get(event.pointerId);
    const { pitch, velocity } = at(event);
    if (before === undefined || pitch === before) return;
    lift(event.pointerId);
    if (pitch === null) return;
    fingers.set(event.pointerId, pitch);
    player.strike(pitch, velocity);
  });
  for (const kind of /** @type {const} */ (['pointerup', 'pointercancel'])) {
    canvas.addEventListener(kind, (event) => lift(event.pointerId));
  }
}
