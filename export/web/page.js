// The page: pictures from files, drops, the clipboard and the camera; the five most likely classes of each.
//
// Programs use `window.vitKeras`: `ready`, a promise of the loaded page; `classify(blob)`, a promise of
// `{scores, chances, labels, map, milliseconds}`, where `map` is the attention over the patches or null;
// `open(blob, name)`, which takes another .tflite file.

import {draw, rollout} from "./attention.js";
import {Classifier, loadRuntime, softmax} from "./classifier.js";
import {boxOf, decode, pixelsAreExact, pixelsOf} from "./pictures.js";
import {UsageError} from "./tflite.js";

const SHOWN = 5;
const PAUSE = 200; // Milliseconds between two frames of the camera that are classified.
const SMALL = 64; // Pictures with fewer pixels a side are shown as squares, not blurred.
const MOST_MODEL_BYTES = 2 ** 30;
const FRAMING = {interpolation: "bilinear", crop_fraction: 1};

const $ = (id) => document.getElementById(id);
const state = {runtime: null, classifier: null, labels: null, framing: FRAMING, stream: null, turn: 0, shown: null};

// The model

async function start() {
  const [runtime, description] = await Promise.all([loadRuntime(), fetchOwn("model.json").then((r) => r.json())]);
  state.runtime = runtime;
  const bytes = new Uint8Array(await (await fetchOwn(description.file)).arrayBuffer());
  await use(bytes, description);
  $("runtime").textContent =
    `LiteRT.js on ${runtime.threads === 1 ? "1 thread" : `${runtime.threads} threads`}` +
    (globalThis.crossOriginIsolated ? "." : "; more need a server that isolates the page.");
  for (const id of ["choose", "choose-model"]) $(id).disabled = false;
  $("camera").disabled = !navigator.mediaDevices;
  if (!navigator.mediaDevices) {
    $("camera").title = "The browser gives the camera only to pages from https:// or from this machine.";
    $("camera").textContent = "No camera here";
  }
  if (!pixelsAreExact()) {
    say("This browser changes the pixels of pictures to protect you, so results may be wrong.", {error: true});
  }
}

async function fetchOwn(name) {
  const response = await fetch(new URL(encodeURIComponent(name), import.meta.url));
  if (!response.ok) throw new UsageError(`The page's ${name} could not be loaded (${response.status}).`);
  return response;
}

/** Takes a model; what is shown changes only if it can be run. */
async function use(bytes, {name, file, labels, ...framing}) {
  const classifier = await Classifier.open(state.runtime, bytes);
  state.classifier?.delete();
  state.classifier = classifier;
  const {facts} = classifier;
  state.labels = labels ?? facts.labels ?? Array.from({length: facts.classes}, (_, i) => String(i));
  state.framing = {...FRAMING, ...framing};
  $("name").textContent = document.title = name;
  $("facts").textContent =
    `${facts.classes.toLocaleString("en")} classes · ${facts.width} × ${facts.height} pixels · ` +
    `${file}, ${megabytes(bytes.length)}`;
  $("show-attention").hidden = !facts.attention;
  clear();
  say("Ready for a picture.");
}

/** Opens another .tflite file, a `Blob` with a name. */
async function open(blob, name = blob.name ?? "model.tflite") {
  if (blob.size > MOST_MODEL_BYTES) throw new UsageError(`${name} is too large for a browser.`);
  try {
    await use(new Uint8Array(await blob.arrayBuffer()), {name: name.replace(/\.tflite$/, ""), file: name});
  } catch (error) {
    throw error instanceof UsageError ? new UsageError(`${name}: ${error.message}`) : error;
  }
}

// Pictures

/** Classifies a picture file, a `Blob`, and shows nothing. */
async function classify(blob) {
  const picture = await decode(blob);
  try {
    return await scoresOf(picture, {width: picture.width, height: picture.height});
  } finally {
    picture.close();
  }
}

async function scoresOf(picture, size) {
  const {classifier, framing, labels} = state;
  const start = performance.now();
  const pixels = pixelsOf(picture, size, classifier.facts, framing);
  const preparing = performance.now() - start;
  const {scores, rows, milliseconds} = await classifier.run(pixels);
  const map = rows && rollout(rows, classifier.facts.attention);
  const chances = classifier.facts.chances ? scores : softmax(scores);
  return {scores, chances, labels, map, milliseconds, preparing, pixels, size};
}

async function showPicture(blob) {
  stopCamera();
  const turn = ++state.turn;
  say("Classifying…");
  $("results").classList.add("stale");
  const result = await classify(blob);
  if (turn !== state.turn) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(blob);
  await $("preview").decode().catch(() => {});
  $("preview").classList.toggle("small", Math.max($("preview").naturalWidth, $("preview").naturalHeight) < SMALL);
  fillStage("preview");
  show(result);
  say(sentence(result), {heard: true});
}

// The camera

