/** onnxruntime's WebAssembly module in Node. */

import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const binary = createRequire(import.meta.url).resolve('onnxruntime-web/ort-wasm-simd-threaded.wasm');

export async function startOrt(threads = 1) {
  const { default: factory } = await import(pathToFileURL(binary.replace(/\.wasm$/, '.mjs')).href);
  return factory({ numThreads: threads, wasmBinary: await readFile(binary) });
}
