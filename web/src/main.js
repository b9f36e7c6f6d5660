/** The page: it loads the model, connects instrument, engine and view, and says what goes wrong. */

import { Duet } from './duet.js';
import { FilePiece, save } from './file_piece.js';
import { ComputerKeys } from './instrument/keys.js';
import { MidiPorts } from './instrument/midi_ports.js';
import { Sampler } from './instrument/sampler.js';
import { box, button, buildControls, choices, input, say, select, slider } from './view/panel.js';
import { playByPointer, Roll } from './view/roll.js';
import { TouchKeys } from './view/touch_keys.js';

/** @typedef {import('./engine/model.js').Model} Model */

const BASE = new URL('.', document.baseURI).href;

// One token is too little work to divide among more; `?threads=1` in the address measures others.
const MAX_THREADS = 2;

// How often the numbers are written, in milliseconds.
const NUMBERS_EVERY = 300;

const STATES = {
  idle: 'Play a few notes, or let the model play.',
  listening: 'Listening to you.',
  thinking: 'The model takes over.',
  answering: 'The model plays. Strike a key to take over.',
  playing: 'Your file.',
};

/**
 * Turn an error into a sentence that says what to do.
 * @param {unknown} error
 */
function sentence(error) {
  const text = error instanceof Error ? error.message : String(error);
  return /[.!]$/.test(text) ? text : `${text}.`;
}

/** @returns {Promise<Model>} */
async function loadModel() {
  const response = await fetch(`${BASE}model.json`).catch(() => null);
  if (!response?.ok) throw new Error('model.json could not be loaded: check the connection and try again');
  return response.json();
}

/**
 * Start the engine, and return the function that sends it requests.
 * @param {Model} model
 * @param {(report: any) => void} receive
 */
function startEngine(model, receive) {
  if (typeof WebAssembly !== 'object') {
    throw new Error('This browser has no WebAssembly, which the model needs: use a newer one, or allow it in its settings.');
  }
  const worker = new Worker(`${BASE}worker.js`, { type: 'module' });
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = (event) => {
    receive({ type: 'failed', message: event.message || 'The engine could not be started: load the page again.' });
  };
  const wanted = Number(parameter('threads')) || Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS);
  const threads = crossOriginIsolated ? wanted : 1;
  worker.postMessage({ type: 'load', model, base: BASE, threads });
  return { worker, threads };
}

