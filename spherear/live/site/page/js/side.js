// One side of the page: a worker with its model, its pictures and its numbers.

import { drift, element, paint, percent, wipe } from "./views.js";

/** @typedef {import("./worker.js").Request} Request */
/** @typedef {Omit<Request, "id" | "family">} Order */

export class Side {
  /** @param {(family: string) => void} choose @param {() => void} changed called when something new is to be seen */
  constructor(choose, changed) {
    this.changed = changed;
    this.select = element("select");
    this.select.addEventListener("change", () => choose(this.select.value));
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.recognised = element("dd");
    this.recognisedName = element("dt");
    this.drift = element("dd");
    this.driftName = element("dt");
    this.numbers = element("dl", {}, this.recognisedName, this.recognised, this.driftName, this.drift);
    this.root = element("div", { className: "side" }, this.select, this.canvas, this.numbers);
    this.strip = element("canvas");
    this.strip.setAttribute("role", "img");
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#receive(data);
    this.worker.onerror = (event) => this.#receive({ type: "error", id: this.id, message: event.message });
    this.id = 0;
    this.state = /** @type {"idle" | "loading" | "drawing" | "done" | "error"} */ ("idle");
    this.message = "";
    this.milliseconds = this.first = 0;
    /** @type {number[]} */
    this.lengths = [];
    /** @type {{ id: number, order: Order, kind: string, resolve: (answer: any) => void, reject: (error: Error) => void } | null} */
    this.pending = null;
  }

  /** Show a family as the one of this side. @param {import("./model.js").Family} family */
  show(family) {
    this.family = family;
    this.select.value = family.family;
    this.root.style.setProperty("--side", family.color);
  }

  /** Draw an order with this side's family; an earlier one is dropped. Resolves when pictures are judged, or to null
   * when a newer order came. kind: `pictures`, `strip`, or `test`, which shows nothing.
   * @param {Order} order @param {string} kind @returns {Promise<any>} */
  draw(order, kind = "pictures") {
    this.pending?.resolve(null);
    const id = ++this.id, family = /** @type {import("./model.js").Family} */ (this.family);
    if (kind === "pictures") Object.assign(this, { state: "loading", lengths: [], first: 0 });
    return new Promise((resolve, reject) => {
      this.pending = { id, order, kind, resolve, reject };
      this.worker.postMessage({ ...order, id, family });
    });
  }

  /** @param {any} data */
  #receive(data) {
    const job = this.pending;
    if (!job || data.id !== job.id) return;
    if (data.type === "error") {
      Object.assign(this, { state: "error", message: data.message, pending: null });
      job.reject(new Error(data.message));
    } else if (data.type === "done") {
      this.answer = data;
    } else if (data.type === "judged") {
      this.pending = null;
      job.resolve({ ...this.answer, classes: data.classes });
    }
    if (job.kind === "pictures") this.#show(data, job.order);
    if (job.kind === "strip" && data.pixels) paint(this.strip, data.pixels, job.order.preset.size, job.order.labels.length);
    this.changed();
  }

  /** @param {any} data @param {Order} order */
  #show(data, { preset, labels }) {
    const columns = Math.ceil(Math.sqrt(labels.length));
    if (data.type === "begun") {
      this.state = "drawing";
      this.recognised.textContent = this.drift.textContent = "…";
    } else if (data.type === "token") {
      this.lengths.push(data.lengths.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b) / labels.length);
    } else if (data.type === "judged") {
      const right = data.classes.filter((/** @type {number} */ found, /** @type {number} */ i) => found === labels[i]).length;
      this.recognised.textContent = `${right} / ${labels.length}`;
    }
    if (data.pixels) {
      paint(this.canvas, data.pixels, preset.size, columns);
      this.first ||= data.ms;
    }
    if (data.type === "done") {
      Object.assign(this, { state: "done", milliseconds: data.ms });
      this.writeDrift();
    }
  }

  /** Write the drift of pictures that are done, as the page's language writes numbers. */
  writeDrift() {
    if (this.state === "done") this.drift.textContent = percent(drift(this.lengths, this.family?.real ?? []));
  }

  /** Forget the strip, which other settings drew. */
  clearStrip() {
    wipe(this.strip);
  }
}
