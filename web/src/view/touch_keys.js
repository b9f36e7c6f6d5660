/** An octave and a third of keys that a finger can hit, for screens on which the whole keyboard is too small. */

const NAMES = ['C', 'C sharp', 'D', 'D sharp', 'E', 'F', 'F sharp', 'G', 'G sharp', 'A', 'A sharp', 'B'];
const VELOCITY = 76;

export class TouchKeys {
  /**
   * @param {HTMLElement} element
   * @param {import('../instrument/keys.js').Player} player
   */
  constructor(element, player) {
    this.element = element;
    this.player = player;
    this.lowest = 60;
    this.#build();
  }

  /** @param {number} octaves */
  move(octaves) {
    this.lowest = Math.min(Math.max(this.lowest + 12 * octaves, 24), 84);
    this.#build();
  }

  #build() {
    const keys = [];
    for (let pitch = this.lowest; pitch < this.lowest + 17; pitch++) {
      const key = document.createElement('button');
      key.type = 'button';
      const name = NAMES[pitch % 12];
      key.className = name.length > 1 ? 'black' : 'white';
      key.setAttribute('aria-label', `${name} ${Math.floor(pitch / 12) - 1}`);
      const strike = (/** @type {Event} */ event) => {
        event.preventDefault();
        key.classList.add('down');
        this.player.strike(pitch, VELOCITY);
      };
      const release = () => {
        if (!key.classList.contains('down')) return;
        key.classList.remove('down');
        this.player.release(pitch);
      };
      key.addEventListener('pointerdown', strike);
      for (const kind of ['pointerup', 'pointercancel', 'pointerleave', 'blur']) key.addEventListener(kind, release);
      key.addEventListener('keydown', (event) => {
        if ((event.key === 'Enter' || event.key === ' ') && !event.repeat) strike(event);
      });
      key.addEventListener('keyup', (event) => {
        if (event.key === 'Enter' || event.key === ' ') release();
      });
      keys.push(key);
    }
    this.element.replaceChildren(...keys);
  }
}