async function main() {
  say('');
  button('retry').hidden = true;
  const model = await loadModel();
  const { license, datasets } = model.card;
  const facts = [datasets.length ? `trained on ${datasets.join(', ')}` : '', license ? `licence ${license}` : ''];
  box('model-name').textContent = [model.name, ...facts.filter(Boolean)].join(', ');
  const context = new AudioContext({ latencyHint: 'interactive' });
  const sampler = new Sampler(context, `${BASE}samples/`);
  const roll = new Roll(/** @type {HTMLCanvasElement} */ (box('roll')));
  /** @type {MidiPorts} */
  let ports;
  let isReady = false;

  /** @type {import('./duet.js').Sound} */
  const sound = {
    now: () => context.currentTime,
    strike(pitch, velocity, time, who) {
      if (who === 'you' || ports.output === null) return sampler.strike(pitch, velocity, time);
      ports.send(pitch, velocity, performance.now() + 1000 * (time - context.currentTime));
      return null;
    },
    release(voice, pitch, time, who) {
      if (voice !== null) sampler.release(voice, time);
      else if (who === 'model') ports.send(pitch, 0, performance.now() + 1000 * (time - context.currentTime));
    },
    takeBack() {
      sampler.takeBack();
      ports.silence();
    },
  };
  const duet = new Duet(model, sound, (request) => engine.worker.postMessage(request), () => showState());
  const piece = new FilePiece(model, duet, roll);

  const resume = () => {
    if (context.state !== 'running') context.resume().catch(() => {});
  };
  for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, resume, { capture: true });
  context.onstatechange = () => showState();

  /** @type {import('./instrument/keys.js').Player} */
  const player = {
    strike(pitch, velocity) {
      resume();
      piece.giveUp();
      duet.strike(pitch, velocity);
    },
    release: (pitch) => duet.release(pitch),
    pedal: (isDown) => duet.pedal(isDown),
  };
  new ComputerKeys(player);
  playByPointer(roll, player);
  const touch = new TouchKeys(box('touch-keys'), player);
  button('lower').addEventListener('click', () => touch.move(-1));
  button('higher').addEventListener('click', () => touch.move(1));
  ports = new MidiPorts(player, showPorts);

  function showPorts() {
    const names = ports.inputs.map(({ name }) => name ?? 'a keyboard');
    box('midi-inputs').textContent = names.length ? `Listening to ${names.join(', ')}.` : 'No MIDI keyboard is connected.';
    choices(select('midi-output'), [
      { value: '', text: 'this page' },
      ...ports.outputs.map(({ id, name }) => ({ value: id, text: name ?? 'a MIDI instrument' })),
    ]);
    box('midi-output-row').hidden = !ports.outputs.length;
  }

  function showState() {
    const isPlaying = duet.mode !== 'idle' && duet.mode !== 'listening';
    const play = button('play');
    play.textContent = isPlaying ? 'Stop' : 'Play';
    play.classList.toggle('playing', isPlaying);
    play.disabled = !isReady;
    button('answer').disabled = duet.mode !== 'listening' || !isReady;
    const isBlocked = context.state !== 'running' && duet.mode !== 'idle';
    const isSlow = duet.mode === 'answering' && duet.stats.musicPerSecond > 0 && duet.stats.musicPerSecond < 1;
    if (isSlow) {
      box('state').textContent = 'This computer is slower than the music at the moment: other programs may be busy.';
      return;
    }
    const state = isReady || duet.mode === 'playing' ? STATES[duet.mode] : 'The model is loading; you can play already.';
    box('state').textContent = isBlocked ? 'The browser holds the sound back: click or press a key on the page.' : state;
  }

  /** @param {any} report */
  function receive(report) {
    if (report.type === 'tick') duet.tick();
    else if (report.type === 'loading') showLoading(report.received, report.size);
    else if (report.type === 'ready') {
      isReady = true;
      box('loading').hidden = true;
      document.body.dataset.ready = String(report.threads);
      showState();
      loadSamples();
    } else if (report.type === 'failed') {
      if (duet.mode !== 'idle') duet.interrupt();
      say(`${sentence(report.message)} What was played can still be downloaded.`, true);
      if (!isReady) button('retry').hidden = false;
    } else {
      duet.receive(report);
      if (report.type === 'speed') showState();
      piece.receive(report);
    }
  }

  /**
   * @param {number} received
   * @param {number} size
   */
  function showLoading(received, size) {
    const bar = /** @type {HTMLProgressElement} */ (box('loading'));
    bar.hidden = false;
    bar.value = received / size;
    if (received >= size) box('state').textContent = 'The model is being prepared; you can play already.';
  }

  function loadSamples() {
    sampler
      .load((loaded, all) => {
        const isDone = loaded === all;
        box('samples').textContent = isDone ? '' : `The piano's recordings are loading: ${loaded} of ${all}.`;
        document.body.dataset.samples = isDone ? 'done' : 'loading';
        if (isDone && sampler.failed > all / 2) {
          say('The recordings of the piano could not be loaded: it sounds plain until you load the page again.', true);
        }
      })
      .catch((error) => say(sentence(error), true));
  }

  const engine = startEngine(model, receive);
  engine.worker.postMessage({ type: 'reset', seed: seedOfPage() });

  button('play').addEventListener('click', () => {
    piece.giveUp();
    if (duet.mode === 'idle' || duet.mode === 'listening') duet.answer(null);
    else duet.interrupt();
  });
  button('answer').addEventListener('click', () => duet.answer(duet.answerSeconds));
  button('reset').addEventListener('click', () => duet.reset());
  button('download').addEventListener('click', () => {
    const bytes = duet.download();
    if (bytes === null) say('Nothing has been played yet.');
    else save(bytes, 'session.mid');
  });
  button('midi').addEventListener('click', async () => {
    try {
      await ports.open();
      button('midi').hidden = true;
    } catch (error) {
      box('midi-inputs').textContent = sentence(error);
    }
  });
  select('midi-output').addEventListener('input', () => ports.choose(select('midi-output').value));
  select('answer-seconds').addEventListener('input', () => {
    duet.answerSeconds = Number(select('answer-seconds').value) || null;
  });
  slider('silence', (value) => `${value.toFixed(1)} s`, (value) => (duet.silenceSeconds = value));
  slider('volume', (value) => `${Math.round(100 * value)} %`, (value) => {
    sampler.volume.gain.setTargetAtTime(value ** 2, context.currentTime, 0.02);
  });
  input('temperature').value = String(model.sampling.temperature);
  slider('temperature', (value) => value.toFixed(2), (temperature) => {
    engine.worker.postMessage({ type: 'sampling', temperature });
  });
  buildControls(model, (wanted) => engine.worker.postMessage({ type: 'controls', wanted }));

  const files = input('file');
  files.addEventListener('change', async () => {
    const [file] = files.files ?? [];
    if (file) await piece.open(file);
    files.value = '';
  });
  addEventListener('dragover', (event) => {
    event.preventDefault();
    document.body.classList.add('dragging');
  });
  addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) document.body.classList.remove('dragging');
  });
  addEventListener('drop', async (event) => {
    event.preventDefault();
    document.body.classList.remove('dragging');
    const [file] = event.dataTransfer?.files ?? [];
    if (file) await piece.open(file);
  });

  const draw = () => {
    roll.draw(duet.notes, context.currentTime, duet.sounding());
    requestAnimationFrame(draw);
  };
  requestAnimationFrame(draw);
  setInterval(() => showNumbers(duet, engine.threads), NUMBERS_EVERY);
  showState();
  // For tests and for measuring: what the page itself uses.
  Object.assign(globalThis, { page: { model, context, sampler, duet, ports, roll } });
}

