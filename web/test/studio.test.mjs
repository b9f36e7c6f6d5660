/** The studio turns what is played into ids, generates ahead of what is heard, and takes back what is not wanted. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { Studio } from '../src/engine/studio.js';
import { Duet } from '../src/duet.js';

const read = (name) => JSON.parse(readFileSync(new URL(`golden/${name}/model.json`, import.meta.url)));
const [plain, controls] = [read('plain'), read('controls')];

/** A program that computes nothing: scores that depend on the tokens alone. */
function fakeProgram(model) {
  const logits = new Float32Array(model.program.vocabulary);
  return {
    shape: model.program,
    position: 0,
    calls: [],
    async run(ids) {
      assert.ok(ids.length > 0 && ids.length <= model.program.chunk);
      this.calls.push(ids.length);
      this.position += ids.length;
      logits.forEach((_, id) => (logits[id] = Math.sin(id * 12.9898 + ids.at(-1) * 78.233) * 3));
      return logits;
    },
  };
}

function makeStudio(model = plain) {
  const reports = [];
  const studio = new Studio(model, fakeProgram(model), (report) => reports.push(report), async () => {});
  studio.receive({ type: 'reset', seed: 1 });
  return { studio, reports };
}

const settle = () => new Promise((done) => setTimeout(done, 50));
const texts = (studio) => studio.composer.ids.map((id) => studio.model.tokens[id]);
const key = (step, pitch, velocity = 0) => ({ step, isOn: velocity > 0, pitch, velocity });

test('keys become ids in canonical order, with the steps between them', async () => {
  const { studio } = makeStudio();
  const events = [key(0, 64, 80), key(0, 60, 80), key(30, 60), key(30, 67, 90), key(180, 64), key(180, 67)];
  studio.receive({ type: 'keys', events });
  studio.receive({ type: 'play', take: 1, horizon: 0, seconds: null, pause: 0 });
  await settle();
  assert.deepEqual(texts(studio), [
    'BOS_None', 'Velocity_78', 'NoteOn_60', 'NoteOn_64', 'TimeShift_30', 'NoteOff_60', 'Velocity_90', 'NoteOn_67',
    'TimeShift_100', 'TimeShift_50', 'NoteOff_64', 'NoteOff_67',
  ]);
});

test('what is played is computed while it is played, and only the rest afterwards', async () => {
  const { studio } = makeStudio();
  for (let step = 0; step < 200; step += 2) {
    studio.receive({ type: 'keys', events: [key(step, 60 + (step % 20), 60 + (step % 40))] });
    await Promise.resolve();
  }
  await settle();
  assert.ok(studio.composer.ids.length > 200);
  assert.equal(studio.composer.waiting, 0);
});

test('music is generated up to the horizon, and on when it moves', async () => {
  const { studio, reports } = makeStudio();
  studio.receive({ type: 'play', take: 1, horizon: 300, seconds: null, pause: 0 });
  await settle();
  const time = studio.composer.grammar.state.time;
  assert.ok(time >= 300 && time <= 400, `${time}`);
  studio.receive({ type: 'horizon', step: 900 });
  await settle();
  assert.ok(studio.composer.grammar.state.time >= 900);
  assert.ok(reports.filter(({ type }) => type === 'events').every(({ take }) => take === 1));
});

test('what was not heard is taken back, keys that sound are let go, and the music goes on from there', async () => {
  const { studio } = makeStudio();
  studio.receive({ type: 'play', take: 1, horizon: 800, seconds: null, pause: 0 });
  await settle();
  studio.receive({ type: 'cut', step: 400 });
  const { state } = studio.composer.grammar;
  assert.equal(state.struck.size, 0);
  assert.ok(state.time <= 400);
  const before = studio.composer.ids.length;
  studio.receive({ type: 'keys', events: [key(410, 60, 80), key(430, 60)] });
  studio.receive({ type: 'play', take: 2, horizon: 700, seconds: null, pause: 0 });
  await settle();
  assert.ok(studio.composer.ids.length > before);
  assert.ok(studio.composer.grammar.state.time >= 700);
});

