/** A whole file at a glance, with the part that is marked. */

/** @typedef {import('../music/performance.js').PlayedNote} PlayedNote */

export class Overview {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import('./roll.js').Roll} roll For its colours.
   * @param {(start: number, stop: number) => void} marked Called with seconds when a part is marked by pointer.
   */
  constructor(canvas, roll, marked) {
    this.canvas = canvas;
    this.roll = roll;
    /** @type {PlayedNote[]} */
    this.notes = [];
    this.length = 1;
    this.start = 0;
    this.stop = 0;
    /** @type {(note: PlayedNote) => boolean} */
    this.isNew = () => false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    /** @type {number | null} */
    let from = null;
    /** @param {PointerEvent} event */
    const second = (event) => {
      const box = canvas.getBoundingClientRect();
      return (Math.min(Math.max(event.clientX - box.left, 0), box.width) / box.width) * this.length;
    };
    canvas.addEventListener('pointerdown', (event) => {
      from = second(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      if (from === null) return;
      const to = second(event);
      marked(Math.min(from, to), Math.max(from, to));
    });
    for (const kind of ['pointerup', 'pointercancel']) canvas.addEventListener(kind, () => (from = null));
  }

  draw() {
    const { canvas, roll } = this;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext('2d');
    if (context === null) return;
    context.scale(ratio, ratio);
    context.fillStyle = roll.colours.paper;
    context.fillRect(0, 0, width, height);
    const scale = width / this.length;
    context.fillStyle = roll.colour('model', 60, 0.35);
    context.fillRect(this.start * scale, 0, Math.max((this.stop - this.start) * scale, 2), height);
    for (const note of this.notes) {
      context.fillStyle = roll.colour(this.isNew(note) ? 'model' : 'you', note.velocity);
      const y = ((108 - note.pitch) / 88) * (height - 2);
      context.fillRect(note.start * scale, y, Math.max((note.end - note.start) * scale, 1), 2);
    }
  }
}
