"""Building blocks of all panels: the panel base class, labelled controls and layout."""

import asyncio
import html
import io
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import Image
from matplotlib.figure import Figure

from spherear.live.latest_wins import Cancellation, LatestWins
from spherear.live.parts import cells
from spherear.live.parts.browser import Browser
from spherear.models.config import require

RequestT = TypeVar("RequestT")
WIDE = {"description_width": "initial"}


class Panel(widgets.VBox, Generic[RequestT]):
    """Base class of the panels: controls, a worker thread, and a box that shows errors.

    A panel reads its controls into a request (`read`), and draws the request on the worker (`draw`), which only sets
    traits of existing widgets. `close` ends the worker and the controls; `snapshot` waits for the newest request and
    returns a static picture.
    """

    _closed = True  # until __init__ ran: `close` must not fail if the constructor of a panel raised

    def __new__(cls, *args: Any, **options: Any) -> "Panel[RequestT]":
        """A panel that is closed when the notebook cell that makes it runs again (see `parts.cells`)."""
        panel: Panel[RequestT] = super().__new__(cls, *args, **options)
        cells.register(panel, panel.close_all)
        return panel

    def __init__(self, children: Sequence[widgets.Widget], watched: Sequence[widgets.Widget]) -> None:
        self._lock = threading.RLock()
        self._batch_depth = 0
        self._closed = False
        self._submitted: RequestT | None = None
        self._failure: Exception | None = None  # of the newest request
        self.runner: LatestWins[RequestT] = LatestWins(self.draw, self._failed)
        self.browser = tagged(Browser(lambda held: self.runner.hold() if held else self.runner.release()), "browser")
        self.error_box = widgets.HTML()
        self.error_box.add_class("spherear-error")
        super().__init__([*children, self.error_box, self.browser])
        self.add_class("spherear-panel")
        for control in watched:
            control.observe(lambda change: self.changed(change), "value")

    def read(self) -> RequestT:
        """The request for the current values of the controls."""
        raise NotImplementedError

    def draw(self, request: RequestT, cancellation: Cancellation) -> None:
        """Draw a request, and check `cancellation` often. Runs on the worker thread."""
        raise NotImplementedError

    def still(self) -> Figure:
        """The current content of the panel as a matplotlib figure."""
        raise NotImplementedError

    def changed(self, change: Any = None) -> None:
        """Callback of the watched controls: submit the new request."""
        with self.showing_errors():
            if not self._batch_depth:
                self.submit(always=change is None)

    def submit(self, always: bool) -> None:
        """Submit the request of the controls, unless it equals the previous one and `always` is False.

        A page may set a slider that shows 2 to 1.9999999999999998, which must not start a new drawing.
        """
        previous, self._submitted = self._submitted, None  # stays None if `read` fails
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
        """Stop drawing and show the partial result. The same request may be submitted again."""
        self._submitted = None
        self.runner.stop()

    def turn_view(self, slider: Any, figure: go.FigureWidget, eye: Callable[[float], dict[str, float]]) -> None:
        """Rotate a 3-D figure from a slider in degrees, for keyboard users; the mouse works too."""

        def turn(change: Any) -> None:
            with self.showing_errors():
                figure.layout.scene.camera.eye = eye(change["new"])

        slider.observe(turn, "value")

    @contextmanager
    def together(self) -> Any:
        """Context for changes of several controls: no requests are submitted inside."""
        with self._lock:
            self._batch_depth += 1
            try:
                yield
            finally:
                self._batch_depth -= 1

    @contextmanager
    def showing_errors(self) -> Any:
        """Context for callbacks of controls: one at a time; an exception is shown in the panel."""
        with self._lock:
            try:
                yield
            except Exception as error:
                self.runner.errors.append(error)
                self.show_error(error)

    def guarded(self, action: Callable[[], None]) -> Callable[[Any], None]:
        """A button callback that calls `action` and shows its errors."""

        def callback(_: Any) -> None:
            with self.showing_errors():
                if self._failure is None:
                    self.clear_error()  # the error of another button
                action()

        return callback

    def _failed(self, error: Exception) -> None:
        self._failure = error
        self.show_error(error)

    def show_error(self, error: Exception) -> None:
        """Show an error. It stays until the next request, or the next button click if a button caused it."""
        message = html.escape(f"{type(error).__name__}: {error}")
        self.error_box.value = (
            f'<div role="alert" style="border-left:4px solid #D55E00;padding:4px 8px">{message}</div>'
        )

    def clear_error(self) -> None:
        """Hide the error; it stays in `runner.errors`."""
        self._failure = None
        if self.error_box.value:
            self.error_box.value = ""

    async def finished(self) -> None:
        """Wait until the newest request is drawn. Unlike `snapshot`, this lets the kernel process clicks meanwhile."""
        while not self.runner.idle:
            await asyncio.sleep(0.05)

    def snapshot(self, timeout: float | int = 600.0) -> Image:
        """The panel as a PNG, once the newest request is drawn. An error of that request is raised."""
        if not self.runner.wait(timeout):
            raise TimeoutError(f"the panel still draws after {timeout:g} s; expected it to be done")
        if self._failure is not None:
            raise self._failure
        file = io.BytesIO()
        self.still().savefig(file, format="png", dpi=80)
        return Image(data=file.getvalue(), format="png")

    def close(self) -> None:
        """Close the worker, then the controls. A second call does nothing.

        Work that does not stop within ten seconds: TimeoutError; the controls are closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.runner.close()
        finally:
            for child in self.children:
                _close(child)
            _close_layout(self)
            super().close()

    def close_all(self) -> None:
        """Close the panel, or the controls that its constructor made before it raised."""
        if hasattr(self, "runner"):
            self.close()
        for part in vars(self).values():
            for widget in part if isinstance(part, list | tuple) else (part,):
                if isinstance(widget, widgets.Widget):
                    _close(widget)


def _close(widget: widgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    _close_layout(widget)
    widget.close()


def _close_layout(widget: widgets.Widget) -> None:
    """Close the layout and style widgets of `widget`, which ipywidgets would keep."""
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if isinstance(part, widgets.Widget):
            part.close()


def row(*children: widgets.Widget) -> widgets.HBox:
    """A row of widgets that wraps on narrow pages."""
    return widgets.HBox(list(children), layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def column(*children: widgets.Widget, width: str = "430px") -> widgets.VBox:
    """A column of widgets, at most as wide as the page."""
    return widgets.VBox(list(children), layout=widgets.Layout(width=width, max_width="100%", overflow="hidden"))


def scrolled(child: widgets.Widget, width: str) -> widgets.Box:
    """`child` at a fixed width; it scrolls horizontally on narrower pages."""
    inner = widgets.VBox([child], layout=widgets.Layout(width=width, min_width=width))
    return tagged(widgets.Box([inner], layout=widgets.Layout(max_width="100%", overflow="auto")), "scrolled")


def float_slider(name: str, value: float | int, low: float, high: float, step: float, tag: str) -> widgets.FloatSlider:
    """A labelled slider with an editable number. A value outside `low` to `high`: ValueError."""
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
    """A labelled slider for integers. A value outside `low` to `high`: ValueError."""
    within(name, value, low, high)
    return tagged(widgets.IntSlider(value=value, min=low, max=high, description=name, style=WIDE, layout=_wide()), tag)


def int_field(name: str, value: int, high: int, tag: str) -> widgets.BoundedIntText:
    """A labelled field for an integer. A value outside 0 to `high`: ValueError."""
    within(name, value, 0, high)
    layout = widgets.Layout(width="190px")
    return tagged(
        widgets.BoundedIntText(value=value, min=0, max=high, description=name, style=WIDE, layout=layout), tag
    )


def within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """A value outside `low` to `high`, which a control would clip silently: ValueError."""
    require(low <= value <= high, f"{name} is {value}; expected {low:g} to {high:g}")


def dropdown(name: str, options: Sequence[Any], value: Any, tag: str) -> widgets.Dropdown:
    """A labelled drop-down list."""
    layout = widgets.Layout(width="auto", max_width="100%")
    return tagged(widgets.Dropdown(options=options, value=value, description=name, style=WIDE, layout=layout), tag)


def checkbox(name: str, value: bool, tag: str) -> widgets.Checkbox:
    """A labelled check box."""
    layout = widgets.Layout(width="auto", max_width="100%")
    return tagged(widgets.Checkbox(value=value, description=name, indent=False, layout=layout), tag)


def button(name: str, action: Callable[[Any], None], tag: str, tip: str = "") -> widgets.Button:
    """A button with a caption and a tooltip (`tip`)."""
    widget = tagged(widgets.Button(description=name, tooltip=tip or name, layout=widgets.Layout(width="auto")), tag)
    widget.on_click(action)
    return widget


def toggle_buttons(name: str, options: Sequence[Any], value: Any, tag: str) -> widgets.ToggleButtons:
    """A labelled row of buttons, one per option. A value that is not an option: ValueError."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    require(value in values, f"{name} is {value!r}; expected one of {', '.join(map(repr, values))}")
    style, layout = {**WIDE, "button_width": "auto"}, widgets.Layout(width="auto", max_width="100%")
    widget = widgets.ToggleButtons(options=options, value=value, description=name, style=style, layout=layout)
    return tagged(widget, tag)


def image(tag: str) -> widgets.Image:
    """A PNG image, hidden while empty. (No tooltip: ipywidgets 8.1 does not show an Image that has one.)"""
    layout = widgets.Layout(width="100%", object_fit="contain", display="none")
    widget = tagged(widgets.Image(format="png", layout=layout), tag)
    widget.add_class("spherear-image")
    widget.observe(lambda change: setattr(layout, "display", "" if change["new"] else "none"), "value")
    return widget


def text(tag: str) -> widgets.HTML:
    """A line of HTML text, for the worker to write."""
    return tagged(widgets.HTML(layout=widgets.Layout(max_width="100%")), tag)


WidgetT = TypeVar("WidgetT", bound=widgets.DOMWidget)


def tagged(widget: WidgetT, tag: str) -> WidgetT:
    """Add the CSS class `spherear-<tag>`, which style sheets and tests use to find the widget."""
    widget.add_class(f"spherear-{tag}")
    return widget


def _wide() -> widgets.Layout:
    return widgets.Layout(width="420px", max_width="100%")
