"""Overlay of token lengths on images: a colour and a signed percentage per patch."""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LONGER, SHORTER = ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2))  # orange and blue of the palette in `figures.style`
FULL = 0.25
"""Relative difference from the expected length at which the colour is strongest."""
LEGEND = "each patch: length of its raw token, in percent above (+, orange) or below (-, blue) the expected length"


def overlay_lengths(
    sheet: UInt8[np.ndarray, "height width 3"],
    lengths: Float[Tensor, "batch tokens"],
    expected: float,
    columns: int,
    zoom: int,
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of a sheet with every drawn patch tinted by length / expected - 1 and labelled in percent.

    lengths: nan for tokens not drawn yet. Small patches get no label.
    """
    batch, tokens = lengths.shape
    grid = round(tokens**0.5)
    step = (sheet.shape[1] - zoom) // columns  # an image and the gap beside it
    cell = (step - zoom) // grid
    out = sheet.copy()
    change = (lengths / expected - 1).numpy()
    for index in range(batch):
        top, left = (zoom + step * i for i in divmod(index, columns))
        for token in np.flatnonzero(np.isfinite(change[index])):
            row, column = divmod(int(token), grid)
            y, x = top + row * cell, left + column * cell
            patch = out[y : y + cell, x : x + cell]
            patch[:] = _tinted(patch, float(change[index, token]), cell)
    return out


def _tinted(patch: np.ndarray, change: float, cell: int) -> np.ndarray:
    opacity = 0.15 + 0.6 * min(1.0, abs(change) / FULL)
    color = np.array(LONGER if change >= 0 else SHORTER)
    mixed = ((1 - opacity) * patch + opacity * color).astype(np.uint8)
    if cell >= 18:
        mask = _number(max(-99, min(99, round(100 * change))), cell)
        mixed[mask[..., 0] > 0] = 0
        mixed[mask[..., 1] > 0] = 255
    return mixed


@cache
def _number(percent: int, cell: int) -> np.ndarray:
    """Masks of a signed number: its dark outline and its white glyphs, (cell, cell, 2)."""
    text = f"{percent:+d}" if percent else "0"
    font = ImageFont.load_default(size=max(8, round(cell * 0.48)))
    layers = []
    for edge in (2, 0):
        image = Image.new("L", (cell, cell))
        ImageDraw.Draw(image).text((cell / 2, cell / 2), text, fill=255, font=font, anchor="mm", stroke_width=edge)
        layers.append(np.asarray(image) > 110)
    return np.stack(layers, axis=-1)
