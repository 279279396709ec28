// What the model looks at: attention followed from the result back to the patches, and drawn over the picture.

// Colours from the least to the most, of matplotlib's "inferno".
const COLOURS = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
];
const OPACITY = 0.6;
const LONGEST_SIDE = 512; // Of the canvas, in pixels.

/**
 * Follows attention from what is pooled back through all blocks: the rollout of Abnar and Zuidema (arXiv:2005.00928).
 *
 * @param {Float32Array} rows The file's second output: what is pooled, then the weights of every block, row by row.
 * @param {{shape: number[], grid: number[]}} layout Its shape, `[batch, rows, tokens]`, and the grid of patches.
 * @return {Float64Array} One number per patch, row by row; their sum is 1.
 */
export function rollout(rows, {shape: [, count, tokens], grid: [height, width]}) {
  let row = Float64Array.from(rows.subarray(0, tokens));
  for (let block = Math.ceil((count - 1) / tokens) - 1; block >= 0; block--) {
    const first = 1 + block * tokens;
    const asking = Math.min(tokens, count - first); // Of the last block there may be only the first rows.
    const next = row.map((share) => share / 2);
    for (let i = 0; i < asking; i++) {
      if (!row[i]) continue;
      const weights = rows.subarray((first + i) * tokens, (first + i + 1) * tokens);
      const sum = weights.reduce((a, b) => a + b, 0) || 1;
      for (let j = 0; j < tokens; j++) next[j] += ((row[i] / 2) * weights[j]) / sum;
    }
    row = next;
  }
  const patches = row.subarray(tokens - height * width);
  const sum = patches.reduce((a, b) => a + b, 0) || 1;
  return patches.map((share) => share / sum);
}

/**
 * Draws a map where it belongs on a picture; the canvas gets the picture's proportions.
 *
 * @param {HTMLCanvasElement} canvas Lies over the picture.
 * @param {Float64Array} map One number per patch.
 * @param {number[]} grid Height and width in patches.
 * @param {{width: number, height: number}} size The picture's size.
 * @param {{left: number, top: number, width: number, height: number}} box The part that the model sees.
 */
export function draw(canvas, map, [height, width], size, box) {
  const scale = LONGEST_SIDE / Math.max(size.width, size.height);
  canvas.width = Math.max(1, Math.round(size.width * scale));
  canvas.height = Math.max(1, Math.round(size.height * scale));
  const least = Math.min(...map);
  const range = Math.max(...map) - least || 1;
  const image = new ImageData(width, height);
  map.forEach((share, i) => image.data.set([...colour((share - least) / range), 255], 4 * i));
  const small = document.createElement("canvas");
  small.width = width;
  small.height = height;
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.globalAlpha = OPACITY;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, ...[box.left, box.top, box.width, box.height].map((length) => length * scale));
}

function colour(share) {
  const place = share * (COLOURS.length - 1);
  const index = Math.min(Math.floor(place), COLOURS.length - 2);
  return COLOURS[index].map((from, i) => from + (place - index) * (COLOURS[index + 1][i] - from));
}
