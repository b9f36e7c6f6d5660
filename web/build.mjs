/** Make the page in dist/: scripts bundled, onnxruntime and the samples beside them. `npm run build`. */

import { build } from 'esbuild';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const { resolve } = createRequire(import.meta.url);
const out = join(here, 'dist');
const SAMPLES = ['velocity4', 'velocity8', 'velocity12', 'release'];

await rm(out, { recursive: true, force: true });
await mkdir(join(out, 'ort'), { recursive: true });
await mkdir(join(out, 'samples'));

await build({
  entryPoints: { main: join(here, 'src/main.js'), worker: join(here, 'src/engine/worker.js') },
  outdir: out,
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['es2022'],
  logLevel: 'warning',
});
for (const name of ['index.html', 'style.css']) await cp(join(here, 'src', name), join(out, name));

const ort = dirname(resolve('onnxruntime-web/ort-wasm-simd-threaded.wasm'));
for (const end of ['mjs', 'wasm']) {
  const name = `ort-wasm-simd-threaded.${end}`;
  await cp(join(ort, name), join(out, 'ort', name));
}

const licenses = ['Music TX is licensed under Apache-2.0.'];
for (const name of SAMPLES) {
  const folder = dirname(resolve(`@audio-samples/piano-mp3-${name}/package.json`));
  for (const file of await readdir(join(folder, 'audio'))) {
    // A sharp sign begins a fragment in addresses.
    await cp(join(folder, 'audio', file), join(out, 'samples', file.replace('#', 's')));
  }
}
licenses.push('samples/: Salamander Grand Piano V3 by Alexander Holm, CC BY 3.0, https://creativecommons.org/licenses/by/3.0/');
licenses.push(`ort/: onnxruntime-web, MIT, Microsoft Corporation`);
await writeFile(join(out, 'licenses.txt'), `${licenses.join('\n\n')}\n`);
// Without it, GitHub Pages leaves out files by its own rules.
await writeFile(join(out, '.nojekyll'), '');
const { version } = JSON.parse(await readFile(join(here, 'node_modules/onnxruntime-web/package.json'), 'utf8'));
console.log(`dist/: the page, with onnxruntime-web ${version}`);
