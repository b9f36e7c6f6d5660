/** The computer's keyboard as two octaves of a piano: the row of Z from C on, the row of Q an octave higher. */

// By the place of a key, so that it is the same on every layout.
const LOWER = ['KeyZ', 'KeyS', 'KeyX', 'KeyD', 'KeyC', 'KeyV', 'KeyG', 'KeyB', 'KeyH', 'KeyN', 'KeyJ', 'KeyM'];
const UPPER = ['KeyQ', 'Digit2', 'KeyW', 'Digit3', 'KeyE', 'KeyR', 'Digit5', 'KeyT', 'Digit6', 'KeyY', 'Digit7', 'KeyU'];
const ABOVE = ['KeyI', 'Digit9', 'KeyO', 'Digit0', 'KeyP'];

/** @type {Map<string, number>} Semitones above the lowest key. */
const SEMITONES = new Map([...LOWER, ...UPPER, ...ABOVE].map((code, index) => [code, index]));

const VELOCITY = 72;
const LOUD_VELOCITY = 98;

/**
 * @typedef {object} Player What is told of keys and pedal.
 * @property {(pitch: number, velocity: number) => void} strike
 * @property {(pitch: number) => void} release
 * @property {(isDown: boolean) => void} pedal
 */

/** Elements that need letters for themselves. */
const TYPING = 'input:not([type=range], [type=checkbox], [type=button]), select, textarea';

export class ComputerKeys {
  /** @param {Player} player */
  constructor(player) {
    this.player = player;
    this.octave = 4;
    /** @type {Map<string, number>} */
    this.held = new Map();
    addEventListener('keydown', (event) => this.#press(event));
    addEventListener('keyup', (event) => this.#lift(event.code));
    addEventListener('blur', () => this.releaseAll());
  }

  /** @param {KeyboardEvent} event */
  #press(event) {
    const isTyping = event.target instanceof Element && event.target.matches(TYPING);
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    if (event.code === 'ShiftRight') this.player.pedal(true);
    if (event.code === 'BracketLeft') this.octave = Math.max(this.octave - 1, 1);
    if (event.code === 'BracketRight') this.octave = Math.min(this.octave + 1, 6);
    const semitones = SEMITONES.get(event.code);
    if (semitones === undefined || this.held.has(event.code)) return;
    event.preventDefault();
    const pitch = 12 * (this.octave + 1) - 12 + semitones;
    this.held.set(event.code, pitch);
    this.player.strike(pitch, event.shiftKey ? LOUD_VELOCITY : VELOCITY);
  }

  /** @param {string} code */
  #lift(code) {
    if (code === 'ShiftRight') this.player.pedal(false);
    const pitch = this.held.get(code);
    if (pitch === undefined) return;
    this.held.delete(code);
    this.player.release(pitch);
  }

  releaseAll() {
    for (const code of [...this.held.keys()]) this.#lift(code);
    this.player.pedal(false);
  }
}
