"""One model's side of the guidance panel: its images, and the length of their tokens by position.

Knows: widgets to be put up.  Does not know: controls, or how a picture is drawn (`lab.picture`).
"""

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from spherear.lab.heat import heat_over
from spherear.lab.panels import parts
from spherear.lab.picture import Canvas, Picture, png_bytes, sheet, usual_length
from spherear.lab.style import FAMILIES, GREY


@dataclass(frozen=True)
class Asked:
    """A picture, and whether lengths are laid over it."""

    picture: Picture
    heat: bool


class Side(widgets.VBox):
    """One model's images, the lengths of their tokens by position below, and both in numbers."""

    def __init__(self, place: int) -> None:
        self.title = parts.line(f"title-{place}")
        self.image = parts.picture(f"grid-{place}")
        self.norms = parts.line(f"norms-{place}")
        self.trace = parts.live_figure(f"trace-{place}", _traces(), "token", "length")
        self.pixels: np.ndarray = np.zeros((1, 1, 3), np.uint8)
        layout = widgets.Layout(width="max(405px, 30vw)", max_width="100%", overflow="hidden")
        super().__init__([self.title, self.image, self.norms, self.trace], layout=layout)

    def show(self, canvas: Canvas, asked: Asked, family: str, trace: bool = True) -> None:
        """Put up where a drawing stands. trace: the lengths by position too, which take a browser longest."""
        picture = asked.picture
        self.pixels = pixels = sheet(canvas.images(), picture.columns, picture.zoom)
        usual, (raw, token) = usual_length(canvas.pipeline), canvas.lengths()
        if asked.heat:
            pixels = heat_over(pixels, raw, usual, picture.columns, picture.zoom)
        self.image.value = png_bytes(pixels)
        self.title.value = f"<b>{family}</b>"
        name = "R" if canvas.pipeline.vae.bottleneck.radius else "√d"
        self.norms.value = f"handed on: {_span(token)} · raw: {_span(raw)} · {name} = {usual:.3f}"
        if trace:
            self._show_trace(raw, token, usual, name)

    def _show_trace(self, raw: Tensor, token: Tensor, usual: float, name: str) -> None:
        places = np.arange(1, raw.shape[1] + 1, dtype=np.int32)
        series = (raw.amin(0), raw.amax(0), raw.mean(0), token.mean(0))
        with self.trace.batch_update():
            for trace, values in zip(self.trace.data, series, strict=False):
                trace.x, trace.y = places, values.numpy()
            self.trace.data[4].x = np.array([1, len(places)], np.float32)
            self.trace.data[4].y = np.array([usual, usual], np.float32)
            self.trace.data[4].name = f"{name} = {usual:.2f}"


def _span(lengths: Any) -> str:
    drawn = lengths[lengths.isfinite()]
    return f"{float(drawn.min()):.3f} to {float(drawn.max()):.3f}" if len(drawn) else "none yet"


def _traces() -> list[go.Scatter]:
    color = FAMILIES["power_spherical"].color
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    return [
        go.Scatter(**edge, showlegend=False),
        go.Scatter(**edge, fill="tonexty", fillcolor="rgba(213,94,0,0.2)", name="raw, least to most"),
        go.Scatter(mode="lines+markers", name="raw, mean", line={"color": FAMILIES["gaussian"].color}),
        go.Scatter(
            mode="markers",
            name="handed on",
            marker={"symbol": "square-open", "size": 10, "color": color, "line_width": 2},
        ),
        go.Scatter(mode="lines", name="usual", line={"color": GREY, "dash": "dash", "width": 3}),
    ]
