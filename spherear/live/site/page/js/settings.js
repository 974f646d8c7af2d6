// The settings of the page, and the link that holds them.

/** @typedef {{ preset: string, left: string, right: string, label: number, scale: number, steps: number, seed: number,
 *   temperature: number, project: boolean, lang: string, tour: number }} Settings */

/** tour: the step that is shown, or 0. @type {Settings} */
export const DEFAULTS = {
  preset: "shapes", left: "power_spherical", right: "gaussian", label: 4, scale: 3, steps: 10, seed: 1, temperature: 1,
  project: true, lang: "en", tour: 0,
};

/** @type {Record<string, [number, number]>} */
const RANGES = { scale: [1, 12], steps: [1, 40], seed: [0, 999_999], temperature: [0, 1.5], tour: [0, 6] };
const WHOLE = ["label", "steps", "seed", "tour"];

/** A number within a range; anything else is the value that stands there now.
 * @param {string} name @param {string | number} value @param {number} now @param {[number, number]} [range] */
export function within(name, value, now, range = RANGES[name]) {
  const number = Number(value);
  if (value === "" || !Number.isFinite(number) || !range) return now;
  const kept = Math.min(range[1], Math.max(range[0], number));
  return WHOLE.includes(name) ? Math.round(kept) : kept;
}

/** The settings in a link; what it does not hold, or what cannot be, is as in `base`.
 * @param {string} hash @param {Record<string, import("./model.js").Preset>} presets @param {string[]} languages
 * @param {Settings} [base] @returns {Settings} */
export function fromLink(hash, presets, languages, base = DEFAULTS) {
  const given = new URLSearchParams(hash.replace(/^#/, "")), found = { ...base };
  const take = (/** @type {"preset" | "left" | "right" | "lang"} */ name, /** @type {string[]} */ known) => {
    const value = given.get(name) ?? found[name];
    found[name] = known.includes(value) ? value : known.includes(base[name]) ? base[name] : known[0];
  };
  take("preset", Object.keys(presets));
  take("lang", languages);
  const { families, classes } = presets[found.preset], names = families.map(({ family }) => family);
  take("left", names);
  take("right", names);
  for (const name of /** @type {const} */ (["scale", "steps", "seed", "temperature", "tour"])) {
    if (given.has(name)) found[name] = within(name, String(given.get(name)), found[name]);
  }
  found.label = within("label", given.get("label") ?? found.label, base.label, [0, classes.length - 1]);
  if (given.has("project")) found.project = given.get("project") !== "false";
  return found;
}

/** The part of a link that holds the settings that differ from the defaults. @param {Settings} settings */
export function toLink(settings) {
  const changed = Object.entries(settings).filter(([name, value]) => value !== DEFAULTS[/** @type {keyof Settings} */ (name)]);
  return changed.length ? `#${new URLSearchParams(changed.map(([name, value]) => [name, String(value)]))}` : "#";
}
