"""What becomes of an error: move one token by hand, and follow the change into later tokens and into pixels.

A decode passes every token through its projection, in order; the perturbation is added there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.analysis.canvas import Canvas
from spherear.models.config import Config, one_of, require
from spherear.sampling.decode import Projection, decode
from spherear.sampling.noise import seeded_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.geometry import project, split

Direction = Callable[[Tensor, Tensor, float], Tensor]


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


KINDS: dict[str, Direction] = {"radial": radial, "tangential": tangential, "turning": turning}


def directions(z: Float[Tensor, "rows dim"], seed: int) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
    """u = z/|z|, and a unit vector across it that depends on the seed and on u alone."""
    generator = torch.Generator().manual_seed(seed)
    aside = torch.randn(z.shape[-1], generator=generator, dtype=torch.float64).to(z)
    _, across = split(aside.expand_as(z), z)
    return project(z), project(across)


def perturbed(inner: Projection, position: int, kind: str, size: float, seed: int = 0) -> Projection:
    """`inner`, but token number `position` is moved by a perturbation of length `size` before it.

    kind: radial, tangential or turning. The result serves one decode: it counts the tokens that pass.
    """
    one_of("kind", kind, KINDS)
    require(position >= 0 and size >= 0, f"position and size are {position} and {size}; expected 0 or more")
    passed = 0

    def moved(raw: Tensor) -> Tensor:
        nonlocal passed
        here, passed = passed == position, passed + 1
        return inner(raw + KINDS[kind](*directions(raw, seed), size) if here else raw)

    return moved


@dataclass(frozen=True)
class Perturbation(Config):
    """Token `position` of every image is moved by `size`. kind: radial, tangential or turning.

    labels: of the images.  seed: of the first image; the others follow.
    """

    labels: tuple[int, ...]
    seed: int
    settings: SamplingSettings
    position: int
    kind: str
    size: float

    def check(self) -> None:
        one_of("kind", self.kind, KINDS)
        require(len(self.labels) > 0, "labels are empty; expected some")
        require(
            self.position >= 0 and 0 <= self.size < math.inf,
            f"position and size are {self.position} and {self.size}; expected 0 or more",
        )


@dataclass(frozen=True)
class PerturbedPair:
    """The same decode so far, without and with the perturbation. projected: whether tokens are put on the sphere."""

    projected: bool
    before: Canvas
    after: Canvas

    def change(self) -> Float[Tensor, " tokens"]:
        """Root mean square over images of |change of the token handed on|; nan where nothing is drawn yet."""
        moved = (self.after.tokens - self.before.tokens).double().square().sum(dim=-1).mean(dim=0).sqrt()
        moved[self.before.drawn :] = math.nan
        return moved.cpu()

    def pixels(self) -> float:
        """Root mean square change of a pixel of the images so far."""
        return float((self.after.images().double() - self.before.images().double()).square().mean().sqrt())


@dataclass(frozen=True)
class ErrorGrowth:
    """What a perturbation has become at the end of a decode: root mean square changes over images.

    latents: |change of the token handed on| by position, 0 before `position`.  pixels: change of a pixel.
    """

    kind: str
    position: int
    size: float
    projected: bool
    latents: Float[Tensor, " tokens"]
    pixels: float


def perturbed_decode(pipeline: Pipeline, perturbation: Perturbation, projected: bool = True) -> Iterator[PerturbedPair]:
    """Decode twice from the same noise, without and with the perturbation; an empty pair first, then token by token.

    projected: whether tokens are put on the sphere before they are fed back and decoded. The models' own precision is
    kept: small sizes need float64 models. A position beyond the last token: ValueError.
    """
    p, tokens = perturbation, pipeline.ar.config.tokens
    require(p.position < tokens, f"position is {p.position}; expected below {tokens}")
    return _perturbed_decode(pipeline, p, projected)


def _perturbed_decode(pipeline: Pipeline, p: Perturbation, projected: bool) -> Iterator[PerturbedPair]:
    inner: Projection = pipeline.vae.project if projected else lambda z: z
    labels, seeds = torch.tensor(p.labels), range(p.seed, p.seed + len(p.labels))
    projections = inner, perturbed(inner, p.position, p.kind, p.size)
    decodes = [decode(pipeline.ar, labels, p.settings, seeded_noise(seeds), projection) for projection in projections]
    before = after = Canvas.empty(pipeline, len(labels))
    yield PerturbedPair(projected, before, after)
    for steps in zip(*decodes, strict=True):
        before, after = before.extended(steps[0]), after.extended(steps[1])
        yield PerturbedPair(projected, before, after)


def error_growth(pipeline: Pipeline, perturbation: Perturbation, projected: bool = True) -> ErrorGrowth:
    """The end of `perturbed_decode`, as numbers."""
    *_, end = perturbed_decode(pipeline, perturbation, projected)
    p = perturbation
    return ErrorGrowth(p.kind, p.position, p.size, projected, end.change(), end.pixels())


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
