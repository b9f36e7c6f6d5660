/** The thread of the engine: it loads onnxruntime and the program, and runs the studio. */

import { Program } from './program.js';
import { Studio } from './studio.js';

/** @typedef {import('./studio.js').Request} Request */
/** @typedef {{type: 'load', model: import('./model.js').Model, base: string, threads: number}} LoadRequest */

// How often the page is woken to look at its clock, in milliseconds: timers of a page in the background are slowed down,
// those of its worker are not.
const TICK = 50;

// onnxruntime's files keep their names: by them its threads find each other.
const MODULE = 'ort-wasm-simd-threaded';

/** @type {Studio | null} */
let studio = null;
/** @type {(() => void) | null} */
let wake = null;
const channel = new MessageChannel();
channel.port1.onmessage = () => wake?.();

/** Let messages come in; a timer of no time would take four milliseconds. */
function rest() {
  return new Promise((/** @type {(value: void) => void} */ resolve) => {
    wake = resolve;
    channel.port2.postMessage(0);
  });
}

/** @param {unknown} message */
const post = (message) => globalThis.postMessage(message);

/**
 * Fetch a file, telling how much of it has come.
 * @param {string} url
 * @param {number} size
 */
async function download(url, size) {
  const response = await fetch(url);
  if (!response.ok || response.body === null) {
    throw new Error(`${url.split('/').at(-1)} could not be loaded (${response.status}): check the connection.`);
  }
  const parts = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    post({ type: 'loading', received, size });
  }
  const bytes = new Uint8Array(received);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** @param {LoadRequest} request */
async function load({ model, base, threads }) {
  const [bytes, { default: startModule }] = await Promise.all([
    download(new URL(model.program.file, base).href, model.program.bytes),
    import(new URL(`ort/${MODULE}.mjs`, base).href),
  ]);
  const ort = await startModule({ numThreads: threads, locateFile: () => new URL(`ort/${MODULE}.wasm`, base).href });
  const program = await Program.load(ort, bytes, model.program, threads);
  // The first calls are slow: the browser compiles what it runs often.
  for (let call = 0; call < 4; call++) await program.run([model.bos]);
  program.position = 0;
  studio = new Studio(model, program, post, rest);
  setInterval(() => post({ type: 'tick' }), TICK);
  post({ type: 'ready', threads });
}

globalThis.onmessage = async (/** @type {MessageEvent<LoadRequest | Request>} */ { data }) => {
  try {
    if (data.type === 'load') await load(data);
    else studio?.receive(data);
  } catch (error) {
    post({ type: 'failed', message: error instanceof Error ? error.message : String(error) });
  }
};
