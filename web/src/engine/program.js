/**
 * The ONNX program in onnxruntime's WebAssembly module, with the ring of keys and values that it reads.
 *
 * onnxruntime-web's own interface copies every input into the module's memory and every output out of it, for each
 * token the whole cache of 12 MB. The functions that it is built on take addresses: the ring lies in the module's memory
 * and is written in place, which is 1.2 to 1.4 times as fast. They are no public interface, so the version of the package
 * is pinned, and tests run the program.
 */

/** @typedef {import('./model.js').ProgramShape} ProgramShape */

/**
 * @typedef {object} OrtModule What onnxruntime's module offers, as far as it is used here.
 * @property {Uint8Array} HEAPU8
 * @property {(bytes: number) => number} _malloc
 * @property {(address: number) => void} _free
 * @property {(text: string) => number} lengthBytesUTF8
 * @property {(text: string, address: number, bytes: number) => void} stringToUTF8
 * @property {(address: number) => string} UTF8ToString
 * @property {(threads: number, level: number) => number} _OrtInit
 * @property {(code: number, text: number) => number} _OrtGetLastError
 * @property {(...options: number[]) => number} _OrtCreateSessionOptions
 * @property {(model: number, bytes: number, options: number) => number | Promise<number>} _OrtCreateSession
 * @property {(type: number, data: number, bytes: number, dims: number, rank: number, place: number) => number} _OrtCreateTensor
 * @property {(tensor: number) => number} _OrtReleaseTensor
 * @property {(session: number, inputNames: number, inputs: number, numInputs: number, outputNames: number, numOutputs: number, outputs: number, options: number) => number | Promise<number>} _OrtRun
 */

// As onnxruntime numbers them.
const FLOAT32 = 1;
const INT64 = 7;
const ON_CPU = 1;
const ERRORS_ONLY = 3;
const ALL_OPTIMIZATIONS = 99;

/** @typedef {{inputs: number, outputs: number, ids: number, position: number, logits: number, present: number[], release: number[]}} Binding */

export class Program {
  /**
   * Load a program.
   * @param {OrtModule} ort The module, which has been started with as many threads.
   * @param {Uint8Array} bytes The ONNX file.
   * @param {ProgramShape} shape
   * @param {number} threads
   */
  static async load(ort, bytes, shape, threads) {
    const program = new Program(ort, shape);
    program.check(ort._OrtInit(threads, ERRORS_ONLY));
    const model = ort._malloc(bytes.length);
    ort.HEAPU8.set(bytes, model);
    const text = program.text('');
    const options = ort._OrtCreateSessionOptions(ALL_OPTIMIZATIONS, 1, 1, 0, 0, 0, text, ERRORS_ONLY, 0, 0);
    program.session = await ort._OrtCreateSession(model, bytes.length, options);
    ort._free(model);
    if (!program.session) program.fail();
    return program;
  }

  /**
   * @param {OrtModule} ort
   * @param {ProgramShape} shape
   */
  constructor(ort, shape) {
    this.ort = ort;
    this.shape = shape;
    this.session = 0;
    /** How many tokens the ring has taken. */
    this.position = 0;
    const { layers, heads, headDim, window } = shape;
    this.names = { inputs: ['input_ids', 'position'], outputs: ['logits'] };
    for (let layer = 0; layer < layers; layer++) {
      for (const kind of ['key', 'value']) {
        this.names.inputs.push(`past_key_values.${layer}.${kind}`);
        this.names.outputs.push(`present.${layer}.${kind}`);
      }
    }
    this.inputNames = this.words(this.names.inputs.map((name) => this.text(name)));
    this.outputNames = this.words(this.names.outputs.map((name) => this.text(name)));
    const size = 4 * heads * headDim * window;
    this.past = Array.from({ length: 2 * layers }, () => this.zeros(size));
    this.pastTensors = this.past.map((address, index) => {
      const dims = index % 2 ? [1, heads, window, headDim] : [1, heads, headDim, window];
      return this.tensor(FLOAT32, address, size, dims);
    });
    /** @type {Map<number, Binding>} */
    this.bindings = new Map();
  }

  /** @param {number} bytes */
  zeros(bytes) {
    const address = this.ort._malloc(bytes);
    if (!address) throw new Error('There is not enough memory for the model: close other tabs and load the page again.');
    this.ort.HEAPU8.fill(0, address, address + bytes);
    return address;
  }

  /** @param {string} text */
  text(text) {
    const bytes = this.ort.lengthBytesUTF8(text) + 1;
    const address = this.ort._malloc(bytes);
    this.ort.stringToUTF8(text, address, bytes);
    return address;
  }

  /** @param {number[]} numbers */
  words(numbers) {
    const address = this.ort._malloc(4 * numbers.length);
    new Uint32Array(this.ort.HEAPU8.buffer, address, numbers.length).set(numbers);
    return address;
  }

