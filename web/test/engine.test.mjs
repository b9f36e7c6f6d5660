/** The engine has the ids, notes, masks and music of Python: golden vectors that tests/golden_vectors.py writes. */

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { describe, test } from 'node:test';

import { Composer } from '../src/engine/composer.js';
import { Controls } from '../src/engine/controls.js';
import { ControlFeedback } from '../src/engine/feedback.js';
import { raiseForgottenKeys } from '../src/engine/forgotten.js';
import { MusicGrammar, pianoRules } from '../src/engine/grammar.js';
import { Gap, InfillGrammar } from '../src/engine/infill.js';
import { Program } from '../src/engine/program.js';
import { LoopBreaker } from '../src/engine/repetition.js';
import { Random, sample } from '../src/engine/sampling.js';
import { Vocabulary } from '../src/engine/vocabulary.js';
import { readMidi } from '../src/music/midi_reader.js';
import { writeMidi } from '../src/music/midi_writer.js';
import { startOrt } from './ort.mjs';

const folder = new URL('golden/', import.meta.url);
if (!existsSync(new URL('plain/vectors.json', folder))) {
  throw new Error('There are no golden vectors: make test-web writes them with tests/golden_vectors.py.');
}

const ort = await startOrt();

/** The mask as tests/golden_vectors.py writes it. */
function maskText(allowed) {
  const bytes = new Uint8Array(Math.ceil(allowed.length / 8));
  allowed.forEach((is, id) => (bytes[id >> 3] |= is << (id & 7)));
  return Buffer.from(bytes).toString('hex');
}

/** The rules by the names of Python. */
function rulesOf(model, rules, controls) {
  const names = {
    pitch_range: 'pitchRange',
    max_polyphony: 'maxPolyphony',
    max_note_seconds: 'maxNoteSeconds',
    max_rest_seconds: 'maxRestSeconds',
    close_after_seconds: 'closeAfterSeconds',
  };
  const given = Object.fromEntries(Object.entries(rules).map(([name, value]) => [names[name], value]));
  return { ...pianoRules(model), ...given, controls: new Controls(model, controls) };
}