/** @param {string} name Of a parameter in the address. */
function parameter(name) {
  return new URLSearchParams(location.search).get(name);
}

/** A seed given in the address, `?seed=5`, or a random one. */
function seedOfPage() {
  const given = parameter('seed');
  return given === null ? (Math.random() * 2 ** 32) >>> 0 : Number(given) >>> 0;
}

/**
 * @param {Duet} duet
 * @param {number} threads
 */
function showNumbers(duet, threads) {
  const { firstNote, underruns, musicPerSecond, tokensPerSecond } = duet.stats;
  const meter = /** @type {HTMLMeterElement} */ (box('buffer'));
  meter.value = duet.buffered;
  box('buffer-value').textContent = `${duet.buffered.toFixed(1)} s`;
  const numbers = [];
  if (musicPerSecond) numbers.push(`${musicPerSecond.toFixed(1)} s of music a second (${tokensPerSecond.toFixed(0)} tokens)`);
  if (firstNote !== null) numbers.push(`first note after ${firstNote.toFixed(0)} ms`);
  if (musicPerSecond) numbers.push(`${underruns} ${underruns === 1 ? 'interruption' : 'interruptions'}`);
  if (musicPerSecond) numbers.push(`${threads} ${threads === 1 ? 'thread' : 'threads'}`);
  box('numbers').textContent = numbers.join(' · ');
}

/** @param {unknown} error */
function fail(error) {
  say(sentence(error), true);
  box('state').textContent = '';
  button('retry').hidden = false;
}

addEventListener('unhandledrejection', ({ reason }) => say(sentence(reason), true));
button('retry').addEventListener('click', () => location.reload());
main().catch(fail);
