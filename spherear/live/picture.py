"""The settings of a sheet of images: drawn with the models, written as Python code, or stored in a PNG."""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from spherear.analysis.canvas import Canvas
from spherear.live.latest_wins import Cancellation
from spherear.live.parts.own_code import definitions
from spherear.models.config import Config, require
from spherear.models.files import parse_object
from spherear.models.heads.table import HeadKind
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sampling.pixels import PNG_KEY, tile
from spherear.sampling.settings import SamplingSettings
from spherear.sampling.small.together import steps_together

FRAME_SHARE = 0.25
"""Of the time of a drawing, at most this share goes into showing it: a large picture is shown less often."""
StepT = TypeVar("StepT")


def _pipeline_code(name: str) -> str:
    return f"pipeline = Pipeline.from_pretrained({name!r})"


@dataclass(frozen=True)
class Picture(Config):
    """One sheet per model, all from the same labels, seeds and settings.

    models: names of a panel's models; most are names for `Pipeline.from_pretrained`.
    seed: of the first image; image i uses seed + i.
    drawn: tokens of each image, if the drawing was stopped before its end.
    """

    models: tuple[str, ...]
    labels: tuple[int, ...]
    seed: int
    settings: SamplingSettings
    columns: int
    zoom: int = 6
    drawn: int | None = None

    def check(self) -> None:
        require(len(self.models) > 0 and len(self.labels) > 0, "a picture has models and labels; expected some")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; expected an integer from 0 to 2^63 - 1")
        require(min(self.columns, self.zoom) >= 1, f"columns, zoom are {self.columns}, {self.zoom}; expected 1 or more")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Picture":
        """The inverse of `to_dict`. Invalid values: ValueError or TypeError."""
        missing = {f.name for f in fields(cls) if f.default is MISSING} - values.keys()
        require(not missing, f"a picture lacks {sorted(missing)}; expected all of {[f.name for f in fields(cls)]}")
        settings = values["settings"]
        require(isinstance(settings, dict), f"settings are {settings!r}; expected a JSON object")
        return super().from_dict({**values, "settings": SamplingSettings.from_dict(settings)})

    def code(
        self, pipeline: Callable[[str], str] = _pipeline_code, head: Callable[[str], HeadKind] | None = None
    ) -> str:
        """Python code that draws and saves the same images. pipeline: the line that makes a pipeline, from its name.

        head: the kind of head of a model, from its name; one that takes another solver has settings of its own.
        A schedule, solver or spacing of the user's own is imported or defined first.
        """
        lines = ["from spherear import Pipeline, SamplingSettings, save_png, tile"]
        lines += [*definitions(self.settings), ""]
        shown = None
        for number, name in enumerate(self.models, 1):
            settings = self.settings if head is None else self.settings.fitting(head(name))
            if settings != shown:
                lines.append(f"settings = {_settings_code(settings)}")
                shown = settings
            lines += [
                pipeline(name),
                f"images = pipeline.sample({_labels_code(self.labels)}, settings, seeds={self.seed})",
                f"save_png('picture-{number}.png', tile(images, columns={self.columns}), zoom={self.zoom})",
            ]
        return "\n".join(lines)


def _settings_code(settings: SamplingSettings) -> str:
    """A constructor call with the fields that differ from their defaults."""
    changed = ((f.name, getattr(settings, f.name)) for f in fields(settings) if getattr(settings, f.name) != f.default)
    return f"SamplingSettings({', '.join(f'{name}={value!r}' for name, value in changed)})"


def _labels_code(labels: tuple[int, ...]) -> str:
    return f"[{labels[0]}] * {len(labels)}" if len(set(labels)) == 1 else str(list(labels))


def paint(picture: Picture, pipeline: Callable[[str], Pipeline] = cached_pipeline) -> Iterator[list[Canvas]]:
    """Draw with all models in parallel; yields one canvas per model, first empty, then after every token.

    A model whose head cannot use the picture's solver takes its own (`SamplingSettings.fitting`).
    pipeline: finds a model by its name.
    """
    pipelines = [pipeline(name) for name in picture.models]
    labels = torch.tensor(picture.labels)
    settings = [picture.settings.fitting(p.ar.config.head_kind) for p in pipelines]
    counts = {p.ar.config.tokens for p in pipelines}
    require(len(counts) == 1, f"the models draw {sorted(counts)} tokens; expected as many each")
    canvases = [Canvas.empty(p, len(labels)) for p in pipelines]
    yield canvases
    for token_steps in steps_together(pipelines, labels, settings, picture.seed):
        canvases = [canvas.extended(step) for canvas, step in zip(canvases, token_steps, strict=True)]
        yield canvases


def shown(
    steps: Iterable[StepT],
    canvas: Callable[[StepT], Canvas],
    cancellation: Cancellation,
    interval: float,
    first: int = 1,
) -> Iterator[tuple[StepT, bool]]:
    """The steps of a drawing to show, and whether it was stopped: after token `first`, then every `interval` seconds.

    What is slow to show is shown less often: it takes `FRAME_SHARE` of the time, the first and the last one apart. The
    last step is always among them, unless it is stale. canvas: of a step.
    """
    last, pause = time.perf_counter(), interval
    for step in steps:
        drawn, over = canvas(step).drawn, cancellation.over
        due = (drawn == first and pause == interval) or (drawn > 0 and time.perf_counter() - last >= pause)
        if over or due or canvas(step).done:
            if cancellation.stale:
                return
            began = time.perf_counter()
            yield step, over
            last = time.perf_counter()
            pause = max(interval, (last - began) * (1 - FRAME_SHARE) / FRAME_SHARE)
        if over:
            return


def progress(canvas: Canvas, stopped: bool, seconds: float) -> str:
    """A line of text on a partial or finished drawing."""
    state = "done" if canvas.done else ("stopped" if stopped else "drawing")
    return f"{state}: token {canvas.drawn} of {canvas.tokens.shape[1]}, {seconds:.2f} s"


def sheet(images: Float[Tensor, "n 3 size size"], columns: int, zoom: int) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels that `save_png` writes: images in `columns` columns, each pixel enlarged to `zoom` x `zoom`."""
    return tile(images, columns).numpy().repeat(zoom, axis=0).repeat(zoom, axis=1)


def png_bytes(pixels: UInt8[np.ndarray, "height width 3"], picture: Picture | None = None) -> bytes:
    """Pixels as PNG, with the settings of `picture` as metadata if given."""
    metadata = PngImagePlugin.PngInfo()
    if picture is not None:
        metadata.add_text(PNG_KEY, json.dumps(picture.to_dict()))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3, pnginfo=metadata)
    return file.getvalue()


def read_picture(png: bytes) -> Picture:
    """The settings stored in a PNG. No PNG, or no valid settings: ValueError."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            text = image.info.get(PNG_KEY)
        require(text is not None, "this PNG has no settings inside; expected one that a panel saved")
        return Picture.from_dict(parse_object(str(text), "the text inside this PNG"))
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"the file holds no settings ({error}); expected a PNG that a panel saved") from error
