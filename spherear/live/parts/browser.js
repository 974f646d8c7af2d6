// The page's side of live/parts/browser.py: names for what assistive software reads, downloads, the clipboard, and
// whether a hand holds a control.

function save(name, bytes) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000); // once the browser has begun to read it
}

/** Whether the text is in the clipboard. Browsers that refuse the first way, as on pages without https, have another. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    return copied;
  }
}

const label = (element) => element.closest(".jupyter-widgets")?.querySelector(".widget-label")?.textContent ?? "";

const NARROW = 520; // pixels

function set(element, name, value) {
  if (element && value && element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Names and roles that ipywidgets and plotly leave out. */
function describe(root, texts) {
  for (const handle of root.querySelectorAll(".noUi-handle")) set(handle, "aria-label", label(handle));
  for (const number of root.querySelectorAll(".widget-readout")) {
    set(number, "role", "textbox");
    set(number, "aria-label", `${label(number)}, as a number`);
  }
  for (const group of root.querySelectorAll(".widget-toggle-buttons")) {
    set(group, "role", "group");
    set(group, "aria-label", label(group));
  }
  for (const input of root.querySelectorAll("input, select, textarea")) {
    if (!input.labels?.length) set(input, "aria-label", label(input) || input.title || input.placeholder);
  }
  for (const image of root.querySelectorAll("img")) if (!image.hasAttribute("alt")) image.alt = "";
  for (const [name, text] of Object.entries(texts)) {
    const element = root.querySelector(`.spherear-${name}`);
    if (element?.tagName === "IMG") set(element, "alt", text);
    else if (element) {
      set(element, "role", "img");
      set(element, "aria-label", text);
    }
  }
}

/** Says when a pointer takes a control below `root`, and when it, or a key, is let go. */
function watchHand(root, say) {
  let taken = false;
  const take = () => say((taken = true));
  const leave = (event) => {
    if (event.type === "keyup" ? !root.contains(event.target) : !taken) return;
    taken = false;
    setTimeout(say, 0, false); // after the control has taken its last value
  };
  const watched = [[root, "pointerdown", take]];
  for (const name of ["pointerup", "pointercancel", "blur", "keyup"]) watched.push([window, name, leave]);
  for (const [target, name, told] of watched) target.addEventListener(name, told, true);
  return () => watched.forEach(([target, name, told]) => target.removeEventListener(name, told, true));
}

export default {
  initialize({ model }) {
    const answer = async (message, [bytes]) => {
      if (message.save) save(message.save, bytes);
      if (message.copy) model.send({ number: message.number, copied: await copy(message.copy) });
    };
    model.on("msg:custom", answer);
    return () => model.off("msg:custom", answer);
  },

  render({ model, el }) {
    let root, timer, leave;
    const now = () => root && describe(root, model.get("texts"));
    const soon = () => (timer ??= setTimeout(() => { timer = undefined; now(); }, 200));
    const observer = new MutationObserver(soon);
    const size = new ResizeObserver(() => {
      const narrow = root.clientWidth < NARROW;
      if (root.clientWidth === 0 || narrow === model.get("narrow")) return;
      model.set("narrow", narrow);
      model.save_changes();
    });
    const find = () => {
      root = el.closest(".spherear-panel");
      if (!root) return (timer = setTimeout(() => { timer = undefined; find(); }, 50)); // not on the page yet
      observer.observe(root, { childList: true, subtree: true });
      size.observe(root);
      leave = watchHand(root, (held) => model.send({ held }));
      now();
    };
    find();
    model.on("change:texts", now);
    return () => {
      clearTimeout(timer);
      observer.disconnect();
      size.disconnect();
      leave?.();
      model.off("change:texts", now);
    };
  },
};
