// From a picture to the pixels that a model takes, as `vit-keras predict` does it.

import {UsageError} from "./tflite.js";

const MOST_PIXELS = 2 ** 26;
const STRIP_PIXELS = 2 ** 22;

const KERNELS = {
  bilinear: {radius: 1, weight: (x) => Math.max(0, 1 - x)},
  bicubic: {
    radius: 2,
    weight: (x) => (x >= 2 ? 0 : x >= 1 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : (1.5 * x - 2.5) * x * x + 1),
  },
};

/**
 * Decodes a picture file: upright as EXIF says, without changing its colours.
 *
 * @param {Blob} blob Content of the file.
 * @return {Promise<ImageBitmap>} The picture.
 * @throws {UsageError} It is no picture, or has too many pixels.
 */
export async function decode(blob) {
  const pixels = await countPixels(blob);
  if (pixels > MOST_PIXELS) {
    const millions = (count) => Math.floor(count / 1e6);
    throw new UsageError(
      `This picture has ${millions(pixels)} million pixels; at most ${millions(MOST_PIXELS)} million can be used.`,
    );
  }
  try {
    return await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch {
    throw new UsageError("This is no picture that the browser can read.");
  }
}

/** Returns a picture's number of pixels from its header, before memory is taken for them. */
function countPixels(blob) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  return new Promise((resolve, reject) => {
    image.onload = () => resolve(image.naturalWidth * image.naturalHeight);
    image.onerror = () => reject(new UsageError("This is no picture that the browser can read."));
    image.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

/**
 * Cuts the middle out and resizes it with antialiasing. A picture of the right size keeps every pixel as it is.
 *
 * @param {CanvasImageSource} picture A picture or a video's frame.
 * @param {{width: number, height: number}} size Its size in pixels.
 * @param {{width: number, height: number}} wanted The size that the model takes.
 * @param {{interpolation: string, crop_fraction: number}} framing As in the run's configuration.
 * @return {Uint8ClampedArray} RGB pixels, row by row.
 */
export function pixelsOf(picture, size, wanted, framing) {
  const {width, height} = wanted;
  const box = boxOf(size, wanted, framing);
  const across = spans(box.width, width, framing.interpolation);
  const down = spans(box.height, height, framing.interpolation);
  return resizeDown(resizeAcross(picture, box, across), box.height, width, down);
}

/** Returns the part of a picture that the model sees: left, top, width and height in pixels. */
export function boxOf(size, {width, height}, framing) {
  const ready = size.width === width && size.height === height;
  const scale = Math.min(size.height / height, size.width / width) * (ready ? 1 : framing.crop_fraction);
  const box = {width: Math.max(roundEven(scale * width), 1), height: Math.max(roundEven(scale * height), 1)};
  box.left = Math.floor((size.width - box.width) / 2);
  box.top = Math.floor((size.height - box.height) / 2);
  return box;
}

/** Returns every row of the box, resized to the wanted width: floats, three per pixel. */
function resizeAcross(picture, box, across) {
  const rows = Math.min(box.height, Math.max(1, Math.floor(STRIP_PIXELS / box.width)));
  const context = context2d(box.width, rows);
  const result = new Float32Array(box.height * across.length * 3);
  let place = 0;
  for (let top = 0; top < box.height; top += rows) {
    const count = Math.min(rows, box.height - top);
    context.clearRect(0, 0, box.width, rows);
    context.drawImage(picture, box.left, box.top + top, box.width, count, 0, 0, box.width, count);
    const pixels = context.getImageData(0, 0, box.width, count).data;
    for (let row = 0; row < count; row++) {
      for (const {start, weights} of across) {
        let [red, green, blue] = [0, 0, 0];
        let source = 4 * (row * box.width + start);
        for (const weight of weights) {
          red += weight * pixels[source];
          green += weight * pixels[source + 1];
          blue += weight * pixels[source + 2];
          source += 4;
        }
        result[place++] = red;
        result[place++] = green;
        result[place++] = blue;
      }
    }
  }
  return result;
}

function resizeDown(rows, height, width, down) {
  const result = new Uint8ClampedArray(down.length * width * 3);
  const row = new Float64Array(width * 3);
  down.forEach(({start, weights}, y) => {
    row.fill(0);
    weights.forEach((weight, i) => {
      const source = (start + i) * row.length;
      for (let x = 0; x < row.length; x++) row[x] += weight * rows[source + x];
    });
    result.set(row, y * row.length); // Rounds half to even, and clips.
  });
  return result;
}

/** Returns for every pixel of a resized line which pixels it is made of, and how much of each, as tf.image.resize. */
function spans(from, to, interpolation) {
  const {radius, weight} = KERNELS[interpolation];
  const step = from / to;
  const stretch = Math.max(step, 1);
  return Array.from({length: to}, (_, i) => {
    const middle = (i + 0.5) * step;
    const start = Math.max(0, Math.ceil(middle - radius * stretch - 0.5));
    const end = Math.min(from - 1, Math.floor(middle + radius * stretch - 0.5));
    const weights = [];
    for (let j = start; j <= end; j++) weights.push(weight(Math.abs(j + 0.5 - middle) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return {start, weights: weights.map((w) => w / sum)};
  });
}

function roundEven(x) {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

/** Returns the drawing context of a new canvas of so many pixels, in sRGB and without smoothing. */
function context2d(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingEnabled = false;
  return context;
}

/** Returns whether the browser gives back the pixels that were drawn: some change them against fingerprinting. */
export function pixelsAreExact() {
  const context = context2d(16, 16);
  const drawn = new ImageData(16, 16);
  for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = i % 4 === 3 ? 255 : (37 * i) % 256;
  context.putImageData(drawn, 0, 0);
  return context.getImageData(0, 0, 16, 16).data.every((value, i) => value === drawn.data[i]);
}
