/**
 * Measure a page in headless Chromium: `node test/measure.mjs ../site [--minutes 10] [--phrases 20] [--plain]`.
 *
 * Start it with `taskset -c 0,1` for two cores, and let nothing else run: the numbers are those of the clock.
 */

import { parseArgs } from 'node:util';

import { serve } from '../serve.mjs';
import { launch, open, ready } from './browser.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    minutes: { type: 'string', default: '10' },
    phrases: { type: 'string', default: '20' },
    plain: { type: 'boolean', default: false },
  },
});
const server = await serve(positionals[0] ?? '../site', { isolated: !values.plain });
const browser = await launch();
const { page, errors } = await open(browser, 'about:blank');

let wire = 0;
let isFirstLoad = true;
page.on('response', (response) => {
  if (isFirstLoad && !response.url().includes('/samples/')) wire += Number(response.headers()['content-length'] ?? 0);
});
const began = Date.now();
await page.goto(`http://localhost:${server.address().port}/?seed=1`);
await ready(page);
isFirstLoad = false;
console.log(`first load: ${(wire / 1e6).toFixed(1)} MB, ready after ${((Date.now() - began) / 1000).toFixed(1)} s`);
await page.waitForFunction(() => document.body.dataset.samples === 'done', null, { timeout: 600_000 });

/** @param {number[]} numbers @param {number} share */
const quantile = (numbers, share) => [...numbers].sort((a, b) => a - b)[Math.min(Math.floor(share * numbers.length), numbers.length - 1)];

const waits = [];
for (let phrase = 0; phrase < Number(values.phrases); phrase++) {
  await page.evaluate(async (phrase) => {
    const { duet } = globalThis.page;
    for (const pitch of [60, 64, 67, 72, 71, 67].map((pitch) => pitch - (phrase % 7))) {
      duet.strike(pitch, 60 + (phrase % 5) * 8);
      await new Promise((done) => setTimeout(done, 180));
      duet.release(pitch);
    }
  }, phrase);
  await page.waitForFunction(() => globalThis.page.duet.mode === 'answering', null, { timeout: 60_000 });
  waits.push(await page.evaluate(() => globalThis.page.duet.stats.firstNote));
  await page.waitForTimeout(1500);
}
console.log(
  `first note after the silence: p50 ${quantile(waits, 0.5).toFixed(0)} ms, p95 ${quantile(waits, 0.95).toFixed(0)} ms ` +
    `(${waits.length} phrases)`,
);

const session = await page.context().newCDPSession(page);
const memory = async () => {
  await session.send('HeapProfiler.collectGarbage');
  const { usedSize } = await session.send('Runtime.getHeapUsage');
  return usedSize / 1e6;
};
await page.evaluate(() => {
  globalThis.page.duet.reset(1);
  globalThis.page.duet.stats.underruns = 0;
  globalThis.page.duet.answer(null);
});
const minutes = Number(values.minutes);
const speeds = [];
for (let minute = 0; minute < minutes; minute++) {
  await page.waitForTimeout(60_000);
  const { stats, notes } = await page.evaluate(() => ({ stats: globalThis.page.duet.stats, notes: globalThis.page.duet.notes.length }));
  speeds.push(stats.musicPerSecond);
  console.log(
    `minute ${minute + 1}: ${stats.musicPerSecond.toFixed(2)} s of music a second, ${stats.tokensPerSecond.toFixed(0)} ` +
      `tokens, ${stats.underruns} underruns, ${notes} notes, ${(await memory()).toFixed(1)} MB of the page's heap`,
  );
}
if (speeds.length) console.log(`music per second: median ${quantile(speeds, 0.5).toFixed(2)}`);

const frames = await page.evaluate(async () => {
  const { duet, context } = globalThis.page;
  duet.interrupt();
  const now = context.currentTime;
  for (let i = 0; i < 1000; i++) {
    duet.notes.push({ start: now - 7 + i / 120, end: now - 6.8 + i / 120, pitch: 21 + (i % 88), velocity: 30 + (i % 90), who: i % 2 ? 'you' : 'model' });
  }
  let count = 0;
  const until = performance.now() + 3000;
  while (performance.now() < until) {
    await new Promise((done) => requestAnimationFrame(done));
    count++;
  }
  return count / 3;
});
console.log(`a thousand notes on the roll: ${frames.toFixed(0)} frames a second`);
if (errors.length) console.log(errors.join('\n'));
await browser.close();
server.close();