for (const name of ['plain', 'controls']) {
  const read = (file) => readFileSync(new URL(`${name}/${file}`, folder));
  const model = JSON.parse(read('model.json'));
  const vectors = JSON.parse(read('vectors.json'));
  const vocabulary = new Vocabulary(model);

  describe(`a model ${name === 'plain' ? 'without' : 'with'} controls`, () => {
    test('files have the ids of Python, and what it refuses is refused', () => {
      let refused = 0;
      for (const { name: file, midi, ids } of vectors.files) {
        const bytes = new Uint8Array(Buffer.from(midi, 'base64'));
        if (ids === undefined) {
          refused++;
          assert.throws(() => readMidi(bytes, model), RangeError, file);
        } else {
          assert.deepEqual(vocabulary.encode(readMidi(bytes, model)), ids, file);
        }
      }
      assert.ok(refused > 0 && refused < vectors.files.length / 2);
    });

    test('a written file is read again with the same ids', () => {
      for (const { ids } of vectors.files.slice(0, 20)) {
        if (ids === undefined) continue;
        const again = readMidi(writeMidi(vocabulary.decode(ids), model.performance), model);
        assert.deepEqual(vocabulary.encode(again), ids);
      }
    });

    test('any ids decode to the notes of Python', () => {
      for (const { ids, notes } of vectors.decoded) {
        const found = vocabulary.decode(ids).map(({ start, end, pitch, velocity }) => {
          return [Math.round(1000 * start), Math.round(1000 * (end - start)), pitch, velocity];
        });
        const sorted = found.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
        assert.deepEqual(sorted, notes);
      }
    });

    test('masks are those of Python after thousands of prefixes', () => {
      let compared = 0;
      for (const { rules, controls, prompt, ids, masks } of vectors.walks) {
        const grammar = new MusicGrammar(model, rulesOf(model, rules, controls));
        masks.forEach((mask, index) => {
          grammar.advance(ids[index]);
          if (index < prompt) grammar.state.endPrompt();
          assert.equal(maskText(grammar.mask()), mask, `after ${index + 1} tokens`);
          compared++;
        });
      }
      assert.ok(compared > 5000);
    });

    test('feedback adds to the scores what Python adds', () => {
      assert.equal(vectors.feedback.length > 0, name === 'controls');
      let largest = 0;
      for (const { controls, prompt, ids, shifts } of vectors.feedback) {
        const feedback = new ControlFeedback(model, new Controls(model, controls));
        shifts.forEach((expected, index) => {
          feedback.advance(ids[index]);
          if (index < prompt) feedback.endPrompt();
          if (expected === null) return;
          const scores = new Float64Array(expected.length);
          feedback.apply(scores);
          scores.forEach((score, id) => assert.ok(Math.abs(score - expected[id]) <= 1e-4 + 1e-6 * Math.abs(score), `${id}: ${score}`));
          largest = Math.max(largest, ...expected);
        });
      }
      assert.equal(largest > 1, name === 'controls');
    });

    test('keys that releases have left out come up as in Python', () => {
      let largest = 0;
      for (const { prompt, ids, raised } of vectors.forgotten) {
        const grammar = new MusicGrammar(model);
        raised.forEach((expected, index) => {
          grammar.advance(ids[index]);
          if (index < prompt) grammar.state.endPrompt();
          if (expected === null) return;
          const scores = new Float64Array(model.program.vocabulary);
          raiseForgottenKeys(scores, grammar);
          scores.forEach((score, id) => assert.ok(Math.abs(score - (expected[id] ?? 0)) <= 1e-4, `${id}: ${score}`));
          largest = Math.max(largest, ...scores);
        });
      }
      assert.ok(largest > 4);
    });

    test('the loop breaker lowers the same keys', () => {
      for (const { ids, lowered } of vectors.loops) {
        const loops = new LoopBreaker(model);
        for (const id of ids) loops.advance(id);
        const scores = new Float64Array(model.program.vocabulary);
        loops.apply(scores);
        const found = [...scores.keys()].filter((id) => scores[id] < 0);
        assert.deepEqual(found, lowered);
      }
    });

    test('a seed draws the same tokens', () => {
      for (const { seed, scores, temperature, topP, minP, tokens } of vectors.draws) {
        const random = new Random(seed);
        const row = Float64Array.from(scores, (score) => (score === null ? -Infinity : score));
        assert.deepEqual(tokens.map(() => sample(row, { temperature, topP, minP }, random)), tokens);
      }
    });

    test('greedy continuations are those of generate_music', async () => {
      const program = await Program.load(ort, read(model.program.file), model.program, 1);
      const composer = new Composer(model, program);
      composer.sampling.temperature = 0;
      for (const { prompt, controls, ids } of vectors.continuations) {
        composer.steer(controls);
        composer.begin(prompt);
        while (composer.ids.length < ids.length && !composer.hasEnded) await composer.next();
        assert.deepEqual(composer.ids, ids);
        // Taken back into the prompt and played on, it is the same again; a longer prompt would begin elsewhere.
        if (prompt.length > model.program.window) continue;
        composer.begin(prompt.slice(0, -20));
        composer.append(prompt.slice(-20));
        while (composer.waiting > 0) await composer.prefill();
        while (composer.ids.length < ids.length && !composer.hasEnded) await composer.next();
        assert.deepEqual(composer.ids, ids);
      }
    });

    test('gaps have the prompts, masks and pieces of Python', async () => {
      assert.equal(vectors.infills.length > 0, name === 'controls');
      const program = await Program.load(ort, read(model.program.file), model.program, 1);
      const composer = new Composer(model, program);
      composer.sampling.temperature = 0;
      for (const vector of vectors.infills) {
        if (vector.error !== undefined) {
          assert.throws(() => new Gap(model, vector.ids, ...vector.gap), RangeError, vector.error);
          continue;
        }
        const gap = new Gap(model, vector.ids, ...vector.gap);
        assert.deepEqual(gap.prompt, vector.prompt);
        const grammar = new InfillGrammar(model, gap, 40, pianoRules(model));
        for (const id of gap.prompt) grammar.advance(id);
        grammar.state.endPrompt();
        vector.masks.forEach((mask, index) => {
          assert.equal(maskText(grammar.mask()), mask, `after ${index} tokens`);
          grammar.advance(vector.written[index]);
        });
        assert.deepEqual(gap.fill([...gap.prompt, ...vector.written]), vector.filled);
        assert.deepEqual(await composer.infill(gap, async () => true), vector.greedy);
      }
    });
  });
}
