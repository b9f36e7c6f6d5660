/** The page in a browser: it plays, listens, answers, reads files, and says what goes wrong. */

import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Vocabulary } from '../src/engine/vocabulary.js';
import { readMidi } from '../src/music/midi_reader.js';
import { serve } from '../serve.mjs';
import { executable, launch, open, ready } from './browser.mjs';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const models = Object.fromEntries(
  ['plain', 'controls'].map((name) => [name, JSON.parse(readFileSync(path(`golden/${name}/model.json`)))]),
);
const { files } = JSON.parse(readFileSync(path('golden/plain/vectors.json')));
const midi = files
  .filter(({ ids }) => ids?.length > 600)
  .map((file) => ({ name: 'piece.mid', mimeType: 'audio/midi', buffer: Buffer.from(file.midi, 'base64'), ids: file.ids }))[0];
const screenshots = path('screenshots/');
mkdirSync(screenshots, { recursive: true });

// Other programs may have most of this machine.
const PATIENCE = { timeout: 60_000 };

const skip = !executable
  ? 'there is no Chromium here: apt-get install chromium, or set CHROMIUM'
  : !existsSync(path('../dist/index.html')) && 'the page is not built: npm run build';

/** A keyboard that a test plays: it stands in for the browser's MIDI. */
function fakeMidi() {
  const input = { id: 'in', name: 'Test keyboard', state: 'connected', onmidimessage: null };
  const sent = [];
  const output = { id: 'out', name: 'Test piano', state: 'connected', send: (message) => sent.push([...message]) };
  const access = { inputs: new Map([['in', input]]), outputs: new Map([['out', output]]), onstatechange: null };
  navigator.requestMIDIAccess = async () => access;
  globalThis.testMidi = { sent, play: (...message) => input.onmidimessage?.({ data: Uint8Array.from(message) }) };
}

/** Note what the sampler is given. */
function spyOnSampler() {
  const { sampler } = globalThis.page;
  globalThis.struck = [];
  const strike = sampler.strike.bind(sampler);
  sampler.strike = (pitch, velocity, time) => {
    globalThis.struck.push({ pitch, velocity, time });
    return strike(pitch, velocity, time);
  };
}

/** The notes of the model that have begun. */
function modelNotes() {
  const { duet, context } = globalThis.page;
  return duet.notes.filter(({ who, start }) => who === 'model' && start <= context.currentTime);
}

