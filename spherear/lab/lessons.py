"""Numbers that the notebooks explain with and nothing else needs: cosines, variances, wrong lengths, ways of noise.

Knows: laws, tokens and pipelines.  Does not know: pictures, or what the notebooks say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.lab.cell import Reference, measure_prediction, measure_vae, real_latents
from spherear.lab.claims import usual
from spherear.lab.diagnostics import trace
from spherear.lab.grids import GRIDS, Variant
from spherear.lab.records import Record
from spherear.lab.ship import SEED, SHIPS
from spherear.models.config import require
from spherear.models.head import VelocityHead
from spherear.models.vae import VAE
from spherear.sampling.draw import guide
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings, seeded_noise
from spherear.sphere.geometry import log_sphere_area
from spherear.sphere.laws import AxialLaw
from spherear.training.data import load_data
from spherear.training.recipes import course


@dataclass(frozen=True)
class TokenVariances:
    """Variance of tokens over images. per_dim: averaged over positions, (dim,).  per_token: over dimensions."""

    per_dim: Float[Tensor, " dim"]
    per_token: Float[Tensor, " tokens"]

    @property
    def unevenness(self) -> float:
        """Largest over smallest variance of a dimension: 1 where all have one scale."""
        return float(self.per_dim.max() / self.per_dim.min())


@dataclass(frozen=True)
class WrongLength:
    """One image's tokens decoded after all were made `factor` times as long.

    images: (factors, 3, size, size).  errors: mean absolute difference from the image at factor 1, a factor each.
    """

    factors: tuple[float, ...]
    images: Float[Tensor, "factors 3 size size"]
    errors: list[float]


@dataclass(frozen=True)
class Refiled:
    """One number of a model that ships, measured anew, beside what its study filed."""

    family: str
    metric: str
    now: float
    filed: float

    @property
    def off(self) -> float:
        """Relative difference: half precision's rounding, if the model is the one it says it is."""
        return abs(self.now / self.filed - 1)


@dataclass(frozen=True)
class Ways:
    """Ways from noise to one token, one a seed. times: (points,).  points: (points, seeds, dim).  radius, or None."""

    times: Float[Tensor, " points"]
    points: Float[Tensor, "points seeds dim"]
    radius: float | None


def cosine_density(law: AxialLaw, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Density of t = mu . u: |S^{m-2}| (1 - t^2)^((m-3)/2) p(u), for a single law on the sphere in m dimensions."""
    mu = law.loc.double()
    aside = torch.zeros_like(mu)
    aside[int(mu.abs().argmin())] = 1.0
    across = aside - (aside @ mu) * mu
    u = t[:, None] * mu + (1 - t.square()).sqrt()[:, None] * across / across.norm()  # (n, m)
    ring = log_sphere_area(law.dim - 1) + (law.dim - 3) / 2 * torch.log1p(-t.square())
    return (ring + law.log_prob(u)).exp()


def token_variances(tokens: Float[Tensor, "images tokens dim"]) -> TokenVariances:
    """Variance of every number of every token over the images, averaged both ways. Fewer than two: ValueError."""
    require(len(tokens) >= 2, f"tokens are of {len(tokens)} images; expected at least 2")
    variance = tokens.double().var(dim=0)  # (tokens, dim)
    return TokenVariances(variance.mean(dim=0), variance.mean(dim=1))


@torch.no_grad()
def wrong_length(vae: VAE, image: Float[Tensor, "3 size size"], factors: Sequence[float]) -> WrongLength:
    """Encode an image, multiply its tokens by every factor, decode: what a decoder makes of a wrong length."""
    require(min(factors) > 0, f"factors are {list(factors)}; expected numbers above 0")
    tokens = vae.encode(image[None]).mode
    right = vae.decode(tokens)
    images = torch.cat([vae.decode(factor * tokens) for factor in factors])
    return WrongLength(tuple(factors), images, (images - right).abs().mean(dim=(1, 2, 3)).tolist())


def refiled(pipeline: Pipeline, family: str, records: Sequence[Record]) -> list[Refiled]:
    """Measure a shipped model's tokeniser and predictions as its study did, and set the records beside them."""
    (variant,) = (v for v in SHIPS["full"] if Variant.named(v).family == family)
    data = load_data(course("digits").data, pipeline.vae.config.image_size)
    latents, labels = real_latents(pipeline.vae, data, SEED)
    now = measure_vae(pipeline.vae, Reference.of(GRIDS["full"]), SEED)
    now |= measure_prediction(pipeline, latents, labels, SEED)
    filed = {r.metric: r.value for r in usual(records, variant=variant, seed=SEED, guidance_scale=1.0)}
    names = [name for name in ("kl", "reconstruction_l1", "radial_share") if name in now]
    return [Refiled(family, name, now[name], filed[name]) for name in names]


@torch.no_grad()
def ways(
    pipeline: Pipeline, label: int, position: int, seeds: Sequence[int], steps: int = 40, scale: float = 1.0
) -> Ways:
    """Euler's way from noise to token `position` of one image (seed 0 before that token), for many noises.

    scale: of guidance, at this token alone. A head without a velocity: TypeError. A position beyond: ValueError.
    """
    ar = pipeline.ar
    if not isinstance(ar.head, VelocityHead):
        raise TypeError(f"the head is a {type(ar.head).__name__}; expected a VelocityHead")
    require(0 <= position < ar.config.tokens, f"position is {position}; expected 0 to {ar.config.tokens - 1}")
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=steps)
    past = trace(pipeline.steps([label], settings)).tokens.repeat(2, 1, 1)
    condition = ar(past, torch.tensor([label, ar.null_label]))[:, position]  # (2, width)
    noise = seeded_noise(seeds)(position, (1, len(seeds), ar.config.latent_dim))
    times, head, points = settings.times(), ar.head, list[Tensor]()
    rows = condition.repeat_interleave(len(seeds), dim=0)

    def watched(x: Tensor, t: float) -> Tensor:
        points.append(x)
        return guide(head(x.repeat(2, 1), torch.full((len(rows),), t), rows), scale)

    end = settings.method.integrate(watched, noise, times)
    return Ways(torch.tensor(times), torch.stack([*points, end]), pipeline.vae.bottleneck.radius)
