"""A column of the guidance panel: the images of one model, and the lengths of their tokens by position."""

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from spherear.analysis.canvas import Canvas, expected_length, length_symbol
from spherear.figures.length_overlay import overlay_lengths
from spherear.figures.style import GREY
from spherear.live import controls
from spherear.live.figure import live_figure
from spherear.live.picture import Picture, png_bytes, sheet
from spherear.sphere.families import FAMILIES


@dataclass(frozen=True)
class GuidanceRequest:
    """A picture. overlay: whether token lengths are shown on the images."""

    picture: Picture
    overlay: bool


class ModelColumn(widgets.VBox):
    """The images of one model, the range of their token lengths, and a plot of the lengths by position."""

    def __init__(self, place: int) -> None:
        self.title = controls.text(f"title-{place}")
        self.image = controls.image(f"grid-{place}")
        self.norms = controls.text(f"norms-{place}")
        self.trace = live_figure(f"trace-{place}", _traces(), "token", "length")
        self.pixels: np.ndarray = np.zeros((1, 1, 3), np.uint8)
        layout = widgets.Layout(width="max(405px, 30vw)", max_width="100%", overflow="hidden")
        super().__init__([self.title, self.image, self.norms, self.trace], layout=layout)

    def show(self, canvas: Canvas, request: GuidanceRequest, family: str, trace: bool = True) -> None:
        """Show a partial or finished canvas. trace: update the length plot too, which is slow in a browser."""
        picture = request.picture
        self.pixels = pixels = sheet(canvas.images(), picture.columns, picture.zoom)
        expected, (raw, token) = expected_length(canvas.pipeline), canvas.lengths()
        if request.overlay:
            pixels = overlay_lengths(pixels, raw, expected, picture.columns, picture.zoom)
        self.image.value = png_bytes(pixels)
        fitted = picture.settings.fitting(canvas.pipeline.ar.config.head_kind)
        own = "" if fitted == picture.settings else f" ({fitted.solver}, {fitted.steps} per token)"
        self.title.value = f"<b>{family}</b>{own}"
        name = length_symbol(canvas.pipeline)
        self.norms.value = f"handed on: {_range(token)} · raw: {_range(raw)} · {name} = {expected:.3f}"
        if trace:
            self._show_trace(raw, token, expected, name)

    def _show_trace(self, raw: Tensor, token: Tensor, expected: float, name: str) -> None:
        positions = np.arange(1, raw.shape[1] + 1, dtype=np.int32)
        series = (raw.amin(0), raw.amax(0), raw.mean(0), token.mean(0))
        with self.trace.batch_update():
            for trace, values in zip(self.trace.data, series, strict=False):
                trace.x, trace.y = positions, values.numpy()
            self.trace.data[4].x = np.array([1, len(positions)], np.float32)
            self.trace.data[4].y = np.array([expected, expected], np.float32)
            self.trace.data[4].name = f"{name} = {expected:.2f}"


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
    ]
