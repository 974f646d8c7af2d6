// The page's side of live/figure.py: plotly's widget, loaded when a figure is shown instead of when it is created.

const MESSAGES = [
  "addTraces", "deleteTraces", "moveTraces", "restyle", "relayout", "update", "animate",
  "removeLayoutProps", "removeTraceProps",
].map((name) => `_py2js_${name}`);

/** Plotly's module, imported once per page from the text that the kernel's source widget holds. */
async function plotly(model) {
  const id = model.get("_plotly").slice("IPY_MODEL_".length);
  const source = await model.widget_manager.get_model(id);
  const url = URL.createObjectURL(new Blob([source.get("text")], { type: "text/javascript" }));
  return import(url).finally(() => URL.revokeObjectURL(url));
}

export default () => {
  const early = []; // messages that arrive before plotly is there, to be sent again
  let initialized, widget; // the model as `initialize` was given it: its listeners outlive every view

  function listen(change) {
    for (const name of MESSAGES) change(`change:${name}`, listeners[name]);
  }
  const listeners = Object.fromEntries(MESSAGES.map((name) => [
    name, () => initialized.get(name) && early.push([name, initialized.get(name)]),
  ]));

  async function load() {
    globalThis.spherearPlotly ??= plotly(initialized);
    const made = (await globalThis.spherearPlotly).default();
    listen((event, listener) => initialized.off(event, listener));
    made.initialize({ model: initialized });
    for (const [name, message] of early) {
      for (const value of [null, message, null]) initialized.set(name, value);
    }
    return made;
  }

  return {
    initialize({ model }) {
      initialized = model;
      listen((event, listener) => model.on(event, listener));
    },
    async render(context) {
      widget ??= load();
      return (await widget).render(context);
    },
  };
};