async function startCamera() {
  $("camera").disabled = true;
  const asked = navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  const stream = await asked.finally(() => ($("camera").disabled = false));
  state.stream = stream;
  stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
  $("camera").textContent = "Stop camera";
  $("camera").setAttribute("aria-pressed", "true");
  const video = $("video");
  video.srcObject = stream;
  await video.play();
  fillStage("video");
  say("The camera is on.", {heard: true});
  while (state.stream === stream) {
    const result = await scoresOf(video, {width: video.videoWidth, height: video.videoHeight});
    if (state.stream === stream) show(result);
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

function stopCamera() {
  if (!state.stream) return;
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  $("video").srcObject = null;
  $("camera").textContent = "Use camera";
  $("camera").setAttribute("aria-pressed", "false");
  clear();
  say("The camera is off.");
}

const CAMERA_ERRORS = {
  NotAllowedError: "The browser was not allowed to use the camera.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

// What is shown

function show(result) {
  const {chances, labels, milliseconds, preparing, pixels} = result;
  const best = chances.map((chance, i) => [chance, i]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN);
  $("results").replaceChildren(...best.map(([chance, i]) => row(labels[i], chance)));
  $("results").classList.remove("stale");
  $("model-time").textContent = time(milliseconds);
  $("picture-time").textContent = time(preparing);
  $("times").hidden = false;
  showPixels(pixels);
  state.shown = result;
  showAttention();
}

/** Lays the attention of the last result over its picture, or takes it away. */
function showAttention() {
  const wanted = state.shown?.map && $("show-attention").getAttribute("aria-pressed") === "true";
  $("attention").hidden = !wanted;
  if (!wanted) return;
  const {facts} = state.classifier;
  const {map, size} = state.shown;
  draw($("attention"), map, facts.attention.grid, size, boxOf(size, facts, state.framing));
}

function row(label, chance) {
  const item = document.createElement("li");
  const parts = ["label", "chance", "track"].map((name) => {
    const part = document.createElement("div");
    part.className = name;
    return part;
  });
  parts[0].textContent = label;
  parts[1].textContent = percent(chance);
  const bar = document.createElement("div");
  bar.className = "bar";
  bar.style.width = `${100 * chance}%`;
  parts[2].append(bar);
  item.append(...parts);
  return item;
}

function showPixels(pixels) {
  const {width, height} = state.classifier.facts;
  const canvas = $("seen-pixels");
  canvas.width = width;
  canvas.height = height;
  canvas.classList.toggle("small", Math.max(width, height) < SMALL);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...pixels.subarray(3 * i, 3 * i + 3), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("seen").hidden = false;
}

function fillStage(id) {
  for (const name of ["empty", "preview", "video"]) $(name).hidden = name !== id;
  $("stage").classList.toggle("filled", id !== "empty");
}

function clear() {
  fillStage("empty");
  $("seen").hidden = $("times").hidden = $("attention").hidden = true;
  state.shown = null;
  $("results").replaceChildren();
}

/** Says how things stand; what the list of results shows already is said to screen readers only. */
function say(text, {error = false, heard = false} = {}) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
  $("message").classList.toggle("unseen", heard);
}

const sentence = ({chances, labels}) => {
  const best = chances.indexOf(Math.max(...chances));
  return `${labels[best]}, ${percent(chances[best])}.`;
};
const percent = (chance) => `${(100 * chance).toFixed(1)} %`;
const time = (milliseconds) => `${milliseconds < 100 ? milliseconds.toPrecision(2) : Math.round(milliseconds)} ms`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// What people do

/** Does what was asked for, and says what went wrong. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    $("results").classList.remove("stale");
    if (!(error instanceof UsageError)) console.error(error);
    say(error instanceof UsageError ? error.message : `Something went wrong: ${error?.message ?? error}`, {error: true});
  }
}

function take(files) {
  const file = files?.[0];
  if (!file || !state.classifier) return;
  attempt(() => (file.name.endsWith(".tflite") ? open(file) : showPicture(file)));
}

function listen() {
  $("choose").addEventListener("click", () => $("picture-file").click());
  $("choose-model").addEventListener("click", () => $("model-file").click());
  $("picture-file").addEventListener("change", ({target}) => {
    take(target.files);
    target.value = "";
  });
  $("model-file").addEventListener("change", ({target}) => {
    const file = target.files[0];
    if (file) attempt(() => open(file));
    target.value = "";
  });
  $("camera").addEventListener("click", () => {
    if (state.stream) return stopCamera();
    attempt(() =>
      startCamera().catch((error) => {
        stopCamera();
        throw CAMERA_ERRORS[error?.name] ? new UsageError(CAMERA_ERRORS[error.name]) : error;
      }),
    );
  });
  $("show-attention").addEventListener("click", ({target}) => {
    target.setAttribute("aria-pressed", String(target.getAttribute("aria-pressed") !== "true"));
    showAttention();
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
}

$("stuck").hidden = true;
listen();
const ready = start();
attempt(() => ready);
window.vitKeras = {ready, classify, open};
