// The token loop of the library's `decode`: condition, draw, project, feed back.

import { adamsBashforth, evenTimes, guide, linear, project } from "./solver.js";

/** What is drawn. labels, scales: one per picture. noise: of a token, `dim` numbers per picture.
 * @typedef {{ labels: number[], scales: number[], steps: number, temperature: number, project: boolean,
 *   noise: (token: number) => Float32Array }} Drawing */
/** raw: as the solver left it. token: as it is fed back; both of the conditional branch.
 * @typedef {{ index: number, raw: Float32Array, token: Float32Array }} Step */

/** Draw the tokens of every picture, one `Step` at a time.
 * @param {import("./model.js").Model} model @param {Drawing} drawing @returns {AsyncGenerator<Step>} */
export async function* decode(model, drawing) {
  const { preset, family } = model, { labels, scales } = drawing;
  const guided = scales.some((scale) => scale !== 1), times = evenTimes(drawing.steps);
  const rows = guided ? [...labels, ...labels.map(() => preset.nullLabel)] : labels;
  let { condition, cache } = await model.start(rows);
  for (let index = 0; index < preset.tokens; index++) {
    const noise = drawing.noise(index).map((value) => value * drawing.temperature);
    const current = scales.map((scale) => linear(scale, index, preset.tokens));
    const velocity = async (/** @type {Float32Array} */ x, /** @type {number} */ t) => {
      const v = await model.velocity(x, t, condition);
      if (guided) guide(v, current);
      return v;
    };
    const raw = await adamsBashforth(velocity, guided ? twice(noise) : noise, times);
    const token = drawing.project && family.radius ? project(raw, preset.dim, family.radius) : raw;
    yield { index, raw: raw.subarray(0, noise.length), token: token.subarray(0, noise.length) };
    if (index + 1 < preset.tokens) condition = await model.step(token, cache);
  }
}

/** @param {Float32Array} values */
function twice(values) {
  const out = new Float32Array(2 * values.length);
  out.set(values);
  out.set(values, values.length);
  return out;
}
