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

  const forget = () => early.splice(0); // a whole state, sent to a page that asks for it, holds what came before it
  const listeners = { "change:_widget_data": forget, "change:_widget_layout": forget };
  for (const name of MESSAGES) {
    listeners[`change:${name}`] = () => initialized.get(name) && early.push([name, initialized.get(name)]);
  }

  async function load() {
    globalThis.spherearPlotly ??= plotly(initialized).catch((error) => {
      globalThis.spherearPlotly = undefined; // the next figure tries again
      throw error;
    });
    const made = (await globalThis.spherearPlotly).default();
    for (const event in listeners) initialized.off(event, listeners[event]);
    made.initialize({ model: initialized });
    for (const [name, message] of early) {
      for (const value of [null, message, null]) initialized.set(name, value);
    }
    return made;
  }

  return {
    initialize({ model }) {
      initialized = model;
      for (const event in listeners) model.on(event, listeners[event]);
    },
    async render(context) {
      widget ??= load();
      return (await widget).render(context);
    },
  };
};
