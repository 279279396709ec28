// Reads from a TensorFlow Lite file what LiteRT.js does not tell: quantisation, and the class names inside.
// Offsets are those of the schema, version 3 (tensorflow/compiler/mlir/lite/schema/schema.fbs).

const TYPES = {0: "float32", 3: "uint8", 7: "int16", 9: "int8"};
const MOST_CLASSES = 100000;

/** A mistake of the person who uses the page, told in a sentence. */
export class UsageError extends Error {}

/**
 * Describes a classifier: one picture `(B, H, W, 3)` in, class scores `(B, classes)` out.
 *
 * @param {Uint8Array} bytes Content of the file.
 * @return {{batch: number, height: number, width: number, classes: number, input: object, output: object,
 *     labels: string[] | null}} Input and output have a type, a scale and a zero point.
 * @throws {UsageError} It is no such file.
 */
export function describe(bytes) {
  if (bytes.length < 8 || String.fromCharCode(...bytes.subarray(4, 8)) !== "TFL3") {
    throw new UsageError("This is no TensorFlow Lite file.");
  }
  let tensors;
  try {
    tensors = inputAndOutput(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UsageError("This TensorFlow Lite file is damaged.");
  }
  const [input, output] = tensors;
  const [batch, height, width] = input.shape;
  const classes = output.shape[1];
  const sizes = [...input.shape, ...output.shape];
  if (input.shape.length !== 4 || input.shape[3] !== 3 || output.shape.length !== 2 || Math.min(...sizes) < 1) {
    const shapes = `(${input.shape.join(", ")}) in and (${output.shape.join(", ")}) out`;
    throw new UsageError(`The file must take pictures, (1, height, width, 3), and give class scores. It has ${shapes}.`);
  }
  if (!input.type || !output.type || classes > MOST_CLASSES) {
    throw new UsageError("The file has a type of numbers, or a number of classes, that this page cannot use.");
  }
  const names = labels(bytes);
  return {batch, height, width, classes, input, output, labels: names?.length === classes ? names : null};
}

function inputAndOutput(view) {
  const model = view.getUint32(0, true);
  const graph = element(view, vector(view, model, 2), 0);
  const tensors = vector(view, graph, 0);
  const ends = [1, 2].map((field) => vector(view, graph, field));
  if (!ends.every((end) => end && view.getUint32(end, true) === 1)) {
    throw new UsageError("The file must have one input and one output.");
  }
  return ends.map((end) => tensor(view, element(view, tensors, view.getInt32(end + 4, true))));
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
