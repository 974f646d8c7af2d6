"""What every panel is made of: labelled controls that wrap, a live figure, a worker, and errors that are shown."""

import asyncio
import html
import io
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, Generic, TypeVar

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import Image
from matplotlib.figure import Figure
from plotly.serializers import custom_serializers

from spherear.live.latest_wins import LatestWins, Turn
from spherear.models.config import require

with suppress(ImportError):  # plotly looks whether it is there: half imported, by another thread, it is an error
    import pandas  # noqa: F401

RequestT = TypeVar("RequestT")
WIDE = {"description_width": "initial"}
FIGURE_HEIGHT = 250


class Panel(widgets.VBox, Generic[RequestT]):
    """Controls, a worker behind them, and the place where errors are shown.

    A panel reads its controls into a request (`read`), and draws it on the worker (`draw`), where it only sets
    traits of widgets that exist. `close` ends both; `snapshot` waits for the newest request and
    returns it as a still picture.
    """

    _closed = True  # until it is made: a panel that was refused has nothing to end

    def __init__(self, children: Sequence[widgets.Widget], watched: Sequence[widgets.Widget]) -> None:
        self._reading = threading.RLock()
        self._held = 0
        self._closed = False
        self._submitted: RequestT | None = None
        self._failure: Exception | None = None  # of the newest request
        self.runner: LatestWins[RequestT] = LatestWins(self.draw, self._failed)
        self.error_box = widgets.HTML()
        self.error_box.add_class("spherear-error")
        super().__init__([*children, self.error_box])
        self.add_class("spherear-panel")
        for control in watched:
            control.observe(lambda change: self.changed(change), "value")

    def read(self) -> RequestT:
        """The request that the controls describe."""
        raise NotImplementedError

    def draw(self, request: RequestT, turn: Turn) -> None:
        """Make the pictures of a request, looking at `turn` often. Runs on the worker."""
        raise NotImplementedError

    def still(self) -> Figure:
        """What the panel shows, as a matplotlib figure."""
        raise NotImplementedError

    def changed(self, change: Any = None) -> None:
        """A control moved: submit the new request."""
        with self.showing_errors():
            if not self._held:
                self.submit(always=change is None)

    def submit(self, always: bool) -> None:
        """Submit the controls' request; if it equals the last one, only where `always` is set.

        A page may set a slider that shows 2 to 1.9999999999999998: that is no new picture.
        """
        previous, self._submitted = self._submitted, None  # a request that cannot be read was not submitted
        try:
            request = self.read()
        except Exception as error:
            self._failure = error
            raise
        if always or request != previous:
            self.clear_error()
            self.runner.submit(request)
        self._submitted = request

    def stop(self) -> None:
        """End the drawing, which shows what there is; the same request may be submitted again."""
        self._submitted = None
        self.runner.stop()

    @contextmanager
    def together(self) -> Any:
        """Around changes of several controls that make one request."""
        with self._reading:
            self._held += 1
            try:
                yield
            finally:
                self._held -= 1

    @contextmanager
    def showing_errors(self) -> Any:
        """Around whatever a control calls: one at a time, and an error is shown in the panel."""
        with self._reading:
            try:
                yield
            except Exception as error:
                self.runner.errors.append(error)
                self.show_error(error)

    def guarded(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """A callback for a button."""

        def call(_: Any) -> None:
            with self.showing_errors():
                if self._failure is None:
                    self.clear_error()  # of another button
                action()

        return call

    def _failed(self, error: Exception) -> None:
        self._failure = error
        self.show_error(error)

    def show_error(self, error: Exception) -> None:
        """Show an error: of a request until the next request, of a button until the next button."""
        message = html.escape(f"{type(error).__name__}: {error}")
        self.error_box.value = (
            f'<div role="alert" style="border-left:4px solid #D55E00;padding:4px 8px">{message}</div>'
        )

    def clear_error(self) -> None:
        """Hide the error; `runner.errors` keeps it."""
        self._failure = None
        if self.error_box.value:
            self.error_box.value = ""

    async def finished(self) -> None:
        """Until the newest request is drawn. A cell that awaits this takes clicks; in `snapshot` none arrive."""
        while not self.runner.idle:
            await asyncio.sleep(0.05)

    def snapshot(self, timeout: float | int = 600.0) -> Image:
        """The panel as a still PNG, once the newest request is drawn. An error there is raised here."""
        if not self.runner.wait(timeout):
            raise TimeoutError(f"the panel still draws after {timeout:g} s; expected it to be done")
        if self._failure is not None:
            raise self._failure
        file = io.BytesIO()
        self.still().savefig(file, format="png", dpi=80)
        return Image(data=file.getvalue(), format="png")

    def close(self) -> None:
        """End the worker, then the controls. A second time does nothing."""
        if self._closed:
            return
        self.runner.close()
        self._closed = True
        for child in self.children:
            _close(child)
        _close_layout(self)
        super().close()


def _close(widget: widgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    _close_layout(widget)
    widget.close()


def _close_layout(widget: widgets.Widget) -> None:
    """The widgets that hold its layout and style, which ipywidgets keeps otherwise."""
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, widgets.Widget):
            part.close()


def row(*children: widgets.Widget) -> widgets.HBox:
    """Beside each other where there is room, else below each other."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def column(*children: widgets.Widget, width: str = "430px") -> widgets.VBox:
    """Below each other, never wider than the page."""
    return widgets.VBox(list(children), layout=widgets.Layout(width=width, max_width="100%", overflow="hidden"))


def scrolled(child: widgets.Widget, width: str) -> widgets.Box:
    """Always as wide as `width`; on a narrower page it is moved sideways."""
    inner = widgets.VBox([child], layout=widgets.Layout(width=width, min_width=width))
    return widgets.Box([inner], layout=widgets.Layout(max_width="100%", overflow="auto"))


def float_slider(name: str, value: float | int, low: float, high: float, step: float, tag: str) -> widgets.FloatSlider:
    """A labelled slider; its number can be typed as well. A value beyond its ends: ValueError."""
    within(name, value, low, high)
    return tagged(
        widgets.FloatSlider(
            value=value,
            min=low,
            max=high,
            step=step,
            description=name,
            style=WIDE,
            readout_format=".2f",
            layout=_wide(),
        ),
        tag,
    )


def int_slider(name: str, value: int, low: int, high: int, tag: str) -> widgets.IntSlider:
    """A labelled slider over whole numbers. A value beyond its ends: ValueError."""
    within(name, value, low, high)
    return tagged(widgets.IntSlider(value=value, min=low, max=high, description=name, style=WIDE, layout=_wide()), tag)


def int_field(name: str, value: int, high: int, tag: str) -> widgets.BoundedIntText:
    """A labelled field for a whole number from 0. A value beyond `high`: ValueError."""
    within(name, value, 0, high)
    layout = widgets.Layout(width="190px")
    return tagged(
        widgets.BoundedIntText(value=value, min=0, max=high, description=name, style=WIDE, layout=layout), tag
    )


def within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuse what a control would cut off without a word."""
    require(low <= value <= high, f"{name} is {value}; expected {low:g} to {high:g}")


def dropdown(name: str, options: Sequence[Any], value: Any, tag: str) -> widgets.Dropdown:
    """A labelled list to choose from."""
    layout = widgets.Layout(width="auto", max_width="100%")
    return tagged(widgets.Dropdown(options=options, value=value, description=name, style=WIDE, layout=layout), tag)


def checkbox(name: str, value: bool, tag: str) -> widgets.Checkbox:
    """A labelled box to tick."""
    layout = widgets.Layout(width="auto", max_width="100%")
    return tagged(widgets.Checkbox(value=value, description=name, indent=False, layout=layout), tag)


def button(name: str, action: Callable[[Any], None], tag: str, tip: str = "") -> widgets.Button:
    """A button with a name, and what it does under the pointer."""
    made = tagged(widgets.Button(description=name, tooltip=tip or name, layout=widgets.Layout(width="auto")), tag)
    made.on_click(action)
    return made


def toggle_buttons(name: str, options: Sequence[Any], value: Any, tag: str) -> widgets.ToggleButtons:
    """A labelled choice with every option in sight. A value that is none of them: ValueError."""
    known = [option[1] if isinstance(option, tuple) else option for option in options]
    require(value in known, f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")
    style, layout = {**WIDE, "button_width": "auto"}, widgets.Layout(width="auto", max_width="100%")
    made = widgets.ToggleButtons(options=options, value=value, description=name, style=style, layout=layout)
    return tagged(made, tag)


def image(tag: str) -> widgets.Image:
    """A place for a PNG, out of sight without one. (No tooltip: an Image with one is not shown by ipywidgets 8.1.)"""
    layout = widgets.Layout(width="100%", object_fit="contain", display="none")
    made = tagged(widgets.Image(format="png", layout=layout), tag)
    made.add_class("spherear-image")
    made.observe(lambda change: setattr(layout, "display", "" if change["new"] else "none"), "value")
    return made


def text(tag: str) -> widgets.HTML:
    """A line of text that the worker writes."""
    return tagged(widgets.HTML(layout=widgets.Layout(max_width="100%")), tag)


WidgetT = TypeVar("WidgetT", bound=widgets.DOMWidget)


def tagged(widget: WidgetT, tag: str) -> WidgetT:
    """With a class by which style sheets and tests find it."""
    widget.add_class(f"spherear-{tag}")
    return widget


def _wide() -> widgets.Layout:
    return widgets.Layout(width="420px", max_width="100%")


class LiveFigure(go.FigureWidget):
    """A figure that a page which opens later sees as it is; plotly's hands it the data that it was made with."""

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Of the widget, for a page, with the newest data and layout."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if key is None and hasattr(self, "_layout_obj"):  # the whole state, and the figure is made
            newest = {"_widget_data": self._data, "_widget_layout": self._layout_obj._props}
            state |= {name: custom_serializers["to_json"](deepcopy(part), self) for name, part in newest.items()}
        return state


def live_figure(tag: str, traces: Sequence[Any], x: str, y: str, **layout: Any) -> go.FigureWidget:
    """A plotly figure whose traces exist from the start and only change their data."""
    made = LiveFigure(
        data=list(traces),
        layout={
            "height": FIGURE_HEIGHT,
            "autosize": True,
            "margin": {"l": 60, "r": 12, "t": 12, "b": 48},
            "font": {"size": 14},
            "template": "plotly_white",
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            **layout,
        },
    )
    made._config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    return tagged(made, tag)