describe('the page', { skip }, () => {
  /** @type {import('playwright-core').Browser} */
  let browser;
  const servers = {};
  const urls = {};

  before(async () => {
    browser = await launch();
    for (const [name, isolated] of [['plain', false], ['controls', true]]) {
      servers[name] = await serve([path(`golden/${name}`), path('../dist')], { isolated });
      urls[name] = `http://localhost:${servers[name].address().port}/?seed=7`;
    }
  });
  after(async () => {
    await browser?.close();
    for (const server of Object.values(servers)) server.close();
  });

  /** A test on a page of its own, in which nothing is thrown unseen. */
  const onPage = (sentence, name, run, options) =>
    test(sentence, async () => {
      const { page, errors, close } = await open(browser, urls[name], options);
      try {
        if (!options?.isBroken) await ready(page);
        await run(page);
        assert.deepEqual(errors, []);
      } finally {
        await close();
      }
    });

  onPage('plays ten seconds by itself, and the roll shows what is scheduled and heard', 'plain', async (page) => {
    await page.evaluate(spyOnSampler);
    assert.equal(await page.evaluate(() => crossOriginIsolated), false);
    await page.click('#play');
    await page.waitForFunction(() => page.duet.mode === 'answering', null, PATIENCE);
    let peak = 0;
    for (let second = 0; second < 10; second++) {
      await page.waitForTimeout(1000);
      const level = await page.evaluate(() => {
        const wave = new Float32Array(page.sampler.meter.fftSize);
        page.sampler.meter.getFloatTimeDomainData(wave);
        return Math.max(...wave.map(Math.abs));
      });
      peak = Math.max(peak, level);
    }
    const { drawn, struck } = await page.evaluate(() => {
      const until = page.context.currentTime;
      let drawn = [];
      const draw = page.roll.draw.bind(page.roll);
      page.roll.draw = (notes, ...rest) => draw((drawn = notes), ...rest);
      return new Promise((resolve) => {
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const key = ({ pitch, velocity, start, time }) => `${(start ?? time).toFixed(4)} ${pitch} ${velocity}`;
          const begun = (notes) => notes.filter(({ start, time }) => (start ?? time) <= until).map(key).sort();
          resolve({ drawn: begun(drawn), struck: begun(globalThis.struck) });
        }));
      });
    });
    assert.ok(drawn.length > 10, `${drawn.length} notes`);
    assert.deepEqual(drawn, struck);
    assert.ok(peak > 0.001 && peak <= 1.001, `peak ${peak}`);
    await page.screenshot({ path: `${screenshots}light.png` });
    await page.click('#play');
    assert.equal(await page.textContent('#play'), 'Play');
  });

  onPage('a keyboard begins a phrase, silence ends it, and a key takes the word back at once', 'controls', async (page) => {
    await page.click('#midi');
    await page.waitForFunction(() => document.getElementById('midi-inputs').textContent.includes('Test keyboard'));
    await page.evaluate(async () => {
      for (const pitch of [60, 64, 67]) {
        testMidi.play(0x90, pitch, 80);
        await new Promise((done) => setTimeout(done, 150));
        testMidi.play(0x80, pitch, 0);
      }
    });
    assert.equal(await page.evaluate(() => page.duet.mode), 'listening');
    await page.waitForFunction(() => page.duet.mode === 'answering', null, PATIENCE);
    await page.waitForFunction((notes) => eval(`(${notes})`)().length > 3, modelNotes.toString(), PATIENCE);
    const begun = await page.evaluate(async () => {
      testMidi.play(0x90, 72, 90);
      const now = page.context.currentTime;
      await new Promise((done) => setTimeout(done, 500));
      testMidi.play(0x80, 72, 0);
      const { duet } = page;
      const later = duet.notes.filter(({ who, start }) => who === 'model' && start > now + 0.01);
      const sounding = duet.notes.filter(({ who, end }) => who === 'model' && (end === null || end > now + 0.01));
      return { mode: duet.mode, later: later.length, sounding: sounding.length, voices: duet.voices.size };
    });
    assert.deepEqual(begun, { mode: 'listening', later: 0, sounding: 0, voices: 0 });
    await page.waitForFunction(() => page.duet.mode === 'answering', null, PATIENCE);
    await page.selectOption('#midi-output', 'out');
    await page.waitForFunction(() => testMidi.sent.some(([status]) => status === 0x90), null, PATIENCE);
  }, { before: fakeMidi });

  onPage('keys of the computer and of the screen play', 'plain', async (page) => {
    await page.evaluate(() => (page.duet.silenceSeconds = 60));
    await page.keyboard.down('z');
    await page.keyboard.up('z');
    const roll = await page.locator('#roll').boundingBox();
    await page.mouse.click(roll.x + roll.width / 2, roll.y + roll.height - 8);
    const pitches = await page.evaluate(() => page.duet.notes.map(({ pitch, who }) => `${who} ${pitch}`));
    assert.equal(pitches.length, 2);
    assert.equal(pitches[0], 'you 48');
    await page.click('#answer');
    await page.waitForFunction(() => page.duet.mode === 'answering', null, PATIENCE);
  });

  onPage('a dropped file is continued, and the session is downloaded', 'plain', async (page) => {
    const bytes = [...midi.buffer];
    const transfer = await page.evaluateHandle((bytes) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], 'piece.mid'));
      return data;
    }, bytes);
    await page.dispatchEvent('body', 'drop', { dataTransfer: transfer });
    await page.waitForSelector('#piece:not([hidden])');
    await page.locator('#to').fill('3');
    await page.click('#continue');
    await page.waitForFunction((notes) => eval(`(${notes})`)().length > 2, modelNotes.toString(), PATIENCE);
    const order = await page.evaluate(() => {
      const { notes } = page.duet;
      const last = Math.max(...notes.filter(({ who }) => who === 'you').map(({ start }) => start));
      return { last, first: Math.min(...notes.filter(({ who }) => who === 'model').map(({ start }) => start)) };
    });
    assert.ok(order.first >= order.last - 0.01, JSON.stringify(order));
    await page.click('#play');
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#download')]);
    const saved = readMidi(new Uint8Array(readFileSync(await download.path())), models.plain);
    const heard = await page.evaluate(() => page.duet.notes.length);
    assert.equal(saved.pitch.length, heard);
  });

  onPage('a marked part is played anew, and nothing else changes', 'controls', async (page) => {
    await page.setInputFiles('#file', midi);
    await page.waitForSelector('#piece:not([hidden])');
    await page.locator('#from').fill('2');
    await page.locator('#to').fill('4');
    await page.click('#infill');
    await page.waitForSelector('#versions li', PATIENCE);
    const [download] = await Promise.all([page.waitForEvent('download'), page.click('#versions li button:nth-of-type(2)')]);
    const saved = new Vocabulary(models.controls).decode(
      new Vocabulary(models.controls).encode(readMidi(new Uint8Array(readFileSync(await download.path())), models.controls)),
    );
    const old = new Vocabulary(models.plain).decode(midi.ids);
    const around = (notes) => notes.filter(({ start, end }) => start < 2 || end >= 4).map((note) => JSON.stringify(note));
    assert.deepEqual(around(saved).sort(), around(old).sort());
  });

  onPage('a model without controls shows none, and one with them shows a slider for each', 'plain', async (page) => {
    assert.equal(await page.isHidden('#controls'), true);
    await page.setInputFiles('#file', midi);
    assert.equal(await page.isHidden('#infill'), true);
    const other = await open(browser, urls.controls, { colorScheme: 'dark' });
    await ready(other.page);
    assert.equal(await other.page.locator('#controls .row').count(), models.controls.controls.length);
    await other.page.locator('#control-density').fill('5');
    assert.equal(await other.page.textContent('#control-density + output'), String(models.controls.controls[1].values[4]));
    await other.page.click('#play');
    await other.page.waitForFunction((notes) => eval(`(${notes})`)().length > 5, modelNotes.toString(), PATIENCE);
    await other.page.screenshot({ path: `${screenshots}dark.png`, fullPage: true });
    await other.close();
  });

  onPage('on a phone nothing is wider than the screen, and fingers have keys', 'controls', async (page) => {
    const width = () => page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok((await width()) <= 390);
    await page.setInputFiles('#file', { ...midi, name: `${'a_long_name'.repeat(9)}.mid` });
    await page.waitForSelector('#piece:not([hidden])');
    assert.ok((await width()) <= 390);
    await page.setInputFiles('#file', { ...midi, name: `${'a_long_name'.repeat(9)}.mid`, buffer: Buffer.from('no music') });
    await page.waitForSelector('#message.error');
    assert.ok((await width()) <= 390);
    await page.locator('#touch-keys button').first().dispatchEvent('pointerdown');
    await page.locator('#touch-keys button').first().dispatchEvent('pointerup');
    assert.equal(await page.evaluate(() => page.duet.notes.length), 1);
    await page.screenshot({ path: `${screenshots}phone.png`, fullPage: true });
  }, { viewport: { width: 390, height: 844 }, hasTouch: true });

  onPage('plays on in the background', 'plain', async (page) => {
    await page.click('#play');
    await page.waitForFunction(() => page.duet.mode === 'answering', null, PATIENCE);
    const other = await page.context().newPage();
    await other.goto('about:blank');
    await other.bringToFront();
    const before = await page.evaluate(() => page.context.currentTime);
    await other.waitForTimeout(4000);
    const after = await page.evaluate(() => {
      return { now: page.context.currentTime, generated: page.duet.timeOf(page.duet.generatedStep) };
    });
    assert.ok(after.now > before + 2 && after.generated > after.now);
  });

  for (const [what, file, said] of [
    ['no music', { name: 'letter.mid', mimeType: 'audio/midi', buffer: Buffer.from('Dear Sir') }, 'not a MIDI file'],
    ['a broken file', { ...midi, buffer: midi.buffer.subarray(0, 500) }, 'cut off'],
    ['a huge file', { ...midi, name: 'huge.mid', buffer: Buffer.alloc(9_000_000) }, 'is no music'],
  ]) {
    onPage(`says what is wrong with ${what}`, 'plain', async (page) => {
      await page.setInputFiles('#file', file);
      await page.waitForSelector('#message:not([hidden])');
      assert.match(await page.textContent('#message'), new RegExp(`${file.name}.*${said}.*[Cc]hoose`));
    });
  }

  onPage('says what to do without WebAssembly', 'plain', async (page) => {
    await page.waitForSelector('#message:not([hidden])');
    assert.match(await page.textContent('#message'), /no WebAssembly.*newer/);
  }, { isBroken: true, before: () => delete globalThis.WebAssembly });

  onPage('says what to do where MIDI is denied, or unknown', 'plain', async (page) => {
    await page.click('#midi');
    await page.waitForFunction(() => document.getElementById('midi-inputs').textContent.includes('allow it'));
    await page.evaluate(() => delete Navigator.prototype.requestMIDIAccess && delete navigator.requestMIDIAccess);
    await page.click('#midi');
    await page.waitForFunction(() => document.getElementById('midi-inputs').textContent.includes('knows no MIDI'));
  }, {
    before: () => (navigator.requestMIDIAccess = () => Promise.reject(new DOMException('denied', 'SecurityError'))),
  });

  test('says what to do where the model does not load, and loads it again', async () => {
    const context = await browser.newContext();
    const page = await context.newPage();
    for (const name of ['model.json', 'decoder*.onnx', 'ort-wasm-simd-threaded.wasm', 'worker.js']) {
      await page.route(`**/${name}`, (route) => route.abort());
      await page.goto(urls.plain);
      await page.waitForSelector('#retry:not([hidden])', PATIENCE);
      assert.match(await page.textContent('#message'), /\w+.*[.!]$/, name);
      await page.unroute(`**/${name}`);
    }
    await page.click('#retry');
    await ready(page);
    assert.equal(await page.isHidden('#message'), true);
    await context.close();
  });

  test('says so while the browser holds the sound back', async () => {
    const { page, close } = await open(browser, urls.plain);
    await ready(page);
    await page.evaluate(async () => {
      await page.context.suspend();
      page.context.resume = () => new Promise(() => {});
      page.duet.answer(null);
    });
    await page.waitForFunction(() => document.getElementById('state').textContent.includes('click'), null, PATIENCE);
    await close();
  });

  for (const [screen, width] of [['a desktop', 1280], ['a phone', 375]]) {
    for (const colorScheme of ['light', 'dark']) {
      test(`axe finds nothing in the way of a screen reader, a keyboard or a finger: ${screen}, ${colorScheme}`, async () => {
        const { page, close } = await open(browser, urls.controls, { viewport: { width, height: 860 }, colorScheme });
        await ready(page);
        await page.addScriptTag({ path: path('../node_modules/axe-core/axe.min.js') });
        const found = await page.evaluate(async () => {
          const { violations } = await axe.run({ rules: { 'target-size': { enabled: true } } });
          return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => [id, html, failureSummary]));
        });
        assert.deepEqual(found, []);
        await close();
      });
    }
  }
});
