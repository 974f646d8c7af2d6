// One side of the page: a model in a thread of its own. It draws what was asked for last and drops what came before.

import { decode } from "./decode.js";
import { Judge, Model, openRuntime } from "./model.js";
import { seededNoise } from "./noise.js";
import { lengths } from "./solver.js";

/** noise: instead of seeds, of all tokens, (tokens, pictures, dim).  whole: with the tokens in the answer, and without
 * partial pictures.
 * @typedef {{ id: number, preset: import("./model.js").Preset, family: import("./model.js").Family, labels: number[],
 *   scales: number[], seeds: number[], steps: number, temperature: number, project: boolean, noise?: Float32Array,
 *   whole?: boolean }} Request */

/** @type {Request | null} */
let wanted = null;
let busy = false;
/** @type {Promise<void> | null} */
let runtime = null;
/** @type {Map<string, Model | Judge>} the models that are loaded, the newest last */
const loaded = new Map();
const MOST = 3; // models and judges in memory

onmessage = async ({ data }) => {
  wanted = data;
  if (busy) return;
  busy = true;
  while (wanted) {
    const request = /** @type {Request} */ (wanted);
    wanted = null;
    await draw(request).catch((error) => send({ type: "error", id: request.id, message: String(error) }));
  }
  busy = false;
};

const send = (/** @type {any} */ message, /** @type {Transferable[]} */ moved = []) => postMessage(message, { transfer: moved });

/** Let messages in. */
const breathe = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); resolve(null); };
  port2.postMessage(null);
});

/** A model or a judge, loaded once; the one that was not used for longest makes room.
 * @template {Model | Judge} T @param {string} key @param {() => Promise<T>} load @returns {Promise<T>} */
async function keep(key, load) {
  const found = /** @type {T} */ (loaded.get(key) ?? await load());
  loaded.delete(key);
  loaded.set(key, found);
  if (loaded.size > MOST) {
    const [oldest, dropped] = /** @type {[string, Model | Judge]} */ (loaded.entries().next().value);
    loaded.delete(oldest);
    await dropped.release();
  }
  return found;
}

/** @param {Request} request */
async function draw(request) {
  const { id, preset, family, labels } = request, { tokens: count, dim } = preset, began = performance.now();
  await (runtime ??= openRuntime().catch((error) => {
    runtime = null; // the next drawing tries again
    throw error;
  }));
  const model = await keep(family.weights, () => Model.load(preset, family));
  const each = labels.length * dim, given = request.noise;
  const noise = given ? (/** @type {number} */ i) => given.slice(i * each, (i + 1) * each) : seededNoise(request.seeds, dim);
  const tokens = new Float32Array(labels.length * count * dim), raws = tokens.slice();
  let last = performance.now(), cost = 0;
  send({ type: "begun", id, ms: last - began });
  for await (const { index, raw, token } of decode(model, { ...request, noise })) {
    place(tokens, token, index, preset);
    place(raws, raw, index, preset);
    send({ type: "token", id, index, lengths: lengths(raw, dim) });
    if (index + 1 < count && !request.whole && performance.now() - last > 3 * cost && (index + 1) % 2 === 0) {
      const start = performance.now();
      const pixels = toPixels(await model.decode(tokens), preset, index + 1);
      last = performance.now();
      cost = last - start;
      send({ type: "frame", id, pixels, ms: last - began }, [pixels.buffer]);
    }
    await breathe();
    if (wanted) return;
  }
  const pixels = toPixels(await model.decode(tokens), preset, count);
  const answer = { type: "done", id, pixels, ms: performance.now() - began };
  send(request.whole ? { ...answer, tokens, raws } : answer);
  await breathe();
  if (wanted) return;
  const judge = await keep(preset.judge, () => Judge.load(preset));
  send({ type: "judged", id, classes: await judge.classes(fromPixels(pixels, preset)) });
}

/** Write one token of every picture. @param {Float32Array} all @param {Float32Array} rows @param {number} index
 * @param {import("./model.js").Preset} preset */
function place(all, rows, index, { tokens, dim }) {
  for (let picture = 0; picture * dim < rows.length; picture++) {
    all.set(rows.subarray(picture * dim, (picture + 1) * dim), (picture * tokens + index) * dim);
  }
}

/** Images, channels first -> RGBA bytes: clamp(127.5 x + 128) truncated; transparent where no token is drawn yet.
 * @param {Float32Array} images @param {import("./model.js").Preset} preset @param {number} drawn */
function toPixels(images, { size, grid }, drawn) {
  const area = size * size, patch = size / grid, pixels = new Uint8ClampedArray((images.length / 3) * 4);
  for (let i = 0; i < pixels.length / 4; i++) {
    const picture = Math.floor(i / area), at = i % area, y = Math.floor(at / size), x = at % size;
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = Math.floor(127.5 * images[(3 * picture + c) * area + at] + 128);
    pixels[4 * i + 3] = Math.floor(y / patch) * grid + Math.floor(x / patch) < drawn ? 255 : 0;
  }
  return pixels;
}

/** The inverse, as the judge sees saved pictures. @param {Uint8ClampedArray} pixels @param {import("./model.js").Preset} preset */
function fromPixels(pixels, { size }) {
  const area = size * size, images = new Float32Array((pixels.length / 4) * 3);
  for (let i = 0; i < pixels.length / 4; i++) {
    const picture = Math.floor(i / area), at = i % area;
    for (let c = 0; c < 3; c++) images[(3 * picture + c) * area + at] = (pixels[4 * i + c] - 127.5) / 127.5;
  }
  return images;
}