test('begun anew, or gone on without a key between, the music comes again', async () => {
  const { studio, reports } = makeStudio();
  studio.receive({ type: 'play', take: 1, horizon: 500, seconds: null, pause: 0 });
  await settle();
  const first = [...studio.composer.ids];
  studio.receive({ type: 'cut', step: 300 });
  studio.receive({ type: 'play', take: 2, horizon: 500, seconds: null, pause: 0 });
  await settle();
  assert.ok(studio.composer.grammar.state.time >= 500);
  studio.receive({ type: 'reset', seed: 1 });
  studio.receive({ type: 'play', take: 3, horizon: 500, seconds: null, pause: 0 });
  await settle();
  assert.deepEqual(studio.composer.ids, first);
  assert.deepEqual(reports.filter(({ type }) => type === 'failed'), []);
});

test('an answer of some seconds ends by itself, and can be answered again', async () => {
  const { studio, reports } = makeStudio();
  for (const take of [1, 2]) {
    studio.receive({ type: 'play', take, horizon: 1e6, seconds: 3, pause: 0 });
    await settle();
    const ended = reports.find((report) => report.type === 'ended' && report.take === take);
    assert.ok(ended, JSON.stringify(reports.at(-1)));
  }
  assert.equal(texts(studio).filter((text) => text === 'EOS_None').length, 1);
});

test('the density is planned by default, and a control that is moved is stated at the next segment', async () => {
  const { studio } = makeStudio(controls);
  const stated = (name) => texts(studio).filter((text) => text.startsWith(`${name}_`));
  studio.receive({ type: 'play', take: 1, horizon: 300, seconds: null, pause: 0 });
  await settle();
  assert.deepEqual([stated('Density').length, stated('Composer').length], [1, 0]);
  studio.receive({ type: 'controls', wanted: { density: 6, composer: 'Chopin' } });
  studio.receive({ type: 'horizon', step: 1200 });
  await settle();
  assert.deepEqual(stated('Density').slice(1), ['Density_6', 'Density_6']);
  assert.deepEqual(stated('Composer'), ['Composer_Chopin', 'Composer_Chopin']);
});

test('the speed is told when it has been measured for half a second', async ({ mock }) => {
  let now = 1e6;
  mock.method(performance, 'now', () => now);
  const { studio, reports } = makeStudio();
  const { program } = studio.composer;
  const { run } = program;
  program.run = (ids) => {
    now += 100;
    return run.call(program, ids);
  };
  studio.receive({ type: 'play', take: 1, horizon: 300, seconds: null, pause: 0 });
  await settle();
  const { seconds, tokens } = reports.find(({ type }) => type === 'speed');
  assert.deepEqual([seconds, tokens], [0.5, 5]);
});

test('an error of the program is reported, and the next request is served', async () => {
  const { studio, reports } = makeStudio();
  const { run } = studio.composer.program;
  studio.composer.program.run = () => Promise.reject(new Error('out of memory'));
  studio.receive({ type: 'play', take: 1, horizon: 300, seconds: null, pause: 0 });
  await settle();
  assert.equal(reports.at(-1).message, 'out of memory');
  studio.composer.program.run = run;
  studio.receive({ type: 'play', take: 2, horizon: 300, seconds: null, pause: 0 });
  await settle();
  assert.ok(studio.composer.grammar.state.time >= 300);
});

test('a late engine makes the music wait, which is counted, and its rhythm stays', () => {
  let now = 10;
  const struck = [];
  const sound = {
    now: () => now,
    strike: (pitch, velocity, time) => struck.push({ pitch, time }) && null,
    release: () => {},
    takeBack: () => {},
  };
  const duet = new Duet(plain, sound, () => {}, () => {});
  duet.answer(null);
  const report = (step, pitch) => duet.receive({ type: 'events', take: duet.take, step: step + 50, events: [key(step, pitch, 80)] });
  report(0, 60);
  now = 12;
  report(50, 62);
  report(100, 64);
  now = 12.2;
  duet.tick();
  assert.equal(duet.stats.underruns, 1);
  assert.deepEqual(struck.map(({ pitch }) => pitch), [60, 62, 64]);
  assert.ok(Math.abs(struck[2].time - struck[1].time - 0.5) < 1e-9);
  assert.ok(struck[1].time >= 12);
});
