// Runs a TensorFlow Lite classifier in LiteRT.js.
//
// The package's own `Tensor` takes float32, int32 and uint8 only, and its `loadLiteRt` asks for a GPU. The bindings
// below them take every type, so that files with int8 and int16 at their ends run too, and leave the GPU alone.

import {LiteRt, supportsFeature} from "./vendor/litert.js";
import {createWasmLib} from "./vendor/wasm_utils.js";
import {describe, UsageError} from "./tflite.js";

const MOST_THREADS = 4;

const ARRAYS = {float32: Float32Array, uint8: Uint8Array, int8: Int8Array, int16: Int16Array};
const LIMITS = {uint8: [0, 255], int8: [-128, 127], int16: [-32768, 32767]};

/**
 * Loads the runtime: with threads where the page is isolated from others, with relaxed SIMD where the browser has it.
 *
 * @return {Promise<{wasm: object, environment: object, threads: number}>} What `Classifier` needs.
 */
export async function loadRuntime() {
  if (typeof WebAssembly !== "object") throw new UsageError("This browser has no WebAssembly, which runs the model.");
  const fast = await supportsFeature("relaxedSimd");
  const threaded = fast && globalThis.crossOriginIsolated === true && (await supportsFeature("threads"));
  const variant = threaded ? "threaded_" : fast ? "" : "compat_";
  const script = new URL(`./vendor/litert_wasm_${variant}internal.js`, import.meta.url);
  const {liteRtWasm: wasm} = await createWasmLib(LiteRt, script.href).catch((error) => {
    throw new UsageError(`LiteRT.js could not be loaded: ${messageOf(error)}`);
  });
  const threads = threaded ? Math.max(1, Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS)) : 1;
  return {wasm, environment: wasm.LiteRtEnvironment.create(null), threads};
}

/** A file that is ready to run; `delete` gives its memory back. */
export class Classifier {
  /**
   * @param {object} runtime What `loadRuntime` gave.
   * @param {Uint8Array} bytes Content of the file.
   * @return {Promise<Classifier>} The classifier.
   * @throws {UsageError} It is no file from pictures to class scores, or cannot be run here.
   */
  static async open(runtime, bytes) {
    const facts = describe(bytes);
    const {wasm, environment, threads} = runtime;
    const options = {accelerator: "wasm", cpuOptions: {numThreads: threads}, gpuOptions: {}, webNNOptions: {}};
    const parts = {place: wasm._malloc(bytes.length)};
    if (!parts.place) throw new UsageError("The browser has no memory left for this file.");
    wasm.HEAPU8.set(bytes, parts.place);
    try {
      parts.model = wasm.loadModel(environment, parts.place, bytes.length);
      parts.compiled = await wasm.compileModel(environment, parts.model, options);
      return new Classifier(wasm, environment, parts, facts);
    } catch (error) {
      release(wasm, parts);
      throw new UsageError(`The file cannot be run here: ${messageOf(error)}`);
    }
  }

  constructor(wasm, environment, parts, facts) {
    this.facts = facts;
    this._wasm = wasm;
    this._parts = parts;
    const type = parts.model.getInputTensorType(0, 0);
    const buffers = wasm.LiteRtTensorBufferType;
    this._input = wasm.LiteRtTensorBuffer.createManaged(environment, buffers.HOST_MEMORY, type, type.bytes());
    type.delete();
    this._numbers = new ARRAYS[facts.input.type](facts.batch * facts.height * facts.width * 3);
  }

  /**
   * @param {Uint8ClampedArray} pixels RGB, row by row, of the size that the file takes.
   * @return {Promise<{scores: number[], rows: Float32Array | null, milliseconds: number}>} One score per class, the
   *     rows of attention weights if the file gives them, and how long the file ran.
   */
  async run(pixels) {
    const {facts, _wasm: wasm} = this;
    fill(this._numbers, pixels, facts.input);
    const start = performance.now();
    const bytes = new Uint8Array(this._numbers.buffer);
    wasm.HEAPU8.set(bytes, this._input.lock(wasm.LiteRtTensorBufferLockMode.WRITE));
    this._input.unlock();
    const copies = (await this._parts.compiled.run(0, [this._input])).map((output) => {
      const place = output.lock(wasm.LiteRtTensorBufferLockMode.READ);
      const copy = wasm.HEAPU8.slice(place, place + output.packedSize());
      output.unlock();
      output.delete();
      return copy;
    });
    const milliseconds = performance.now() - start;
    const scores = Array.from(real(copies[0], facts.output));
    const rows = facts.attention && real(copies[1], facts.attention);
    return {scores, rows, milliseconds};
  }

  delete() {
    this._input.delete();
    release(this._wasm, this._parts);
  }
}

function release(wasm, {compiled, model, place}) {
  compiled?.delete();
  model?.delete();
  wasm._free(place);
}

/** Returns what a tensor's bytes stand for, of the first picture of a batch. */
function real(bytes, {type, shape, scale, zeroPoint}) {
  const count = shape.slice(1).reduce((a, b) => a * b, 1);
  const numbers = new ARRAYS[type](bytes.buffer).subarray(0, count);
  return type === "float32" ? numbers : Float32Array.from(numbers, (n) => (n - zeroPoint) * (scale || 1));
}

/** Writes pixels into every picture of a batch, quantised as the input wants it. */
function fill(numbers, pixels, {type, scale, zeroPoint}) {
  const table = Array.from({length: 256}, (_, pixel) => {
    if (type === "float32") return pixel;
    const [least, most] = LIMITS[type];
    return Math.min(Math.max(Math.round(pixel / (scale || 1)) + zeroPoint, least), most);
  });
  for (let i = 0; i < numbers.length; i++) numbers[i] = table[pixels[i % pixels.length]];
}

/** Turns scores into probabilities. */
export function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

function messageOf(error) {
  if (error instanceof Event) return `no ${new URL(error.target.src).pathname} came.`;
  return error instanceof Error ? error.message : String(error);
}
