"""A sheet of images as what it was made of: models, labels, a seed and settings; drawn token by token.

Knows: how to draw it, to write it as Python, and to keep it inside a PNG.  Does not know: controls or figures.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from spherear.models.config import Config, require
from spherear.models.pretrained import shipped
from spherear.sampling.decode import Step
from spherear.sampling.pipeline import Pipeline, shown
from spherear.sampling.pixels import tile
from spherear.sampling.settings import SamplingSettings

PNG_KEY = "spherear"


@cache
def loaded(name: str) -> Pipeline:
    """A pipeline by its name, loaded once."""
    return Pipeline.from_pretrained(name)


def families_of(preset: str) -> list[str]:
    """The families of a preset whose models ship."""
    return [name.removeprefix(f"{preset}-") for name in shipped() if name.startswith(f"{preset}-")]


def model_name(family: str, preset: str) -> str:
    """The shipped model of a family; any other name is taken as it is: a folder, or a repository of the hub."""
    return f"{preset}-{family}" if family in families_of(preset) else family


@dataclass(frozen=True)
class Picture(Config):
    """One sheet a model, all from the same labels, seeds and settings.

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
        """The inverse of `to_dict`. What is no picture: ValueError or TypeError."""
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


@dataclass(frozen=True)
class Canvas:
    """Where a drawing stands: the first `drawn` tokens of every image of one model; the others are 0."""

    pipeline: Pipeline
    drawn: int
    raw: Float[Tensor, "batch tokens dim"]
    tokens: Float[Tensor, "batch tokens dim"]

    def extended(self, step: Step) -> "Canvas":
        """With one token more; this one stays as it is."""
        raw, tokens = self.raw.clone(), self.tokens.clone()
        raw[:, step.index], tokens[:, step.index] = step.raw, step.token
        return Canvas(self.pipeline, step.index + 1, raw, tokens)

    @property
    def done(self) -> bool:
        """Whether every token is there."""
        return self.drawn == self.tokens.shape[1]

    def images(self) -> Float[Tensor, "batch 3 size size"]:
        """Decoded, and grey where nothing is drawn yet."""
        images = self.pipeline.images(self.tokens)
        config = self.pipeline.vae.config
        return images if self.done else images * shown(self.drawn, config.grid, config.patch, images.device)

    def lengths(self) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """|raw| and |token|: before and after the projection; nan where nothing is drawn yet."""
        raw, token = (torch.linalg.vector_norm(z, dim=-1).float().cpu() for z in (self.raw, self.tokens))
        raw[:, self.drawn :] = token[:, self.drawn :] = math.nan
        return raw, token


def empty_canvas(pipeline: Pipeline, images: int) -> Canvas:
    """Nothing drawn yet."""
    nothing = torch.zeros(images, pipeline.ar.config.tokens, pipeline.ar.config.latent_dim)
    return Canvas(pipeline, 0, nothing, nothing)


def paint(picture: Picture) -> Iterator[list[Canvas]]:
    """Draw with all models side by side: a canvas a model, empty ones first, then one token more each time."""
    pipelines = [loaded(name) for name in picture.models]
    labels = torch.tensor(picture.labels)
    steps = [p.steps(labels, picture.settings, picture.seed) for p in pipelines]
    counts = {p.ar.config.tokens for p in pipelines}
    require(len(counts) == 1, f"the models draw {sorted(counts)} tokens; expected as many each")
    canvases = [empty_canvas(p, len(labels)) for p in pipelines]
    yield canvases
    for newest in zip(*steps, strict=True):
        canvases = [canvas.extended(step) for canvas, step in zip(canvases, newest, strict=True)]
        yield canvases


def usual_length(pipeline: Pipeline) -> float:
    """R where tokens have a radius; else sqrt(dim), the length of tokens whose numbers have variance 1."""
    bottleneck = pipeline.vae.bottleneck
    return float(bottleneck.radius or math.sqrt(bottleneck.dim))


def sheet(images: Float[Tensor, "n 3 size size"], columns: int, zoom: int) -> UInt8[np.ndarray, "height width 3"]:
    """As `save_png` writes it: images in rows, every pixel `zoom` pixels wide."""
    return tile(images, columns).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)


def png_bytes(pixels: UInt8[np.ndarray, "height width 3"], picture: Picture | None = None) -> bytes:
    """A PNG; with what it was made of inside, where `picture` is given."""
    facts = PngImagePlugin.PngInfo()
    if picture is not None:
        facts.add_text(PNG_KEY, json.dumps(picture.to_dict()))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3, pnginfo=facts)
    return file.getvalue()


def read_picture(png: bytes) -> Picture:
    """What the picture in a PNG was made of. Anything else: ValueError."""
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