  /**
   * @param {number} type
   * @param {number} address
   * @param {number} bytes
   * @param {number[]} dims
   */
  tensor(type, address, bytes, dims) {
    const shape = this.words(dims);
    const tensor = this.ort._OrtCreateTensor(type, address, bytes, shape, dims.length, ON_CPU);
    this.ort._free(shape);
    if (!tensor) this.fail();
    return tensor;
  }

  /** @param {number} code */
  check(code) {
    if (code) this.fail();
  }

  /** @returns {never} */
  fail() {
    const address = this.ort._malloc(8);
    this.ort._OrtGetLastError(address, address + 4);
    const [text] = new Uint32Array(this.ort.HEAPU8.buffer, address + 4, 1);
    throw new Error(`The model could not be computed: ${text ? this.ort.UTF8ToString(text) : 'out of memory'}.`);
  }

  /**
   * Reserve memory for calls of so many tokens.
   * @param {number} length
   * @returns {Binding}
   */
  bind(length) {
    const { layers, heads, headDim, vocabulary } = this.shape;
    const [ids, position] = [this.zeros(8 * length), this.zeros(8)];
    const logits = this.zeros(4 * length * vocabulary);
    const size = 4 * heads * headDim * length;
    const present = Array.from({ length: 2 * layers }, () => this.zeros(size));
    const inputs = [this.tensor(INT64, ids, 8 * length, [1, length]), this.tensor(INT64, position, 8, [1])];
    const outputs = [
      this.tensor(FLOAT32, logits, 4 * length * vocabulary, [1, length, vocabulary]),
      ...present.map((address, index) => {
        return this.tensor(FLOAT32, address, size, index % 2 ? [1, heads, length, headDim] : [1, heads, headDim, length]);
      }),
    ];
    return {
      inputs: this.words([...inputs, ...this.pastTensors]),
      outputs: this.words(outputs),
      ids,
      position,
      logits,
      present,
      release: [...inputs, ...outputs],
    };
  }

  /**
   * Take the next tokens, at most `shape.chunk`; returns the logits after the last one, valid until the next call.
   * @param {number[]} ids
   * @returns {Promise<Float32Array>}
   */
  async run(ids) {
    const { vocabulary, window, chunk } = this.shape;
    if (!ids.length || ids.length > chunk) throw new RangeError(`${ids.length} tokens in a call; 1 to ${chunk} can be.`);
    const isKept = ids.length === 1 || ids.length === chunk;
    let binding = this.bindings.get(ids.length);
    if (binding === undefined) {
      binding = this.bind(ids.length);
      if (isKept) this.bindings.set(ids.length, binding);
    }
    const buffer = this.ort.HEAPU8.buffer;
    new BigInt64Array(buffer, binding.ids, ids.length).set(ids.map(BigInt));
    new BigInt64Array(buffer, binding.position, 1)[0] = BigInt(this.position);
    const { inputs, outputs } = this.names;
    this.check(
      await this.ort._OrtRun(
        this.session, this.inputNames, binding.inputs, inputs.length, this.outputNames, outputs.length, binding.outputs, 0,
      ),
    );
    for (let token = 0; token < ids.length; token++) {
      this.write(binding.present, token, ids.length, (this.position + token) % window);
    }
    this.position += ids.length;
    const last = binding.logits + 4 * (ids.length - 1) * vocabulary;
    const logits = new Float32Array(this.ort.HEAPU8.buffer, last, vocabulary);
    if (isKept) return logits;
    const copy = logits.slice();
    this.release(binding);
    return copy;
  }

  /**
   * Write the keys and values of a new token into its slot of the ring.
   * @param {number[]} present
   * @param {number} token
   * @param {number} length
   * @param {number} slot
   */
  write(present, token, length, slot) {
    const { heads, headDim, window } = this.shape;
    const memory = new Float32Array(this.ort.HEAPU8.buffer);
    for (let index = 0; index < present.length; index++) {
      const [from, to] = [present[index] / 4, this.past[index] / 4];
      if (index % 2 === 0) {
        for (let row = 0; row < heads * headDim; row++) memory[to + row * window + slot] = memory[from + row * length + token];
      } else {
        for (let head = 0; head < heads; head++) {
          const start = from + (head * length + token) * headDim;
          memory.copyWithin(to + (head * window + slot) * headDim, start, start + headDim);
        }
      }
    }
  }

  /** @param {Binding} binding */
  release(binding) {
    for (const tensor of binding.release) this.ort._OrtReleaseTensor(tensor);
    const { inputs, outputs, ids, position, logits, present } = binding;
    for (const address of [inputs, outputs, ids, position, logits, ...present]) this.ort._free(address);
  }
}
