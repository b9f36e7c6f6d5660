/**
 * A grand piano: samples of three velocity layers, with releases, scheduled on the audio clock. Until its samples have
 * come, a note sounds with the nearest one that has, or with a plain tone that is computed here.
 */

/** @typedef {{pitch: number, gain: GainNode, source: AudioBufferSourceNode, start: number, end: number | null}} Voice */

// The samples are every third key from A0 on.
const LOWEST = 21;
const HIGHEST = 108;
const NAMES = ['C', 'C#', 'D', 'D#', 'E', 'F', 'F#', 'G', 'G#', 'A', 'A#', 'B'];

// The layers by number, with the velocity that each is played at as it was recorded.
const LAYERS = [
  { layer: 4, velocity: 36 },
  { layer: 8, velocity: 66 },
  { layer: 12, velocity: 98 },
];

// Samples are kept in one channel at this rate, and no longer than a note can be: a fifth of the memory.
const RATE = 32000;
const LONGEST_SECONDS = 10;
const FADE_SECONDS = 0.5;

// How fast a string is damped, in seconds to 1/e: low strings are heavier. The highest have no dampers.
const DAMPING = 0.09;

// Sounding at once; more cannot be told apart, and slow machines stumble.
const MAX_VOICES = 96;

// From here on at most four samples are fetched at once.
const CONNECTIONS = 4;

export class Sampler {
  /**
   * @param {AudioContext} context
   * @param {string} base Address of the folder of samples.
   */
  constructor(context, base) {
    this.context = context;
    this.base = base;
    /** @type {Map<string, AudioBuffer>} */
    this.samples = new Map();
    /** @type {Voice[]} */
    this.voices = [];
    this.volume = context.createGain();
    // A limiter: chords of many loud notes would be more than full scale.
    const limiter = context.createDynamicsCompressor();
    limiter.threshold.value = -6;
    limiter.knee.value = 4;
    limiter.ratio.value = 20;
    limiter.attack.value = 0.002;
    limiter.release.value = 0.12;
    this.meter = context.createAnalyser();
    this.volume.connect(limiter).connect(this.meter).connect(context.destination);
    this.failed = 0;
    for (const pitch of [33, 45, 57, 69, 81, 93]) this.samples.set(`tone ${pitch}`, this.#tone(pitch));
  }

  /**
   * Compute a plain tone: partials of a string, the high ones fading sooner.
   * @param {number} pitch
   */
  #tone(pitch) {
    const frequency = 440 * 2 ** ((pitch - 69) / 12);
    const seconds = 4;
    const buffer = this.context.createBuffer(1, seconds * RATE, RATE);
    const wave = buffer.getChannelData(0);
    for (let partial = 1; partial <= 8 && partial * frequency < RATE / 2; partial++) {
      const stretched = partial * frequency * Math.sqrt(1 + 0.0004 * partial ** 2);
      const decay = (0.5 * Math.sqrt(frequency / 100) + 0.35 * partial) / RATE;
      const step = (2 * Math.PI * stretched) / RATE;
      for (let i = 0; i < wave.length; i++) wave[i] += (0.3 / partial ** 1.4) * Math.sin(step * i) * Math.exp(-decay * i);
    }
    return buffer;
  }

  /**
   * Load the samples, the middle of the keyboard and the middle layer first.
   * @param {(loaded: number, all: number) => void} report
   */
  async load(report) {
    const pitches = [];
    for (let pitch = LOWEST; pitch <= HIGHEST; pitch += 3) pitches.push(pitch);
    pitches.sort((a, b) => Math.abs(a - 60) - Math.abs(b - 60));
    /** @type {{key: string, url: string}[]} */
    const files = [];
    for (const index of [1, 0, 2]) {
      for (const pitch of pitches) {
        const name = `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}v${LAYERS[index].layer}`;
        files.push({ key: `${index} ${pitch}`, url: `${this.base}${encodeURIComponent(name.replace('#', 's'))}.mp3` });
      }
    }
    for (let pitch = LOWEST; pitch <= HIGHEST; pitch++) {
      files.push({ key: `release ${pitch}`, url: `${this.base}rel${pitch - LOWEST + 1}.mp3` });
    }
    let [next, loaded] = [0, 0];
    const fetchSome = async () => {
      while (next < files.length) {
        const { key, url } = files[next++];
        try {
          const response = await fetch(url);
          if (!response.ok) throw new Error(String(response.status));
          this.samples.set(key, await this.#decode(await response.arrayBuffer()));
        } catch {
          this.failed++;
        }
        report(++loaded, files.length);
      }
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, fetchSome));
  }

