// Noise from seeds. The generator is this page's own: a seed draws other pictures here than in the library.

/** A stream of integers from 0 to 2^32 - 1 (splitmix32), one per seed and token. */
function stream(/** @type {number} */ seed, /** @type {number} */ token) {
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(token + 1, 0x85ebca6b)) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
}

/** Standard normal noise of one token, by Box and Muller: `dim` numbers per seed, which depend on no other seed.
 * @param {number[]} seeds @param {number} dim @returns {(token: number) => Float32Array} */
export function seededNoise(seeds, dim) {
  return (token) => {
    const out = new Float32Array(seeds.length * dim);
    seeds.forEach((seed, row) => {
      const next = stream(seed, token);
      for (let k = 0; k < dim; k++) {
        const u = (next() + 0.5) / 2 ** 32, angle = (2 * Math.PI * next()) / 2 ** 32;
        out[row * dim + k] = Math.sqrt(-2 * Math.log(u)) * Math.cos(angle);
      }
    });
    return out;
  };
}
