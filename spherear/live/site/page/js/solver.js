// How one token is drawn: the library's two-step Adams-Bashforth solver, guidance and projection, on plain arrays.
// Rows lie one after another. With two branches, the conditional rows come first, then as many null rows.

/** @typedef {(x: Float32Array, t: number) => Promise<Float32Array>} Velocity */

/** `steps` even steps from 0 to 1 -> their ends, each rounded to float32 as the library's are.
 * @param {number} steps @returns {number[]} */
export function evenTimes(steps) {
  const step = Math.fround(1 / steps), half = (steps + 1) >> 1;
  return Array.from({ length: steps + 1 }, (_, i) =>
    Math.fround(i < half ? step * i : 1 - step * (steps - i)));
}

/** x += (v + (v - v_previous) r / 2) dt, r = dt / dt_previous; the first step is an Euler step.
 * @param {Velocity} velocity @param {Float32Array} noise where it starts @param {number[]} times */
export async function adamsBashforth(velocity, noise, times) {
  const x = noise.slice();
  let previous = /** @type {Float32Array | null} */ (null), before = 0;
  for (let i = 0; i + 1 < times.length; i++) {
    const dt = times[i + 1] - times[i], v = await velocity(x, times[i]);
    const ratio = previous ? dt / before / 2 : 0;
    for (let k = 0; k < x.length; k++) x[k] += (v[k] + (v[k] - (previous ? previous[k] : v[k])) * ratio) * dt;
    previous = v;
    before = dt;
  }
  return x;
}

/** 1 + (scale - 1) index / tokens: the guidance scale of a token. @param {number} scale */
export const linear = (scale, /** @type {number} */ index, /** @type {number} */ tokens) =>
  1 + (scale - 1) * index / tokens;

/** Guidance in place: both branches of a picture get null + scale (cond - null). At scale 1 each keeps its own.
 * @param {Float32Array} v velocities of conditional rows, then null rows @param {number[]} scales one per picture */
export function guide(v, scales) {
  const half = v.length / 2, dim = half / scales.length;
  for (let k = 0; k < half; k++) {
    const scale = scales[Math.floor(k / dim)];
    if (scale !== 1) v[k] = v[k + half] = v[k + half] + scale * (v[k] - v[k + half]);
  }
}

/** The length of every row. @param {Float32Array} rows @param {number} dim */
export function lengths(rows, dim) {
  return Float32Array.from({ length: rows.length / dim }, (_, i) => Math.hypot(...rows.subarray(i * dim, (i + 1) * dim)));
}

/** Every row with length `radius`. @param {Float32Array} rows @param {number} dim @param {number} radius */
export function project(rows, dim, radius) {
  const found = lengths(rows, dim);
  return rows.map((value, k) => value * (radius / found[Math.floor(k / dim)]));
}
