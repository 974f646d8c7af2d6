"""Plotly figures of the panels: they wait for plotly without holding up the page, and later pages see their updates.

anywidget gives a model's module two seconds to load, and plotly's own module is a bundle of 5 MB for every figure. The
module here is small (`figure.js`); it fetches the bundle from one widget per kernel, once per page, when a figure is
shown.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import traitlets
from jaxtyping import Int
from plotly.serializers import custom_serializers
from torch import Tensor

from spherear.live.controls import tagged

with suppress(ImportError):  # plotly checks for pandas; a partial import on another thread would fail there
    import pandas  # noqa: F401

HEIGHT = 250


class PlotlySource(widgets.Widget):
    """Plotly's module for widgets, as text; it has no view."""

    text = traitlets.Unicode().tag(sync=True)
    shared: "PlotlySource | None" = None

    @classmethod
    def of_kernel(cls) -> "PlotlySource":
        """The one of this kernel; a new one if it was closed."""
        if cls.shared is None or cls.shared.comm is None:
            cls.shared = cls(text=str(go.FigureWidget._esm))
        return cls.shared


class LiveFigure(go.FigureWidget):
    """A figure whose state includes later updates, for pages opened later; plotly's class sends the initial data."""

    _esm = Path(__file__).with_name("figure.js").read_text(encoding="utf-8")  # anywidget keeps who gives a path
    _plotly = traitlets.Instance(PlotlySource).tag(sync=True, **widgets.widget_serialization)

    @traitlets.default("_plotly")
    def _default_source(self) -> PlotlySource:
        return PlotlySource.of_kernel()

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """The widget state with the current data and layout."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        if key is None and hasattr(self, "_layout_obj"):  # whole state, after the figure's __init__
            current = {"_widget_data": self._data, "_widget_layout": self._layout_obj._props}
            state |= {name: custom_serializers["to_json"](deepcopy(part), self) for name, part in current.items()}
        return state


def camera(degrees: float | int, distance: float, height: float) -> dict[str, float]:
    """Camera position of a 3-D figure, `degrees` about the vertical from the x axis."""
    azimuth = math.radians(degrees)
    return {"x": distance * math.cos(azimuth), "y": distance * math.sin(azimuth), "z": height}


def mesh_corners(faces: Int[Tensor, "faces 3"]) -> dict[str, np.ndarray]:
    """The triangles of a mesh as plotly names them: i, j and k."""
    return {name: vertex.numpy().astype(np.int32) for name, vertex in zip("ijk", faces.unbind(-1), strict=True)}


def live_figure(tag: str, traces: Sequence[Any], x: str, y: str, **layout: Any) -> LiveFigure:
    """A plotly figure with fixed traces, whose data is updated later."""
    figure = LiveFigure(
        data=list(traces),
        layout={
            "height": HEIGHT,
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
    figure._config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    if not any(trace.type in ("mesh3d", "scatter3d") for trace in figure.data):
        figure.add_class("spherear-flat")
    return tagged(figure, tag)
