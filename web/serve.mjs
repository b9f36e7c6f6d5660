/**
 * Serve a folder on this machine: `node serve.mjs [folder] [--port 8000] [--plain]`. Pages are cross-origin isolated,
 * so that the engine may use threads; with --plain they are not, as on most static hosts.
 */

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, normalize, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const TYPES = new Map(Object.entries({
  '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css',
  '.json': 'application/json', '.wasm': 'application/wasm', '.mp3': 'audio/mpeg', '.txt': 'text/plain; charset=utf-8',
}));

/**
 * @param {string | string[]} folders Of files in several, the first one is served.
 * @param {{isolated?: boolean, port?: number}} [options]
 * @returns {Promise<import('node:http').Server>} Listening on this machine alone.
 */
export function serve(folders, { isolated = true, port = 0 } = {}) {
  const roots = [folders].flat().map((folder) => resolve(folder));
  const server = createServer(async ({ url = '/' }, response) => {
    const path = normalize(decodeURIComponent(new URL(url, 'http://localhost').pathname));
    let [file, size] = ['', -1];
    for (const root of roots) {
      const candidate = join(root, path.endsWith('/') ? `${path}index.html` : path);
      const found = candidate.startsWith(root) && size < 0 ? await stat(candidate).catch(() => null) : null;
      if (found?.isFile()) [file, size] = [candidate, found.size];
    }
    if (size < 0) {
      response.writeHead(404).end('not found');
      return;
    }
    response.setHeader('Content-Type', TYPES.get(extname(file)) ?? 'application/octet-stream');
    response.setHeader('Content-Length', size);
    response.setHeader('Cache-Control', 'no-cache');
    if (isolated) {
      response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
      response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
    }
    createReadStream(file).pipe(response);
  });
  return new Promise((done, failed) => {
    server.once('error', failed);
    server.listen(port, '127.0.0.1', () => done(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { port: { type: 'string', default: '8000' }, plain: { type: 'boolean', default: false } },
  });
  const port = Number(values.port);
  const folder = positionals[0] ?? 'site';
  try {
    await serve(folder, { isolated: !values.plain, port });
    console.log(`http://localhost:${port}/  (Ctrl-C ends it)`);
  } catch (error) {
    const other = `node ${relative('.', process.argv[1])} ${folder} --port ${port + 1}${values.plain ? ' --plain' : ''}`;
    console.error(error.code === 'EADDRINUSE' ? `Port ${port} is taken; with another one: ${other}` : error.message);
    process.exitCode = 2;
  }
}
