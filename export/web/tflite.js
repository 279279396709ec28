// Reads from a TensorFlow Lite file what LiteRT.js does not tell: quantisation, and the class names inside.
// Offsets are those of the schema, version 3 (tensorflow/compiler/mlir/lite/schema/schema.fbs).

const TYPES = {0: "float32", 3: "uint8", 7: "int16", 9: "int8"};
const MOST_CLASSES = 100000;
const MOST_OPERATORS = 100000;
const [DEQUANTIZE, SOFTMAX, QUANTIZE] = [6, 25, 114];

/** A mistake of the person who uses the page, told in a sentence. */
export class UsageError extends Error {}

/**
 * Describes a classifier: one picture `(B, H, W, 3)` in, class scores `(B, classes)` out, and perhaps its attention,
 * `(B, rows, tokens)`.
 *
 * @param {Uint8Array} bytes Content of the file.
 * @return {{batch: number, height: number, width: number, classes: number, input: object, output: object,
 *     chances: boolean, attention: object | null, labels: string[] | null}} Input, output and attention have a type, a
 *     shape, a scale and a zero point, attention also a grid, `[height, width]` in patches. `chances` is whether the
 *     scores are probabilities.
 * @throws {UsageError} It is no such file.
 */
export function describe(bytes) {
  if (bytes.length < 8 || String.fromCharCode(...bytes.subarray(4, 8)) !== "TFL3") {
    throw new UsageError("This is no TensorFlow Lite file.");
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let tensors, grid, chances;
  try {
    tensors = ends(view);
    chances = endsInSoftmax(view);
    grid = tensors.length === 3 ? gridOf(view, bytes) : null;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UsageError("This TensorFlow Lite file is damaged.");
  }
  const [input, output, rows] = tensors;
  const [batch, height, width] = input.shape;
  const classes = output.shape[1];
  const sizes = [...input.shape, ...output.shape];
  const ranks = tensors.map(({shape}) => shape.length).join();
  if (!["4,2", "4,2,3"].includes(ranks) || input.shape[3] !== 3 || Math.min(...sizes) < 1) {
    const [taken, ...given] = tensors.map(({shape}) => `(${shape.join(", ")})`);
    const shapes = `${taken} in and ${given.join(" and ")} out`;
    throw new UsageError(`The file must take pictures, (1, height, width, 3), and give class scores. It has ${shapes}.`);
  }
  if (!input.type || !output.type || classes > MOST_CLASSES) {
    throw new UsageError("The file has a type of numbers, or a number of classes, that this page cannot use.");
  }
  const names = labels(bytes);
  const fits = rows?.type && grid && Math.min(...rows.shape) > 0 && grid[0] * grid[1] <= rows.shape[2];
  const attention = fits ? {...rows, grid} : null;
  const fitting = names?.length === classes ? names : null;
  return {batch, height, width, classes, input, output, chances, attention, labels: fitting};
}

/** Returns the tensors at the graph's ends: the input, then the outputs. */
function ends(view) {
  const model = view.getUint32(0, true);
  const graph = element(view, vector(view, model, 2), 0);
  const tensors = vector(view, graph, 0);
  const [inputs, outputs] = [1, 2].map((number) => indices(view, graph, number));
  if (inputs.length !== 1 || outputs.length < 1 || outputs.length > 2) {
    throw new UsageError("The file must have one input, and one output or, with attention, two.");
  }
  return [...inputs, ...outputs].map((index) => tensor(view, element(view, tensors, index)));
}

/** Returns whether the first output is a softmax's, perhaps of another type. */
function endsInSoftmax(view) {
  const model = view.getUint32(0, true);
  const graph = element(view, vector(view, model, 2), 0);
  const [operators, codes] = [vector(view, graph, 3), vector(view, model, 1)];
  const writers = new Map();
  const count = operators ? Math.min(view.getUint32(operators, true), MOST_OPERATORS) : 0;
  for (let i = 0; i < count; i++) {
    const operator = element(view, operators, i);
    const number = field(view, operator, 0);
    const code = element(view, codes, number ? view.getUint32(number, true) : 0);
    const [old, now] = [field(view, code, 0), field(view, code, 3)];
    const name = Math.max(old ? view.getInt8(old) : 0, now ? view.getInt32(now, true) : 0);
    for (const output of indices(view, operator, 2)) writers.set(output, {name, from: indices(view, operator, 1)[0]});
  }
  let [tensor] = indices(view, graph, 2);
  while (writers.has(tensor)) {
    const {name, from} = writers.get(tensor);
    if (name !== DEQUANTIZE && name !== QUANTIZE) return name === SOFTMAX;
    writers.delete(tensor); // Each once: a cycle has an end.
    tensor = from;
  }
  return false;
}

/** Returns the numbers of the first tensors that a graph or an operator takes or gives. */
function indices(view, table, number) {
  const start = vector(view, table, number);
  const count = start ? view.getUint32(start, true) : 0;
  return Array.from({length: Math.min(count, 3)}, (_, i) => view.getInt32(start + 4 + 4 * i, true));
}

/** Returns the grid of patches, `[height, width]`, that a metadata entry tells of the first graph, or null. */
function gridOf(view, bytes) {
  const model = view.getUint32(0, true);
  const entries = vector(view, model, 6);
  const text = new TextDecoder();
  for (let i = 0; entries && i < view.getUint32(entries, true); i++) {
    const entry = element(view, entries, i);
    if (text.decode(part(view, bytes, target(view, entry, 0))) !== "VIT_KERAS_ATTENTION") continue;
    const number = field(view, entry, 1);
    const buffer = element(view, vector(view, model, 4), number ? view.getUint32(number, true) : 0);
    try {
      const [grid] = JSON.parse(text.decode(part(view, bytes, vector(view, buffer, 0)))).grids;
      return grid.length === 2 && grid.every((n) => Number.isInteger(n) && n > 0) ? grid : null;
    } catch (error) {
      if (error instanceof SyntaxError || error instanceof TypeError) return null;
      throw error;
    }
  }
  return null;
}

/** Returns the bytes of a vector or string. */
function part(view, bytes, start) {
  return start ? bytes.subarray(start + 4, start + 4 + view.getUint32(start, true)) : new Uint8Array();
}

function tensor(view, table) {
  const type = field(view, table, 1);
  const shape = vector(view, table, 0);
  const quantisation = target(view, table, 4);
  const scales = quantisation && vector(view, quantisation, 2);
  const zeroPoints = quantisation && vector(view, quantisation, 3);
  const rank = shape ? view.getUint32(shape, true) : 0;
  if (rank > 8) throw new RangeError("rank");
  return {
    type: TYPES[type ? view.getInt8(type) : 0],
    shape: Array.from({length: rank}, (_, i) => view.getInt32(shape + 4 + 4 * i, true)),
    scale: scales && view.getUint32(scales, true) ? view.getFloat32(scales + 4, true) : 0,
    zeroPoint: zeroPoints && view.getUint32(zeroPoints, true) ? Number(view.getBigInt64(zeroPoints + 4, true)) : 0,
  };
}

/** Returns where a table's field is, or 0 where it has none. */
function field(view, table, number) {
  const names = table - view.getInt32(table, true);
  const place = 4 + 2 * number;
  const offset = place < view.getUint16(names, true) ? view.getUint16(names + place, true) : 0;
  return offset && table + offset;
}

/** Returns where the table or vector begins that a field points to, or 0. */
function target(view, table, number) {
  const place = field(view, table, number);
  return place && place + view.getUint32(place, true);
}

const vector = target;

function element(view, start, index) {
  if (!start || index < 0 || index >= view.getUint32(start, true)) throw new RangeError("index");
  const place = start + 4 + 4 * index;
  return place + view.getUint32(place, true);
}

/** Returns the class names of the `labels.txt` in the zip archive behind the model, or null. */
function labels(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = new TextDecoder();
  const end = bytes.length - 22;
  if (view.getUint32(Math.max(end, 0), true) !== 0x06054b50) return null;
  try {
    let entry = view.getUint32(end + 16, true);
    for (let left = view.getUint16(end + 10, true); left > 0; left--) {
      const nameLength = view.getUint16(entry + 28, true);
      const name = text.decode(bytes.subarray(entry + 46, entry + 46 + nameLength));
      if (name === "labels.txt" && view.getUint16(entry + 10, true) === 0) {
        const header = view.getUint32(entry + 42, true);
        const start = header + 30 + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
        const content = text.decode(bytes.subarray(start, start + view.getUint32(entry + 20, true)));
        return content.replace(/\n$/, "").split(/\r?\n/);
      }
      entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return null;
}
