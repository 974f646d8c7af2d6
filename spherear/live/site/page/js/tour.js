// The guided tour: six steps, each with settings of its own and a part of the page that it points at.

import { element } from "./views.js";

/** Settings of each step, and the selector of the part it points at. @type {[string, Partial<import("./settings.js").Settings>][]} */
export const STEPS = [
  ["#sides", { scale: 1, project: true, right: "gaussian" }],
  ["#chart", { scale: 1, project: true, right: "gaussian" }],
  ["#scale-row", { scale: 6, project: true, right: "gaussian" }],
  ["#chart", { scale: 12, project: true, right: "gaussian" }],
  ["#project-row", { scale: 12, project: false, right: "gaussian" }],
  ["#sides", { scale: 6, project: true, right: "normalized_gaussian" }],
];
const BASE = { preset: "shapes", left: "power_spherical", label: 3, steps: 10, seed: 5, temperature: 1 };

const byId = (/** @type {string} */ id) => /** @type {HTMLElement} */ (document.getElementById(id));

export class Tour {
  /** @param {(change: Partial<import("./settings.js").Settings>) => void} apply */
  constructor(apply) {
    this.apply = apply;
    byId("tour-open").onclick = () => this.go(1);
    byId("tour-close").onclick = () => this.go(0);
    byId("tour-next").onclick = () => this.go(this.step === STEPS.length ? 0 : this.step + 1);
    byId("tour-back").onclick = () => this.go(this.step - 1);
    byId("tour").addEventListener("keydown", (event) => this.#key(event));
    this.step = 0;
  }

  /** Apply a step's settings and show it; 0 ends the tour. @param {number} step */
  go(step) {
    const ended = step === 0 && this.step > 0;
    this.apply(step ? { ...BASE, ...STEPS[step - 1][1], tour: step } : { tour: 0 });
    if (ended) byId("tour-open").focus();
    if (step) byId("tour-title").focus({ preventScroll: true });
  }

  /** Show a step in these words, without a change of settings. @param {number} step @param {any} words */
  show(step, words) {
    const moved = step !== this.step;
    this.step = step;
    byId("tour").hidden = step === 0;
    document.body.classList.toggle("touring", step > 0);
    for (const marked of document.querySelectorAll(".pointed")) marked.classList.remove("pointed");
    if (!step) return;
    const { title, text } = words.tour[step - 1], last = step === STEPS.length;
    byId("tour-title").textContent = title;
    byId("tour-text").textContent = text;
    byId("tour-count").textContent = `${step} / ${STEPS.length}`;
    byId("tour-next").textContent = last ? words.ui.finish : words.ui.next;
    /** @type {HTMLButtonElement} */ (byId("tour-back")).disabled = step === 1;
    byId("tour-question").replaceChildren(...(last ? this.#question(words.question) : []));
    const target = document.querySelector(STEPS[step - 1][0]);
    target?.classList.add("pointed");
    if (!moved) return;
    byId("tour-body").scrollTop = 0;
    target?.scrollIntoView({ block: "start" });
  }

  /** @param {{ ask: string, answers: { text: string, right: boolean, why: string }[] }} question */
  #question({ ask, answers }) {
    const said = element("p", {});
    said.setAttribute("role", "status");
    const buttons = answers.map(({ text, right, why }) => {
      const button = element("button", { textContent: text });
      button.onclick = () => {
        button.className = right ? "right" : "wrong";
        said.textContent = `${right ? "✓" : "✗"} ${why}`;
        said.scrollIntoView({ block: "nearest" });
      };
      return button;
    });
    return [element("h3", { textContent: ask }), ...buttons, said];
  }

  /** @param {KeyboardEvent} event */
  #key({ key }) {
    if (key === "Escape") this.go(0);
    if (key === "ArrowRight" && this.step < STEPS.length) this.go(this.step + 1);
    if (key === "ArrowLeft" && this.step > 1) this.go(this.step - 1);
  }
}
