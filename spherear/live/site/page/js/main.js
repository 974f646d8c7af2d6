// The page: settings, two sides, the chart, the strip of scales, the tour. Models run in `worker.js`.

import { Side } from "./side.js";
import { DEFAULTS, fromLink, toLink, within } from "./settings.js";
import { Tour } from "./tour.js";
import { element, plot, written } from "./views.js";

/** @typedef {import("./settings.js").Settings} Settings */

const PICTURES = 4; // on each side
const SCALES = [1, 2, 3, 4.5, 6, 9, 12]; // of the strip
const SLIDERS = /** @type {const} */ (["scale", "steps", "temperature"]);

const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const load = async (/** @type {string} */ path) => (await fetch(new URL(`../${path}`, import.meta.url))).json();

const [site, texts] = await Promise.all([load("site.json"), load("texts.json")]);
const languages = Object.keys(texts);
const spoken = navigator.languages.map((tag) => tag.split("-")[0]).find((tag) => languages.includes(tag));
const base = { ...DEFAULTS, lang: spoken ?? DEFAULTS.lang };
let settings = fromLink(location.hash, site.presets, languages, base);
let number = 0, stripOf = "", queued = false;
const sides = [
  new Side((family) => change({ left: family }), show),
  new Side((family) => change({ right: family }), show),
];
const tour = new Tour(change);

const words = () => texts[settings.lang];
const preset = () => site.presets[settings.preset];

/** Take new settings, and draw if they change a picture. @param {Partial<Settings>} changes */
function change(changes) {
  const before = settings;
  settings = fromLink(toLink({ ...settings, ...changes }), site.presets, languages);
  history.replaceState(null, "", toLink(settings));
  fill(before);
  if (picture(before) !== picture(settings)) draw();
}

/** What the pictures depend on. @param {Settings} settings */
const picture = (settings) => JSON.stringify({ ...settings, lang: "", tour: 0 });

/** Write texts and controls. @param {Settings | null} before */
function fill(before) {
  if (settings.lang !== before?.lang) translate();
  if (settings.preset !== before?.preset || settings.lang !== before?.lang) {
    choices(byId("label"), preset().classes.map((/** @type {string} */ name, /** @type {number} */ i) =>
      [String(i), words().classes[settings.preset]?.[i] ?? name]));
    for (const { select } of sides) {
      choices(select, preset().families.map((/** @type {any} */ f) => [f.family, `${f.letter} · ${words().families[f.family] ?? f.title}`]));
    }
  }
  byId("language").value = settings.lang;
  byId("preset").value = settings.preset;
  byId("label").value = settings.label;
  byId("project").checked = settings.project;
  byId("seed").value = settings.seed;
  for (const name of SLIDERS) {
    byId(name).value = settings[name];
    /** @type {any} */ (document.querySelector(`output[for=${name}]`)).value = written(settings[name]);
  }
  sides.forEach((side, i) => side.show(family(i)));
  tour.show(settings.tour, words());
}

/** @param {number} i */
const family = (i) => preset().families.find((/** @type {any} */ f) => f.family === (i ? settings.right : settings.left));

function translate() {
  const { ui } = words();
  document.documentElement.lang = settings.lang;
  for (const node of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-text]"))) {
    node.textContent = ui[String(node.dataset.text)];
  }
  for (const node of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-title]"))) {
    node.title = ui[String(node.dataset.title)];
    node.setAttribute("aria-label", node.title);
  }
  document.querySelectorAll(".scales span").forEach((head, i) => { head.textContent = written(SCALES[i]); });
  choices(byId("preset"), Object.keys(site.presets).map((name) => [name, ui.presets[name] ?? name]));
  sides.forEach((side, i) => {
    side.select.setAttribute("aria-label", ui.sides[i]);
    side.recognisedName.textContent = ui.recognised;
    side.driftName.textContent = ui.drift;
    side.writeDrift();
  });
}

/** @param {HTMLSelectElement} select @param {[string, string][]} rows */
function choices(select, rows) {
  const value = select.value;
  select.replaceChildren(...rows.map(([name, text]) => element("option", { value: name, textContent: text })));
  if (rows.some(([name]) => name === value)) select.value = value;
}

/** What both sides draw. @param {number[]} scales @param {number[]} seeds @returns {import("./side.js").Order} */
function order(scales, seeds) {
  const { steps, temperature, project, label } = settings;
  return { preset: preset(), labels: scales.map(() => label), scales, seeds, steps, temperature, project };
}

