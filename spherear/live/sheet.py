"""A sheet of images by what it is made of: models, labels, a seed and settings; drawn, as Python, or inside a PNG."""

import io
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from spherear.analysis.canvas import Canvas
from spherear.models.config import Config, require
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.pixels import tile
from spherear.sampling.settings import SamplingSettings

PNG_KEY = "spherear"


@dataclass(frozen=True)
class Picture(Config):
    """One sheet per model, all from the same labels, seeds and settings.

    models: names for `Pipeline.from_pretrained`.  seed: of the first image; the others follow.
    """

    models: tuple[str, ...]
    labels: tuple[int, ...]
    seed: int
    settings: SamplingSettings
    columns: int
    zoom: int = 6

    def check(self) -> None:
        require(len(self.models) > 0 and len(self.labels) > 0, "a picture has models and labels; expected some")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; expected an integer from 0 to 2^63 - 1")
        require(min(self.columns, self.zoom) >= 1, f"columns, zoom are {self.columns}, {self.zoom}; expected 1 or more")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Picture":
        """The inverse of `to_dict`. Anything else: ValueError or TypeError."""
        absent = {f.name for f in fields(cls) if f.default is MISSING} - values.keys()
        require(not absent, f"a picture lacks {sorted(absent)}; expected all of {[f.name for f in fields(cls)]}")
        settings = values["settings"]
        require(isinstance(settings, dict), f"settings are {settings!r}; expected a JSON object")
        return super().from_dict({**values, "settings": SamplingSettings.from_dict(settings)})

    def code(self) -> str:
        """Python that draws the same images and saves them."""
        lines = [
            "from spherear import Pipeline, SamplingSettings, save_png, tile",
            "",
            f"settings = {_settings_code(self.settings)}",
        ]
        for number, name in enumerate(self.models, 1):
            lines += [
                f"pipeline = Pipeline.from_pretrained({name!r})",
                f"images = pipeline.sample({_labels_code(self.labels)}, settings, seeds={self.seed})",
                f"save_png('picture-{number}.png', tile(images, columns={self.columns}), zoom={self.zoom})",
            ]
        return "\n".join(lines)


def _settings_code(settings: SamplingSettings) -> str:
    """The call with what differs from the defaults."""
    given = ((f.name, getattr(settings, f.name)) for f in fields(settings) if getattr(settings, f.name) != f.default)
    return f"SamplingSettings({', '.join(f'{name}={value!r}' for name, value in given)})"


def _labels_code(labels: tuple[int, ...]) -> str:
    return f"[{labels[0]}] * {len(labels)}" if len(set(labels)) == 1 else str(list(labels))


def paint(picture: Picture) -> Iterator[list[Canvas]]:
    """Draw with all models side by side: one canvas per model, empty first, then one token more each time."""
    pipelines = [cached_pipeline(name) for name in picture.models]
    labels = torch.tensor(picture.labels)
    steps = [p.steps(labels, picture.settings, picture.seed) for p in pipelines]
    counts = {p.ar.config.tokens for p in pipelines}
    require(len(counts) == 1, f"the models draw {sorted(counts)} tokens; expected as many each")
    canvases = [Canvas.empty(p, len(labels)) for p in pipelines]
    yield canvases
    for newest in zip(*steps, strict=True):
        canvases = [canvas.extended(step) for canvas, step in zip(canvases, newest, strict=True)]
        yield canvases


def sheet(images: Float[Tensor, "n 3 size size"], columns: int, zoom: int) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels that `save_png` writes: images in rows, every pixel `zoom` pixels wide."""
    return tile(images, columns).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)


def png_bytes(pixels: UInt8[np.ndarray, "height width 3"], picture: Picture | None = None) -> bytes:
    """A PNG, with `picture` inside where it is given."""
    facts = PngImagePlugin.PngInfo()
    if picture is not None:
        facts.add_text(PNG_KEY, json.dumps(picture.to_dict()))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3, pnginfo=facts)
    return file.getvalue()


def read_picture(png: bytes) -> Picture:
    """The picture inside a PNG. A PNG without one: ValueError."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            text = image.info.get(PNG_KEY)
        require(text is not None, "this PNG has no settings inside; expected one that a panel saved")
        values = json.loads(str(text))
        require(isinstance(values, dict), f"the settings inside are {values!r}; expected a JSON object")
        return Picture.from_dict(values)
    except (OSError, SyntaxError, TypeError, json.JSONDecodeError, Image.DecompressionBombError) as error:
        raise ValueError(f"the file holds no settings ({error}); expected a PNG that a panel saved") from error


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3 ... that does not exist: nothing is overwritten."""
    tries = (path.with_stem(f"{path.stem}-{number}") if number > 1 else path for number in range(1, 10_000))
    return next(candidate for candidate in tries if not candidate.exists())
