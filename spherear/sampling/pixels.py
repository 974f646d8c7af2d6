"""Image tensors to bytes: the published rounding, sheets of images, PNG files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from spherear.models.config import require
from spherear.models.files import atomic_path
from spherear.sphere.geometry import widen

PNG_KEY = "spherear"  # of the settings in a PNG


def to_uint8(images: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch height width 3"]:
    """clamp(127.5 x + 128, 0, 255), truncated: images in [-1, 1] as bytes, channels last.

    Half precision is widened first: it cannot hold all the values that are truncated.
    """
    return (127.5 * widen(images) + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def from_uint8(images: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Bytes to images in [-1, 1], channels first: the inverse of `to_uint8`, to half a byte."""
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5


def tile(images: Float[Tensor, "n 3 size size"], columns: int, gap: int = 1) -> UInt8[Tensor, "height width 3"]:
    """One sheet of all images, `columns` per row, `gap` white pixels apart, as bytes on the CPU."""
    require(len(images) > 0 and columns >= 1, f"{len(images)} images in {columns} columns; expected at least 1")
    rows = -(-len(images) // columns)
    step = images.shape[-1] + gap
    sheet = images.new_full((1, 3, rows * step + gap, columns * step + gap), 1.0)
    for i, image in enumerate(images):
        y, x = gap + i // columns * step, gap + i % columns * step
        sheet[0, :, y : y + image.shape[1], x : x + image.shape[2]] = image
    return to_uint8(sheet)[0].cpu()


def save_png(
    path: str | Path,
    sheet: UInt8[Tensor, "height width 3"],
    zoom: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a PNG atomically, enlarged by the factor `zoom`. settings: how it was drawn, stored in the file as JSON."""
    image, text = Image.fromarray(sheet.numpy()), PngImagePlugin.PngInfo()
    if settings is not None:
        text.add_text(PNG_KEY, json.dumps(settings))
    size = (image.width * zoom, image.height * zoom)
    with atomic_path(Path(path)) as part:
        image.resize(size, Image.Resampling.NEAREST).save(part, format="PNG", pnginfo=text)


def free_path(path: Path) -> Path:
    """The first of `path`, path-2, path-3, ... that does not exist."""
    candidates = (path.with_stem(f"{path.stem}-{number}") if number > 1 else path for number in range(1, 10_000))
    return next(candidate for candidate in candidates if not candidate.exists())
