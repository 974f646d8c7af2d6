"""A loop of rising guidance: the same classes and seeds of several shipped families side by side, as a GIF or APNG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spherear.analysis.canvas import Canvas
from spherear.analysis.sight import RealTokens, real_tokens, sight
from spherear.models.config import one_of, require
from spherear.models.files import atomic_path
from spherear.models.pretrained import shipped_name
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sampling.pixels import tile
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.families import FAMILIES
from spherear.study.reference import held_out

DATA, REAL = "shapes", 100  # the data set of the models, and the real images that lengths are compared with
LETTERS, LINE, GAP = 7, 11, 4  # per zoom: pixels of letters, of a line of text, between sides
STILL = 1200  # milliseconds, at both ends of the loop
FORMATS = {".gif": "GIF", ".png": "PNG"}
"""Of a film, by the ending of its file: PNG is an animated one."""


@dataclass(frozen=True)
class Side:
    """Images of one family at one guidance scale.

    longer: mean length of the late tokens that were fed back, relative to real ones; 0 is equal.
    """

    family: str
    images: Float[Tensor, "n 3 size size"]
    longer: float


@cache
def model_of(family: str) -> tuple[Pipeline, RealTokens]:
    """The shipped colour model of a family, and real tokens as it encodes them. A family without one: ValueError."""
    name = shipped_name(family, DATA)
    require(name != family, f"family is {family!r}; expected one with a shipped model of {DATA}")
    pipeline = cached_pipeline(name)
    images, _ = held_out(DATA, pipeline.vae.config.image_size)
    return pipeline, real_tokens(pipeline.vae, images[:REAL])


def draw_side(family: str, labels: Sequence[int], seed: int, scale: float) -> Side:
    """One image per label; image i has the seed `seed + i`. ValueError for what `Pipeline.steps` refuses."""
    pipeline, real = model_of(family)
    canvas = Canvas.empty(pipeline, len(labels))
    for step in pipeline.steps(labels, SamplingSettings.named("balanced", guidance_scale=scale), seed):
        canvas = canvas.extended(step)
    return Side(family, canvas.images(), sight(canvas, torch.tensor(labels), real).handed_on)


def frame(sides: Sequence[Side], scale: float, largest: float, columns: int = 5, zoom: int = 3) -> Image.Image:
    """The sides beside each other, each under its name, with the guidance above, also as a bar, and lengths below.

    largest: the guidance of a full bar.  zoom: pixels of the frame per pixel of an image, at least 1 (ValueError).
    """
    require(zoom >= 1, f"zoom is {zoom}; expected at least 1")
    line, gap = LINE * zoom, GAP * zoom
    sheets = [Image.fromarray(tile(side.images, columns).numpy()) for side in sides]
    width, height = sheets[0].width * zoom, sheets[0].height * zoom
    whole = Image.new("RGB", (len(sides) * (width + gap) - gap, height + 3 * line), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=LETTERS * zoom)
    pen.text((0, 0), f"guidance {scale:g}", fill="black", font=font)
    begin = font.getlength("guidance 00.0 ")
    pen.rectangle((begin, gap / 2, begin + (whole.width - begin) * scale / largest, line - gap), fill="black")
    for place, (side, sheet) in enumerate(zip(sides, sheets, strict=True)):
        left, family = place * (width + gap), FAMILIES[side.family]
        pen.text((left, line), family.label, fill=family.color, font=font)
        whole.paste(sheet.resize((width, height), Image.Resampling.NEAREST), (left, 2 * line))
        pen.text((left, 2 * line + height), f"late tokens fed back: {words(side)}", fill=family.color, font=font)
    return whole


def words(side: Side) -> str:
    """How long the tokens of a side are, in words."""
    if round(100 * side.longer) == 0:
        return "right length"
    return f"{abs(side.longer):.0%} too {'long' if side.longer > 0 else 'short'}"


def check_path(path: Path) -> None:
    """ValueError for a file that is no film by its ending."""
    one_of("the ending of a film", path.suffix, FORMATS)


def save_film(path: Path, frames: Iterable[Image.Image], pause: int = 350) -> None:
    """Write frames of rising guidance as an endless loop, atomically: from the last one down to the first, and back.

    The still picture that a reader sees first is thus that of the strongest guidance. pause: milliseconds per frame, at
    least 20, below which browsers slow down (ValueError, as for another ending or fewer than two frames).
    """
    check_path(path)
    require(pause >= 20, f"pause is {pause}; expected at least 20 milliseconds")
    rising = [image.quantize(dither=Image.Dither.NONE) for image in frames]
    require(len(rising) >= 2, f"there are {len(rising)} frames; expected at least 2")
    first, *others = [*reversed(rising), *rising[1:-1]]
    pauses = [STILL if image is rising[0] or image is rising[-1] else pause for image in (first, *others)]
    with atomic_path(path) as part:
        first.save(part, FORMATS[path.suffix], save_all=True, append_images=others, duration=pauses, loop=0)
