// A model: sessions of onnxruntime-web on the exported graphs, each one function of the library.

import * as ort from "../vendor/ort.js";

/** @typedef {{ family: string, letter: string, title: string, color: string, weights: string, radius: number | null,
 *   latentScale: number, expected: number, real: number[] }} Family */
/** @typedef {{ size: number, grid: number, dim: number, tokens: number, width: number, classTokens: number,
 *   nullLabel: number, cache: number[], classes: string[], graphs: string, judge: string, families: Family[] }} Preset */

/** Bytes of a file of the site, unpacked if its name ends in .gz. @param {string} path */
async function read(path) {
  const answer = await fetch(new URL(`../${path}`, import.meta.url));
  if (!answer.ok || !answer.body) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  const unpacked = path.endsWith(".gz") ? answer.body.pipeThrough(new DecompressionStream("gzip")) : answer.body;
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

/** Load the runtime: one thread, since more need headers that a plain server does not send. */
export async function openRuntime() {
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = await read("vendor/ort.wasm.gz");
}

const floats = (/** @type {Float32Array} */ data, /** @type {number[]} */ shape) => new ort.Tensor("float32", data, shape);

/** @param {string} graphs @param {string} name @param {string} file name of the weights in the graph
 * @param {Uint8Array} weights */
async function session(graphs, name, file, weights) {
  const graph = await read(`${graphs}/${name}.onnx`);
  return ort.InferenceSession.create(graph, { externalData: [{ path: file, data: weights }] });
}

/** The classifier of a data set. */
export class Judge {
  /** @param {Preset} preset */
  static async load(preset) {
    return new Judge(await session(preset.graphs, "judge", "judge", await read(preset.judge)), preset.size);
  }

  /** @param {any} run @param {number} size */
  constructor(run, size) {
    this.run = run;
    this.size = size;
  }

  /** Free the session's memory. */
  release() {
    return this.run.release();
  }

  /** Images, channels first, in [-1, 1] -> the most likely class of each. @param {Float32Array} images */
  async classes(images) {
    const count = images.length / (3 * this.size ** 2);
    const { logits } = await this.run.run({ images: floats(images, [count, 3, this.size, this.size]) });
    const width = logits.data.length / count;
    return Array.from({ length: count }, (_, i) => {
      const row = logits.data.subarray(i * width, (i + 1) * width);
      return row.indexOf(Math.max(...row));
    });
  }
}

/** One model of a data set: four graphs on one file of weights. */
export class Model {
  /** @param {Preset} preset @param {Family} family */
  static async load(preset, family) {
    const weights = await read(family.weights), names = ["start", "step", "head", "decoder"];
    const opened = [];
    for (const name of names) opened.push(await session(preset.graphs, name, "model", weights));
    return new Model(preset, family, opened);
  }

  /** @param {Preset} preset @param {Family} family @param {any[]} sessions */
  constructor(preset, family, [start, step, head, decoder]) {
    this.preset = preset;
    this.family = family;
    this.sessions = { start, step, head, decoder };
  }

  /** Free the sessions' memory. */
  async release() {
    for (const opened of Object.values(this.sessions)) await opened.release();
  }

  /** Labels -> the condition of the first token; the cache holds the class tokens. @param {number[]} labels */
  async start(labels) {
    const { condition, cache } = await this.sessions.start.run({
      labels: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]),
    });
    return { condition, cache: new Cache(this.preset, labels.length, cache.data) };
  }

  /** The newest token -> the condition of the next one; the cache grows. @param {Float32Array} token @param {Cache} cache */
  async step(token, cache) {
    const feeds = { token: floats(token, [cache.rows, this.preset.dim]), past: cache.tensor() };
    const found = await this.sessions.step.run(feeds);
    cache.append(found.cache.data);
    return found.condition;
  }

  /** The velocity at x and one time. @param {Float32Array} x @param {number} t @param {any} condition */
  async velocity(x, t, condition) {
    const shape = [x.length / this.preset.dim, this.preset.dim];
    const feeds = { x: floats(x, shape), t: floats(Float32Array.of(t), [1]), condition };
    return /** @type {Float32Array} */ ((await this.sessions.head.run(feeds)).velocity.data);
  }

  /** Tokens -> images, channels first, about [-1, 1]. @param {Float32Array} tokens */
  async decode(tokens) {
    const { tokens: count, dim } = this.preset, scale = this.family.latentScale;
    const latents = scale === 1 ? tokens : tokens.map((value) => value / scale);
    const feeds = { latents: floats(latents, [tokens.length / (count * dim), count, dim]) };
    return /** @type {Float32Array} */ ((await this.sessions.decoder.run(feeds)).images.data);
  }
}

/** Keys and values of all positions so far, one position after another. */
class Cache {
  /** @param {Preset} preset @param {number} rows @param {Float32Array} first */
  constructor(preset, rows, first) {
    const [layers, heads, width] = preset.cache;
    this.rows = rows;
    this.shape = [layers, 2, rows, heads, width];
    this.stride = this.shape.reduce((a, b) => a * b);
    this.data = new Float32Array(this.stride * (preset.classTokens + preset.tokens));
    this.filled = 0;
    this.append(first);
  }

  /** @param {Float32Array} positions */
  append(positions) {
    this.data.set(positions, this.filled * this.stride);
    this.filled += positions.length / this.stride;
  }

  tensor() {
    return floats(this.data.subarray(0, this.filled * this.stride), [this.filled, ...this.shape]);
  }
}
