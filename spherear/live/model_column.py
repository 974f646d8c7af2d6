"""A column of the guidance panel: the images of one model, and the lengths of their tokens by position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from spherear.analysis.canvas import Canvas, expected_length, length_symbol
from spherear.analysis.sight import RealTokens
from spherear.figures.length_overlay import overlay_lengths
from spherear.figures.style import GREY
from spherear.live import controls
from spherear.live.figure import live_figure
from spherear.live.picture import Picture, png_bytes, sheet
from spherear.sphere.families import FAMILIES

MARGIN = {"l": 60, "r": 12, "t": 62, "b": 48}
"""Pixels; above, room for a legend of two lines."""


@dataclass(frozen=True)
class GuidanceRequest:
    """A picture. overlay: whether token lengths are shown on the images.  strip: whether other scales are drawn too.

    columns: of images on the page, where those of the picture, as it is saved, are too many.
    """

    picture: Picture
    overlay: bool
    strip: bool = False
    columns: int = 0


class ModelColumn(widgets.VBox):
    """The images of one model under its name. curve: a plot of the lengths of their tokens by position, and a line."""

    def __init__(self, place: int) -> None:
        self.title = controls.text(f"title-{place}")
        self.image = controls.image(f"grid-{place}")
        self.norms = controls.text(f"norms-{place}")
        self.trace = live_figure(f"trace-{place}", _traces(), "token", "length", height=290, margin=MARGIN)
        self.curve = widgets.VBox([controls.text(f"curve-title-{place}"), self.trace, self.norms])
        self.pixels: np.ndarray = np.zeros((1, 1, 3), np.uint8)
        super().__init__([self.title, self.image])

    def show(self, canvas: Canvas, request: GuidanceRequest, title: str) -> None:
        """Show a partial or finished canvas, without the plot of lengths."""
        picture = request.picture
        columns, zoom = request.columns or picture.columns, picture.zoom
        self.pixels = sheet(canvas.images(), columns, zoom)
        pixels = self.pixels[::zoom, ::zoom]  # the page enlarges them: to send each once is faster
        expected, (raw, token) = expected_length(canvas.pipeline), canvas.lengths()
        if request.overlay:
            pixels = overlay_lengths(self.pixels, raw, expected, columns, zoom)
        self.image.value = png_bytes(pixels)
        fitted = picture.settings.fitting(canvas.pipeline.ar.config.head_kind)
        own = "" if fitted == picture.settings else f" ({fitted.solver}, {fitted.steps} per token)"
        self.title.value = self.curve.children[0].value = title + own
        name = length_symbol(canvas.pipeline)
        self.norms.value = f"handed on: {_range(token)} · raw: {_range(raw)} · {name} = {expected:.3f}"

    def show_trace(self, canvas: Canvas) -> None:
        """Update the plot of lengths, which is slow in a browser."""
        expected, name = expected_length(canvas.pipeline), length_symbol(canvas.pipeline)
        raw, token = canvas.lengths()
        positions = np.arange(1, raw.shape[1] + 1, dtype=np.int32)
        series = (raw.amin(0), raw.amax(0), raw.mean(0), token.mean(0))
        with self.trace.batch_update():
            for trace, values in zip(self.trace.data, series, strict=False):
                trace.x, trace.y = positions, values.numpy()
            self.trace.data[4].x = np.array([1, len(positions)], np.float32)
            self.trace.data[4].y = np.array([expected, expected], np.float32)
        if self.trace.data[4].name != (text := f"{name} = {expected:.2f}"):
            self.trace.data[4].name = text  # apart: plotly erases a property that a batch does not set for all traces

    def show_real(self, real: RealTokens | None) -> None:
        """The band of real tokens' lengths; none where they are not known."""
        band = (real.low.numpy(), real.high.numpy()) if real is not None else (np.zeros(0, np.float32),) * 2
        with self.trace.batch_update():
            for trace, values in zip(self.trace.data[5:], band, strict=True):
                trace.x, trace.y = np.arange(1, len(values) + 1, dtype=np.int32), values

    def extent(self) -> float:
        """The greatest length of a real token or of a mean; single raw tokens may be longer, and leave the plot."""
        values = [np.asarray(self.trace.data[place].y, np.float32) for place in (2, 3, 4, 6) if self._drawn(place)]
        return max((float(np.nanmax(v)) for v in values if np.isfinite(v).any()), default=1.0)

    def _drawn(self, place: int) -> bool:
        return self.trace.data[place].y is not None

    def scale_to(self, extent: float) -> None:
        """Let the axis of lengths end at `extent`."""
        wanted = (0.0, extent)
        if self.trace.layout.yaxis.range != wanted:
            self.trace.layout.yaxis.range = wanted


def common_axis(columns: Sequence[ModelColumn]) -> None:
    """Give the plots of lengths one axis, from 0 to a whole number above what they show (see `extent`)."""
    top = math.ceil(1.1 * max(column.extent() for column in columns))
    for column in columns:
        column.scale_to(float(top))


def _range(lengths: Any) -> str:
    drawn = lengths[lengths.isfinite()]
    return f"{float(drawn.min()):.3f} to {float(drawn.max()):.3f}" if len(drawn) else "none yet"


def _traces() -> list[go.Scatter]:
    color = FAMILIES["power_spherical"].color
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    return [
        go.Scatter(**edge, showlegend=False),
        go.Scatter(**edge, fill="tonexty", fillcolor="rgba(213,94,0,0.2)", name="raw, min to max"),
        go.Scatter(mode="lines+markers", name="raw, mean", line={"color": FAMILIES["gaussian"].color}),
        go.Scatter(
            mode="markers",
            name="handed on",
            marker={"symbol": "square-open", "size": 10, "color": color, "line_width": 2},
        ),
        go.Scatter(mode="lines", name="expected", line={"color": GREY, "dash": "dash", "width": 3}),
        go.Scatter(**edge, showlegend=False),
        go.Scatter(**edge, fill="tonexty", fillcolor="rgba(128,128,128,0.3)", name="real, 5 to 95 %"),
    ]
