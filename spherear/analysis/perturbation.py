"""Error propagation: perturb one token, and measure the change of later tokens and of pixels.

A decode passes every token through its projection, in order; the perturbation is added just before.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.analysis.canvas import Canvas
from spherear.models.config import Config, one_of, require
from spherear.sampling.decode import Projection, branches_at, decode
from spherear.sampling.noise import seeded_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.geometry import project, split

Direction = Callable[[Tensor, Tensor, float], Tensor]


def radial(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size u: along the token. A projection removes it exactly."""
    return size * u


def tangential(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size v: perpendicular to the token."""
    return size * v


def turning(u: Tensor, v: Tensor, size: float) -> Tensor:
    """size (u cos size + v sin size): along the token to first order, turning away as `size` grows.

    After a projection, the change is of second order in `size`.
    """
    return size * (math.cos(size) * u + math.sin(size) * v)


KINDS: dict[str, Direction] = {"radial": radial, "tangential": tangential, "turning": turning}


def directions(z: Float[Tensor, "rows dim"], seed: int) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows dim"]]:
    """u = z/|z|, and a unit vector perpendicular to it that depends only on the seed and u."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(z.shape[-1], generator=generator, dtype=torch.float64).to(z)
    _, tangent = split(random.expand_as(z), z)
    return project(z), project(tangent)


def perturbed(
    inner: Projection, position: int, kind: str, size: float, seed: int = 0, first_calls: int = 1
) -> Projection:
    """The projection `inner`, with a perturbation of length `size` added to token `position` before it.

    kind: radial, tangential or turning. Use the result for one decode only: it counts its calls.
    first_calls: calls for token 0; `decode` makes one per guidance branch if both draw their own, see `branches_at`.
    """
    one_of("kind", kind, KINDS)
    require(position >= 0 and size >= 0, f"position and size are {position} and {size}; expected 0 or more")
    calls = 0

    def projection(raw: Tensor) -> Tensor:
        nonlocal calls
        index, calls = max(0, calls + 1 - first_calls), calls + 1
        return inner(raw + KINDS[kind](*directions(raw, seed), size) if index == position else raw)

    return projection


@dataclass(frozen=True)
class Perturbation(Config):
    """A perturbation of length `size` at token `position` of every image. kind: radial, tangential or turning.

    labels: one per image.  seed: of the first image; image i uses seed + i.
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
    """A partial decode without and with the perturbation. projected: whether tokens are projected onto the sphere."""

    projected: bool
    before: Canvas
    after: Canvas

    def change(self) -> Float[Tensor, " tokens"]:
        """Root mean square over images of |change of the token|, after projection; nan for tokens not drawn yet."""
        change = (self.after.tokens - self.before.tokens).double().square().sum(dim=-1).mean(dim=0).sqrt()
        change[self.before.drawn :] = math.nan
        return change.cpu()

    def pixels(self) -> float:
        """Root mean square change of a pixel of the partial images."""
        return float((self.after.images().double() - self.before.images().double()).square().mean().sqrt())


@dataclass(frozen=True)
class ErrorGrowth:
    """The effect of a perturbation at the end of a decode: root mean square changes over images.

    latents: |change of the token|, after projection, by position; 0 before `position`.  pixels: change of a pixel.
    """

    kind: str
    position: int
    size: float
    projected: bool
    latents: Float[Tensor, " tokens"]
    pixels: float


def perturbed_decode(pipeline: Pipeline, perturbation: Perturbation, projected: bool = True) -> Iterator[PerturbedPair]:
    """Decode twice from the same noise, without and with the perturbation; yields an empty pair, then one per token.

    projected: whether tokens are projected onto the sphere before they are fed back and decoded. Runs in the models'
    precision: small sizes need float64 models. A position beyond the last token: ValueError.
    """
    p, tokens = perturbation, pipeline.ar.config.tokens
    require(p.position < tokens, f"position is {p.position}; expected below {tokens}")
    return _perturbed_decode(pipeline, p, projected)


def _perturbed_decode(pipeline: Pipeline, p: Perturbation, projected: bool) -> Iterator[PerturbedPair]:
    inner: Projection = pipeline.vae.project if projected else lambda z: z
    labels, seeds = torch.tensor(p.labels), range(p.seed, p.seed + len(p.labels))
    first = branches_at(pipeline.ar, p.settings, 0)
    projections = inner, perturbed(inner, p.position, p.kind, p.size, first_calls=first)
    decodes = [decode(pipeline.ar, labels, p.settings, seeded_noise(seeds), projection) for projection in projections]
    before = after = Canvas.empty(pipeline, len(labels))
    yield PerturbedPair(projected, before, after)
    for steps in zip(*decodes, strict=True):
        before, after = before.extended(steps[0]), after.extended(steps[1])
        yield PerturbedPair(projected, before, after)


def error_growth(pipeline: Pipeline, perturbation: Perturbation, projected: bool = True) -> ErrorGrowth:
    """The changes at the end of `perturbed_decode`."""
    *_, last = perturbed_decode(pipeline, perturbation, projected)
    p = perturbation
    return ErrorGrowth(p.kind, p.position, p.size, projected, last.change(), last.pixels())


def growth_slope(sizes: Sequence[float], changes: Sequence[float]) -> float:
    """Least-squares slope of log change over log size: the order of the change in the size.

    Fewer than two sizes, or a size or change that is not above 0: ValueError.
    """
    require(
        len(sizes) == len(changes) >= 2 and min(*sizes, *changes) > 0,
        f"sizes are {list(sizes)} and changes {list(changes)}; expected two or more each, all above 0",
    )
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, changes))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())
