/**
 * Take the pictures of docs/ from a session as it happens: `node test/picture.mjs ../site FOLDER`.
 *
 * A phrase is played on the page, the model answers, and the page is photographed while the answer sounds: `page.png`,
 * and the stage as `frame-000.png` and so on, eight a second, for an animation.
 */

import { parseArgs } from 'node:util';

import { serve } from '../serve.mjs';
import { launch, open, ready } from './browser.mjs';

const PHRASE = [[48, 60, 64, 67], [72], [71], [67], [45, 57, 60, 69], [65], [64], [60], [43, 55, 59, 62], [65], [67], [71]];
const NOTE_MS = 300;
const FRAME_MS = 125;

const { positionals } = parseArgs({ allowPositionals: true });
const [site, folder] = positionals;
const server = await serve(site, { isolated: true });
const browser = await launch();
const { page, errors } = await open(browser, `http://localhost:${server.address().port}/?seed=5`, {
  viewport: { width: 1200, height: 720 },
});
await ready(page);
await page.waitForFunction(() => document.body.dataset.samples === 'done', null, { timeout: 600_000 });

const playing = page.evaluate(
  async ({ phrase, noteMs }) => {
    const { duet } = globalThis.page;
    for (const chord of phrase) {
      for (const pitch of chord) duet.strike(pitch, 58 + ((pitch * 7) % 24));
      await new Promise((done) => setTimeout(done, noteMs));
      for (const pitch of chord) duet.release(pitch);
    }
  },
  { phrase: PHRASE, noteMs: NOTE_MS },
);
const clip = await page.locator('#stage').boundingBox();
let [began, frame, isTaken] = [Date.now(), 0, false];
let answered = Infinity;
while (Date.now() - began < 16_000) {
  const path = `${folder}/frame-${String(frame++).padStart(3, '0')}.png`;
  await page.screenshot({ path, clip });
  if (answered === Infinity && (await page.evaluate(() => globalThis.page.duet.mode === 'answering'))) answered = Date.now();
  if (!isTaken && Date.now() > answered + 4000) {
    await page.screenshot({ path: `${folder}/page.png` });
    isTaken = true;
  }
  const next = began + frame * FRAME_MS;
  if (Date.now() < next) await page.waitForTimeout(next - Date.now());
  else frame = Math.ceil((Date.now() - began) / FRAME_MS);
}
await playing;
if (errors.length) console.log(errors.join('\n'));
await browser.close();
server.close();
