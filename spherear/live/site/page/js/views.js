// What is drawn on the page: pictures, the chart of lengths, numbers. No model and no settings here.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties and children. @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag @param {Record<string, unknown>} [values] @param {(Node | string)[]} children */
export function element(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, values);
  made.append(...children);
  return made;
}

/** Pictures on a canvas, `columns` in a row, one pixel apart.
 * @param {HTMLCanvasElement} canvas @param {Uint8ClampedArray<ArrayBuffer>} pixels RGBA @param {number} size @param {number} columns */
export function paint(canvas, pixels, size, columns) {
  const count = pixels.length / (4 * size * size), rows = Math.ceil(count / columns), step = size + 1;
  const [width, height] = [columns * step - 1, rows * step - 1];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  for (let i = 0; i < count; i++) {
    const part = pixels.subarray(i * 4 * size * size, (i + 1) * 4 * size * size);
    pen.putImageData(new ImageData(part, size, size), (i % columns) * step, Math.floor(i / columns) * step);
  }
}

/** Take the pictures off a canvas. @param {HTMLCanvasElement} canvas */
export const wipe = (canvas) => canvas.getContext("2d")?.clearRect(0, 0, canvas.width, canvas.height);

/** Mean of the last quarter of lengths over that of real tokens, minus 1.
 * @param {number[]} lengths mean by position @param {number[]} real */
export function drift(lengths, real) {
  const late = real.slice(-Math.ceil(real.length / 4)), from = real.length - late.length;
  return late.reduce((sum, value, i) => sum + lengths[from + i] / value - 1, 0) / late.length;
}

/** A number as the page's language writes it. @param {number} value @param {number} [digits] after the point; as many as there are */
export const written = (value, digits) => value.toLocaleString(document.documentElement.lang,
  { minimumFractionDigits: digits, maximumFractionDigits: digits ?? 2, useGrouping: false });

/** A number as a signed percentage. @param {number} value */
export const percent = (value) => `${value < -0.0005 ? "−" : "+"}${written(Math.abs(100 * value), 1)} %`;

/** Lengths by position, all on the same axes; dashed: real tokens.
 * @param {SVGSVGElement} svg @param {{ letter: string, color: string, lengths: number[], real: number[] }[]} sides
 * @param {{ x: string, real: string }} words */
export function plot(svg, sides, words) {
  const width = svg.clientWidth || 360, height = 220, [left, top, right, bottom] = [38, 10, 26, 34];
  const tokens = sides[0].real.length, values = sides.flatMap(({ lengths, real }) => [...lengths, ...real]);
  const most = Math.max(1.25 * Math.max(...sides.flatMap(({ real }) => real)), ...values.map((v) => 1.05 * v));
  const tick = [0.5, 1, 2, 5, 10, 20, 50, 100].find((each) => most / each <= 5) ?? most;
  const x = (/** @type {number} */ i) => left + (i / (tokens - 1)) * (width - left - right);
  const y = (/** @type {number} */ v) => top + (1 - v / most) * (height - top - bottom);
  const path = (/** @type {number[]} */ line) => line.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const parts = [];
  for (let v = 0; v <= most; v += tick) {
    parts.push(mark("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
    parts.push(mark("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, written(v)));
  }
  parts.push(mark("text", { x: left, y: height - 4 }, `${words.x} 1–${tokens}   - - - ${words.real}`));
  /** @type {number[]} */
  const taken = [];
  for (const { letter, color, lengths, real } of sides) {
    parts.push(mark("path", { class: "real", d: path(real), style: `--side:${color}` }));
    if (!lengths.length) continue;
    const end = lengths.length - 1, line = mark("path", { class: "curve", d: path(lengths), style: `--side:${color}` });
    let at = y(lengths[end]) + 4;
    while (taken.some((other) => Math.abs(other - at) < 13)) at -= 13;
    taken.push(at);
    parts.push(line, mark("text", { x: x(end) + 6, y: at, class: "letter", style: `--side:${color}` }, letter));
  }
  svg.replaceChildren(...parts);
}

/** @param {string} tag @param {Record<string, string | number>} values @param {string} [text] */
function mark(tag, values, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) made.setAttribute(name, String(value));
  made.textContent = text;
  return made;
}