/** Draw the pictures on both sides, then the strip; newer settings drop what is not finished. */
async function draw() {
  const current = ++number, strip = picture({ ...settings, scale: 0 });
  if (strip !== stripOf) sides.forEach((side) => side.clearStrip());
  const seeds = Array.from({ length: PICTURES }, (_, i) => settings.seed + i);
  const whole = order(seeds.map(() => settings.scale), seeds);
  show();
  try {
    const drawn = await Promise.all(sides.map((side) => side.draw(whole)));
    if (current !== number || drawn.includes(null)) return;
    document.body.dataset.done = `${current} ${settings.scale}`;
    if (strip === stripOf) return;
    const scales = order(SCALES, SCALES.map(() => settings.seed));
    const shown = await Promise.all(sides.map((side) => side.draw(scales, "strip")));
    if (current === number && !shown.includes(null)) document.body.dataset.strip = stripOf = strip;
  } catch {
    show(); // the side that failed says why
  }
}

/** Bring chart and status up to date, once per frame of the screen. */
function show() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    const { ui } = words(), failed = sides.find(({ state }) => state === "error");
    const curves = sides.map((side, i) => ({ ...family(i), lengths: side.lengths }));
    plot(byId("plot"), curves, { x: ui.axisX, real: ui.axisReal });
    const name = byId("label").selectedOptions[0]?.textContent;
    sides.forEach((side, i) => side.canvas.setAttribute("aria-label", `${family(i).letter}: ${name}, ${side.recognised.textContent ?? ""}`));
    byId("plot").setAttribute("aria-label", `${ui.chart}: ${sides.map((side, i) => `${family(i).letter} ${side.drift.textContent}`).join(", ")}`);
    letters.forEach((letter, i) => { letter.textContent = family(i).letter; });
    sides.forEach((side, i) => side.strip.setAttribute("aria-label", `${family(i).letter}: ${ui.strip}`));
    const state = failed ? "error" : sides.every((side) => side.state === "done") ? "done"
      : sides.some((side) => side.state === "drawing") ? "drawing" : "loading";
    const seconds = Math.max(...sides.map(({ milliseconds }) => milliseconds)) / 1000;
    const said = { error: `${ui.error}: ${failed?.message}`, loading: ui.loading,
      drawing: `${ui.drawing} ${Math.max(...sides.map(({ lengths }) => lengths.length))} / ${preset().tokens}`,
      done: ui.done.replace("{n}", 2 * PICTURES).replace("{s}", written(seconds, 1)) }[state];
    byId("status").textContent = said;
    document.body.dataset.state = state;
  });
}

const letters = sides.map(({ strip, root }) => {
  const letter = element("span", { className: "letter" });
  byId("sides").append(root);
  byId("strip-rows").append(element("div", { className: "strip" }, letter, strip));
  return letter;
});
byId("strip-rows").append(element("div", { className: "scales" }, ...SCALES.map(() => element("span"))));

choices(byId("language"), languages.map((name) => [name, texts[name].name]));
byId("language").onchange = () => change({ lang: byId("language").value });
byId("preset").onchange = () => change({ preset: byId("preset").value, label: DEFAULTS.label });
byId("label").onchange = () => change({ label: Number(byId("label").value) });
byId("project").onchange = () => change({ project: byId("project").checked });
byId("seed").onchange = () => change({ seed: within("seed", byId("seed").value, settings.seed) });
byId("dice").onclick = () => change({ seed: Math.floor(Math.random() * 1_000_000) });
for (const name of SLIDERS) byId(name).oninput = () => change({ [name]: Number(byId(name).value) });
byId("share").onclick = async () => {
  try {
    await navigator.clipboard.writeText(location.href);
  } catch { // a browser lets only pages of https and of this machine copy
    prompt(words().ui.share, location.href);
    return;
  }
  byId("share").textContent = words().ui.shared;
  setTimeout(translate, 2000);
};
addEventListener("hashchange", () => {
  const before = settings;
  settings = fromLink(location.hash, site.presets, languages, base);
  fill(before);
  if (picture(before) !== picture(settings)) draw();
});
addEventListener("resize", show);

/** For tests: draw an order on one side with given noise, in whole. */
Object.assign(globalThis, {
  spherearTest: (/** @type {number} */ side, /** @type {string} */ name, /** @type {any} */ given) => {
    const rows = site.presets[name];
    sides[side].family = rows.families.find((/** @type {any} */ f) => f.family === given.family);
    const noise = Float32Array.from(given.noise);
    return sides[side].draw({ ...given, preset: rows, noise, whole: true }, "test");
  },
});

fill(null);
draw();
