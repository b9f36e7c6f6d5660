/** MIDI keyboards in, and a MIDI instrument out. */

/** @typedef {import('./keys.js').Player} Player */

const [NOTE_OFF, NOTE_ON, CONTROLLER] = [0x80, 0x90, 0xb0];
const [SUSTAIN_PEDAL, PEDAL_DOWN, ALL_NOTES_OFF] = [64, 64, 123];

export class MidiPorts {
  /**
   * @param {Player} player
   * @param {() => void} changed Called when ports have come or gone.
   */
  constructor(player, changed) {
    this.player = player;
    this.changed = changed;
    /** @type {MIDIAccess | null} */
    this.access = null;
    /** @type {MIDIOutput | null} */
    this.output = null;
  }

  /**
   * Ask the browser for the ports.
   * @throws {Error} With a sentence that says why there are none.
   */
  async open() {
    if (!('requestMIDIAccess' in navigator)) {
      throw new Error('This browser knows no MIDI: use Chrome, Edge or Firefox, or the keys of your computer.');
    }
    try {
      this.access = await navigator.requestMIDIAccess();
    } catch {
      throw new Error('The browser was not allowed to use MIDI: allow it in the settings of this page, then try again.');
    }
    this.access.onstatechange = () => this.#listen();
    this.#listen();
  }

  #listen() {
    for (const input of this.inputs) input.onmidimessage = (event) => event.data && this.receive(event.data);
    if (this.output !== null && this.output.state === 'disconnected') this.output = null;
    this.changed();
  }

  get inputs() {
    return [...(this.access?.inputs.values() ?? [])].filter(({ state }) => state === 'connected');
  }

  get outputs() {
    return [...(this.access?.outputs.values() ?? [])].filter(({ state }) => state === 'connected');
  }

  /**
   * Follow a message of a keyboard.
   * @param {Uint8Array} message
   */
  receive([status, first, second]) {
    const kind = status & 0xf0;
    if (kind === NOTE_ON && second > 0) this.player.strike(first, second);
    else if (kind === NOTE_ON || kind === NOTE_OFF) this.player.release(first);
    else if (kind === CONTROLLER && first === SUSTAIN_PEDAL) this.player.pedal(second >= PEDAL_DOWN);
  }

  /**
   * Choose the output, or none.
   * @param {string} id
   */
  choose(id) {
    this.silence();
    this.output = this.outputs.find((output) => output.id === id) ?? null;
  }

  /**
   * Send a key going down, or coming up with velocity 0.
   * @param {number} pitch
   * @param {number} velocity
   * @param {number} [time] In the milliseconds of `performance.now()`.
   */
  send(pitch, velocity, time) {
    this.output?.send([velocity ? NOTE_ON : NOTE_OFF, pitch, velocity], time);
  }

  /** Take back what has been sent for later. */
  silence() {
    /** @type {any} Not in every browser. */ (this.output)?.clear?.();
    this.output?.send([CONTROLLER, ALL_NOTES_OFF, 0]);
  }
}
