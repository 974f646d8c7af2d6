"""Notebook outputs: figures and sheets of images as PNG, tables, interactive figures.

Every picture has a text description, for screen readers and for plain-text output.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from spherear.console import markdown_table
from spherear.models.config import require
from spherear.sampling.pixels import tile

PNG = "image/png"
PLOTLY = "application/vnd.plotly.v1+json"
MARKDOWN = "text/markdown"
DPI = 72

Bundle = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class NotebookOutput:
    """One output in several formats, as stored in a notebook. text: a description for screen readers.

    still: a picture of a live panel, which the panel hides where it is shown in the same cell.
    size: width and height of the picture on the page, in pixels; None: as many as it has.
    """

    text: str
    formats: Mapping[str, Any]
    still: bool = False
    size: tuple[int, int] | None = None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> Bundle:
        data = {**self.formats, "text/plain": self.text}
        mark = {"needs_background": "light"} if self.still else {}  # becomes a class of the picture in JupyterLab
        size = {} if self.size is None else dict(zip(("width", "height"), self.size, strict=True))
        return data, {PNG: {"alt": self.text, **size}, **mark} if PNG in data else {}

    def __repr__(self) -> str:
        return self.text


def picture(figure: Figure, text: str, fine: int = 2) -> NotebookOutput:
    """A matplotlib figure as PNG, described by `text`.

    fine: pixels of the PNG per pixel of the page, for sharp screens. At 1 all colours are kept, for sheets of colour
    pictures; above, the PNG has a palette of 256 and a third of the bytes. No text, or fine below 1: ValueError.
    """
    require(bool(text.strip()), "text is empty; expected a description of the figure")
    require(fine >= 1, f"fine is {fine}; expected at least 1")
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=fine * DPI)
    with Image.open(drawn) as image:
        pixels = image.convert("RGB")
    small = pixels if fine == 1 else pixels.quantize(dither=Image.Dither.NONE)
    small.save(written, format="PNG", optimize=True)
    return NotebookOutput(text, {PNG: _base64(written.getvalue())}, size=(pixels.width // fine, pixels.height // fine))


def sheet(images: Float[Tensor, "n 3 size size"], columns: int, text: str, zoom: int = 3) -> NotebookOutput:
    """Images in rows of `columns`; every pixel is drawn `zoom` pixels wide."""
    require(zoom >= 1 and bool(text.strip()), f"zoom is {zoom} and text {text!r}; expected at least 1 and some text")
    pixels = Image.fromarray(tile(images, columns).numpy())
    size = (pixels.width * zoom, pixels.height * zoom)
    buffer = io.BytesIO()
    pixels.resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG")
    return NotebookOutput(text, {PNG: _base64(buffer.getvalue())})


def still(panel: Any, text: str) -> NotebookOutput:
    """A live panel as PNG, because widgets are not saved in a file. Waits for the panel, and raises its error.

    In JupyterLab a panel that is shown in the same cell takes the place of the picture.
    """
    require(bool(text.strip()), "text is empty; expected a description of the panel")
    return NotebookOutput(text, {PNG: _base64(panel.snapshot().data)}, still=True)


def interactive(figure: go.Figure, text: str) -> NotebookOutput:
    """A plotly figure, shown below the picture that has the same content; `text` where plotly cannot run.

    It has no picture of its own: a viewer shows one format of an output, and the other would then be out of reach.
    """
    require(bool(text.strip()), "text is empty; expected a description of the figure")
    return NotebookOutput(text, {PLOTLY: json.loads(figure.to_json())})


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> NotebookOutput:
    """A table. Floats are rounded to three significant digits."""
    require(len(columns) > 0, "there are no columns; expected some")
    for row in rows:
        require(len(row) == len(columns), f"a row has {len(row)} cells; expected {len(columns)}, one per column")
    cells = [[_cell(value) for value in row] for row in rows]
    plain = "\n".join("  ".join(row) for row in ([*columns], *cells))
    return NotebookOutput(plain, {MARKDOWN: markdown_table(columns, cells)})


def markdown(text: str) -> NotebookOutput:
    """Markdown text as an output."""
    return NotebookOutput(text, {MARKDOWN: text})


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
