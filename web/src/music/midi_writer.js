/** Notes as a MIDI file of one piano track, 1000 ticks a second, as Python writes them. */

/** @param {number} value */
function variable(value) {
  const bytes = [value & 0x7f];
  for (let rest = value >>> 7; rest; rest >>>= 7) bytes.unshift((rest & 0x7f) | 0x80);
  return bytes;
}

/** @param {number} value @param {number} length */
function big(value, length) {
  return Array.from({ length }, (_, index) => (value >>> (8 * (length - 1 - index))) & 255);
}

/**
 * @param {import('./performance.js').PlayedNote[]} notes
 * @param {import('../engine/model.js').PerformanceConstants} constants
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function writeMidi(notes, constants) {
  const { QUARTERS_PER_MINUTE, TICKS_PER_QUARTER } = constants;
  const ticksPerSecond = (TICKS_PER_QUARTER * QUARTERS_PER_MINUTE) / 60;
  /** @type {{tick: number, isOn: number, bytes: number[]}[]} */
  const events = [];
  for (const { start, end, pitch, velocity } of notes) {
    const [from, to] = [Math.round(start * ticksPerSecond), Math.round(end * ticksPerSecond)];
    events.push({ tick: from, isOn: 1, bytes: [0x90, pitch, velocity] });
    events.push({ tick: Math.max(to, from + 1), isOn: 0, bytes: [0x80, pitch, 0] });
  }
  // A key comes up before it goes down again.
  events.sort((a, b) => a.tick - b.tick || a.isOn - b.isOn);
  const track = [0, 0xff, 0x51, 3, ...big(Math.round(60e6 / QUARTERS_PER_MINUTE), 3), 0, 0xc0, 0];
  let now = 0;
  for (const { tick, bytes } of events) {
    track.push(...variable(tick - now), ...bytes);
    now = tick;
  }
  track.push(0, 0xff, 0x2f, 0);
  const header = [0x4d, 0x54, 0x68, 0x64, 0, 0, 0, 6, 0, 0, 0, 1, ...big(TICKS_PER_QUARTER, 2)];
  return Uint8Array.from([...header, 0x4d, 0x54, 0x72, 0x6b, ...big(track.length, 4), ...track]);
}