  /** @param {ArrayBuffer} bytes */
  async #decode(bytes) {
    const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
    const length = Math.min(decoded.length, LONGEST_SECONDS * RATE);
    const buffer = this.context.createBuffer(1, length, RATE);
    const wave = buffer.getChannelData(0);
    for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
      const from = decoded.getChannelData(channel);
      for (let i = 0; i < length; i++) wave[i] += from[i] / decoded.numberOfChannels;
    }
    const fade = FADE_SECONDS * RATE;
    if (length < decoded.length) for (let i = 0; i < fade; i++) wave[length - 1 - i] *= i / fade;
    return buffer;
  }

  /**
   * Find the sample nearest to a note.
   * @param {number} pitch
   * @param {number} velocity
   */
  #find(pitch, velocity) {
    const wanted = velocity < 51 ? 0 : velocity < 82 ? 1 : 2;
    for (const index of [wanted, 1, 0, 2]) {
      for (const distance of [0, 1, -1, 2, -2, 3, -3]) {
        const buffer = this.samples.get(`${index} ${pitch + distance}`);
        if (buffer) return { buffer, semitones: -distance, recorded: LAYERS[index].velocity };
      }
    }
    const tone = Math.min(93, Math.max(33, 33 + 12 * Math.round((pitch - 33) / 12)));
    const buffer = /** @type {AudioBuffer} */ (this.samples.get(`tone ${tone}`));
    return { buffer, semitones: pitch - tone, recorded: 110 };
  }

  /**
   * Begin a note.
   * @param {number} pitch
   * @param {number} velocity
   * @param {number} time On the audio clock; what is past begins now.
   * @returns {Voice}
   */
  strike(pitch, velocity, time) {
    const { buffer, semitones, recorded } = this.#find(pitch, velocity);
    const start = Math.max(time, this.context.currentTime);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.playbackRate.value = 2 ** (semitones / 12);
    const gain = this.context.createGain();
    gain.gain.value = 1.4 * (velocity / recorded) ** 1.3;
    const pan = this.context.createStereoPanner();
    pan.pan.value = ((pitch - 64) / 44) * 0.5;
    source.connect(gain).connect(pan).connect(this.volume);
    source.start(start);
    /** @type {Voice} */
    const voice = { pitch, gain, source, start, end: null };
    source.onended = () => {
      pan.disconnect();
      this.voices.splice(this.voices.indexOf(voice) >>> 0, 1);
    };
    this.voices.push(voice);
    if (this.voices.length > MAX_VOICES) this.#damp(this.voices[0], start, 0.02);
    return voice;
  }

  /**
   * End a note.
   * @param {Voice} voice
   * @param {number} time On the audio clock.
   */
  release(voice, time) {
    if (voice.end !== null && voice.end <= time) return;
    const end = Math.max(time, this.context.currentTime, voice.start + 0.01);
    const hasDamper = voice.pitch < 90;
    this.#damp(voice, end, hasDamper ? DAMPING * (1 + (60 - voice.pitch) / 90) : 0.5);
    const noise = hasDamper ? this.samples.get(`release ${voice.pitch}`) : undefined;
    if (noise === undefined) return;
    const source = this.context.createBufferSource();
    const gain = this.context.createGain();
    source.buffer = noise;
    gain.gain.value = 0.25;
    source.connect(gain).connect(this.volume);
    source.onended = () => gain.disconnect();
    source.start(end);
  }

  /**
   * @param {Voice} voice
   * @param {number} time
   * @param {number} seconds To 1/e.
   */
  #damp(voice, time, seconds) {
    voice.end = time;
    voice.gain.gain.setTargetAtTime(0, time, seconds);
    voice.source.stop(time + 8 * seconds);
  }

  /** Take back the notes that have not begun. */
  takeBack() {
    const now = this.context.currentTime;
    for (const voice of [...this.voices]) if (voice.start > now) voice.source.stop();
  }
}
