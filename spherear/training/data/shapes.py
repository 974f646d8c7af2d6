"""Procedural images of ten classes, five shapes times two layouts, by index.

An index seeds its own counter-based stream, so an image is the same on every machine and in every batch.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.config import require

SHAPES = ("disc", "square", "triangle", "star", "ring")
LAYOUTS = ("one", "two")
CLASSES = tuple(f"{layout} {shape}" for layout in LAYOUTS for shape in SHAPES)

KEY = 0x5EED_5A9E5  # of the streams; no other random numbers of the project use it
NUMBERS = 20  # random numbers per image


def render(
    indices: Int[Tensor, " n"], size: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]:
    """Images in [-1, 1] on `device`, and labels, which are index modulo 10; two devices differ by rounding.

    Each image has one large or two smaller copies of its shape, at a random position, size, angle and colour, on a
    smooth two-colour background that is always darker or lighter than the shapes. Negative indices: ValueError.
    """
    require(bool((indices >= 0).all()), f"indices go down to {int(indices.min())}; expected none below 0")
    labels = indices % len(CLASSES)
    u = _uniform(indices).to(device)  # (n, NUMBERS)
    inside = _cover(labels, u, size)[:, None]  # (n, 1, size, size), 1 inside the shapes
    return 2 * torch.lerp(_background(u, size), _colour(u)[:, :, None, None], inside) - 1, labels


def _uniform(indices: Tensor) -> Float[Tensor, "n numbers"]:
    streams = (np.random.Generator(np.random.Philox(key=[KEY, i])) for i in indices.tolist())
    return torch.from_numpy(np.stack([stream.random(NUMBERS, dtype=np.float32) for stream in streams]))


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _hue(hue: Tensor, saturation: Tensor, value: Tensor) -> Float[Tensor, "n 3"]:
    """HSV to RGB, hue in turns: value (1 - saturation clip(min(k, 4 - k), 0, 1)) per channel."""
    k = (torch.tensor([5.0, 3.0, 1.0], device=hue.device) + 6 * hue[:, None]) % 6
    dip = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[:, None] * (1 - saturation[:, None] * dip)


def _light(u: Tensor) -> Tensor:
    """Whether the shapes are brighter than the background."""
    return u[:, 0] < 0.5


def _colour(u: Tensor) -> Float[Tensor, "n 3"]:
    value = torch.where(_light(u), _between(u[:, 1], 0.85, 1.0), _between(u[:, 1], 0.25, 0.45))
    return _hue(u[:, 2], _between(u[:, 3], 0.6, 1.0), value)


def _background(u: Tensor, size: int) -> Float[Tensor, "n 3 size size"]:
    """A straight gradient between two muted colours."""
    low = torch.where(_light(u), 0.05, 0.75)
    ends = [_hue(u[:, i], 0.4 * u[:, i + 1], low + 0.2 * u[:, i + 2]) for i in (4, 7)]  # 2 x (n, 3)
    y, x = _grid(size, u.device)
    angle = 2 * math.pi * u[:, 10, None, None]
    weight = (0.5 + (x * angle.cos() + y * angle.sin()) / (2 * math.sqrt(2)))[:, None]  # (n, 1, size, size)
    return torch.lerp(ends[0][:, :, None, None], ends[1][:, :, None, None], weight)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres, y and x, in [-1, 1]."""
    line = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * 2 / size - 1
    return line[:, None], line[None, :]


def _cover(labels: Tensor, u: Tensor, size: int) -> Float[Tensor, "n size size"]:
    """The share of each pixel inside the shapes, by signed distance."""
    two = (labels >= len(SHAPES)).to(u.device)
    radius = torch.where(two, _between(u[:, 11], 0.26, 0.38), _between(u[:, 11], 0.5, 0.78))
    room = 0.95 - radius
    single = _between(u[:, 12:14], -1.0, 1.0) * room[:, None]  # one copy: anywhere it fits
    axis = 2 * math.pi * u[:, 14]
    offset = torch.stack((axis.cos(), axis.sin()), dim=1) * _between(u[:, 15], 1.2, 1.4)[:, None] * radius[:, None]
    shift = _between(u[:, 12:14], -1.0, 1.0) * (room[:, None] - offset.abs()).clamp(min=0)
    centres = torch.where(two[:, None], shift + offset, single), shift - offset
    distances = [
        _distance(labels % len(SHAPES), centre, radius, u[:, 16 + i], size) for i, centre in enumerate(centres)
    ]
    both = torch.where(two[:, None, None], torch.minimum(*distances), distances[0])
    return (0.5 - both * size / 2).clamp(0, 1)  # a pixel is 2 / size wide


def _distance(shape: Tensor, centre: Tensor, radius: Tensor, turn: Tensor, size: int) -> Float[Tensor, "n size size"]:
    """Signed distance of every pixel to the outline of one copy, negative inside."""
    y, x = _grid(size, centre.device)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    angle = 2 * math.pi * turn[:, None, None]
    px, py = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    r = radius[:, None, None]
    out = torch.empty_like(px)
    for i, outline in enumerate(OUTLINES):
        rows = torch.nonzero(shape == i)[:, 0].to(centre.device)  # of a tensor that is on the CPU: nothing waits
        out[rows] = outline(px[rows], py[rows], r[rows])
    return out


def _disc(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9 * r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.72 * r


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.72 * r).abs() - 0.22 * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Largest distance beyond the three sides of a regular triangle of circumradius r."""
    sides = [x * math.sin(a) - y * math.cos(a) for a in (math.pi / 3, math.pi, -math.pi / 3)]
    return torch.maximum(torch.maximum(sides[0], sides[1]), sides[2]) - 0.5 * r


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Distance to the side of a five-pointed star in the folded wedge of half a point."""
    wedge = math.pi / 5
    angle = torch.atan2(x, y)
    folded = ((angle + wedge) % (2 * wedge) - wedge).abs()
    length = torch.hypot(x, y)
    px, py = length * folded.sin(), length * folded.cos()  # the tip at (0, r), the notch at `wedge`
    notch = 0.45
    ex, ey = notch * math.sin(wedge), notch * math.cos(wedge) - 1  # from tip to notch, in units of r
    norm = math.hypot(ex, ey)
    return (px * -ey + (py - r) * ex) / norm


OUTLINES: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (_disc, _square, _triangle, _star, _ring)
