"""What becomes of an error: put one into a token by hand, and follow it into later tokens and into pixels.

Knows: the projection handed to a decode, through which every token passes, in order.
Does not know: how tokens are drawn, or pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import one_of, require
from spherear.sampling.decode import Projection, decode
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings, seeded_noise
from spherear.sphere.geometry import project, split

Perturbation = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class ErrorGrowth:
    """What becomes of a perturbation of token `position`: root mean square change over the batch.

    kind: radial, tangential or turning.  size: length of the perturbation.
    latents: |change of the token handed on| by position, 0 before `position`.
    pixels: change of a pixel of the image.
    """

    kind: str
    position: int
    size: float
    projected: bool
    latents: Float[Tensor, " tokens"]
    pixels: float


def radial(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size u: along the token. A projection removes it exactly, to all orders."""
    return size * u


def tangential(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size v: across the token."""
    return size * v


def turning(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size (u cos size + v sin size): along the token to first order, turning away from it as it grows.

    What a projection leaves of it is of second order.
    """
    return size * (math.cos(size) * u + math.sin(size) * v)


KINDS: dict[str, Perturbation] = {"radial": radial, "tangential": tangential, "turning": turning}


def directions(z: Float[Tensor, "rows dim"], seed: int) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
    """u = z/|z|, and a unit vector across it that depends on the seed and on u alone."""
    generator = torch.Generator().manual_seed(seed)
    aside = torch.randn(z.shape[-1], generator=generator, dtype=torch.float64).to(z)
    _, across = split(aside.expand_as(z), z)
    return project(z), project(across)


def perturbed(inner: Projection, position: int, kind: str, size: float, seed: int = 0) -> Projection:
    """`inner`, but token number `position` is moved by a perturbation of length `size` before it.

    kind: radial, tangential or turning. A projection for one decode: it counts the tokens that pass.
    """
    one_of("kind", kind, KINDS)
    require(position >= 0 and size >= 0, f"position and size are {position} and {size}; expected 0 or more")
    passed = 0

    def moved(raw: Tensor) -> Tensor:
        nonlocal passed
        here, passed = passed == position, passed + 1
        return inner(raw + KINDS[kind](*directions(raw, seed), size) if here else raw)

    return moved


@torch.no_grad()
def error_growth(
    pipeline: Pipeline,
    labels: Sequence[int],
    settings: SamplingSettings,
    seeds: Sequence[int],
    position: int,
    kind: str,
    size: float,
    projected: bool = True,
) -> ErrorGrowth:
    """Decode twice from the same noise, with and without the perturbation of token `position`; compare.

    projected: whether tokens are put on the sphere before they are fed back and decoded. The models' own
    precision is kept: small sizes want float64 ones. A position beyond the last: ValueError.
    """
    tokens = pipeline.ar.config.tokens
    require(position < tokens, f"position is {position}; expected below {tokens}")
    inner: Projection = pipeline.vae.project if projected else lambda z: z
    rows = torch.as_tensor(labels)

    def draw(projection: Projection) -> tuple[Tensor, Tensor]:
        steps = decode(pipeline.ar, rows, settings, seeded_noise(seeds), projection)
        z = torch.stack([step.token for step in steps], dim=1)  # (batch, tokens, dim)
        return z, pipeline.vae.decode(z)

    before, after = draw(inner), draw(perturbed(inner, position, kind, size))
    change, pixels = (new.double() - old.double() for old, new in zip(before, after, strict=True))
    latents = change.square().sum(dim=-1).mean(dim=0).sqrt()  # (tokens,)
    return ErrorGrowth(kind, position, size, projected, latents, float(pixels.square().mean().sqrt()))


def growth_slope(sizes: Sequence[float], changes: Sequence[float]) -> float:
    """Least-squares slope of log change over log size: the order to which a change follows a perturbation.

    Two sizes or more, all above 0, as are the changes: else ValueError.
    """
    require(
        len(sizes) == len(changes) >= 2 and min(*sizes, *changes) > 0,
        f"sizes are {list(sizes)} and changes {list(changes)}; expected two or more each, all above 0",
    )
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, changes))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())
