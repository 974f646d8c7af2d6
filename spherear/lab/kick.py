"""A kick at one token, followed while the sequence goes on: the same decode with and without it.

Knows: the two decodes, with the projection or without.  Does not know: what a kick is
(`lab.perturbation`), or pictures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.lab.perturbation import KINDS, perturbed
from spherear.lab.picture import Canvas, empty_canvas
from spherear.models.config import Config, one_of, require
from spherear.sampling.decode import Projection, decode
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings, seeded_noise


@dataclass(frozen=True)
class Kick(Config):
    """Token `position` of every image is moved by `size`: kind radial, tangential or turning.

    seed: of the first image; the others follow.
    """

    model: str
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
class Pair:
    """The same decode so far, untouched and kicked. projected: whether tokens are put on the sphere."""

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
        return float((self.after.images() - self.before.images()).double().square().mean().sqrt())


def kicked(pipeline: Pipeline, kick: Kick) -> Iterator[tuple[Pair, Pair]]:
    """With the projection, and without: empty first, then one token more each time.

    A position beyond the last token: ValueError.
    """
    config = pipeline.ar.config
    require(kick.position < config.tokens, f"position is {kick.position}; expected below {config.tokens}")
    inner: list[Projection] = [pipeline.vae.project, lambda z: z]
    projections = [way for own in inner for way in (own, perturbed(own, kick.position, kick.kind, kick.size))]
    labels = torch.tensor(kick.labels)
    seeds = range(kick.seed, kick.seed + len(labels))
    decodes = [decode(pipeline.ar, labels, kick.settings, seeded_noise(seeds), way) for way in projections]
    canvases = [empty_canvas(pipeline, len(labels))] * 4
    yield _paired(canvases)
    for steps in zip(*decodes, strict=True):
        canvases = [canvas.extended(step) for canvas, step in zip(canvases, steps, strict=True)]
        yield _paired(canvases)


def _paired(canvases: list[Canvas]) -> tuple[Pair, Pair]:
    return Pair(True, canvases[0], canvases[1]), Pair(False, canvases[2], canvases[3])
