"""Statistics of many tokens: lengths under guidance, variances, and the shape of three-dimensional tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.analysis.diagnostics import NormComparison, compare_norms
from spherear.models.config import require
from spherear.models.heads.categorical import CategoricalHead
from spherear.models.vae import VAE
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.training.data.dataset import ImageData
from spherear.training.run import keyed_generator


@torch.no_grad()
def real_latents(
    vae: VAE, data: ImageData, seed: int, limit: int = 2000
) -> tuple[Float[Tensor, "n tokens dim"], Int[Tensor, " n"]]:
    """Posterior samples of the first `limit` training images, and their labels: the same on any device."""
    device, generator = vae.quant_proj.weight.device, keyed_generator(seed, 1)
    images, labels = data.batch(torch.arange(min(limit, len(data))))
    chunks = [vae.draw(chunk.to(device), generator) for chunk in images.split(256)]
    return torch.cat(chunks), labels


@dataclass(frozen=True)
class CollapseRow:
    """Results of one family. norms: raw against real tokens, per guidance scale.  images: some samples per scale."""

    family: str
    scales: tuple[float, ...]
    norms: list[NormComparison]
    images: list[Float[Tensor, "n 3 size size"]]


def collapse_row(
    pipeline: Pipeline,
    latents: Float[Tensor, "n tokens dim"],
    scales: Sequence[float],
    images: int = 100,
    shown: int = 10,
    steps: int = 25,
    seed: int = 0,
) -> CollapseRow:
    """Draw `images` images at every guidance scale, with the same labels and seeds; return `shown` of them per scale.

    latents: real tokens of the same VAE.
    """
    labels = torch.arange(images) % pipeline.ar.config.num_classes
    traces = [trace(pipeline.steps(labels, SamplingSettings(s, steps=steps), seed)) for s in scales]
    return CollapseRow(
        pipeline.vae.config.bottleneck,
        tuple(scales),
        [compare_norms(t.raw.cpu(), latents.cpu()) for t in traces],
        [pipeline.images(t.tokens[:shown]).cpu() for t in traces],
    )


@dataclass(frozen=True)
class TokenLaws:
    """Tokens at `positions`, drawn by three models from the same seeds: (positions, n, 3) each.

    discrete: probabilities of the three codes, points of a simplex.  gaussian, sphere: the tokens.
    """

    positions: tuple[int, ...]
    discrete: Float[Tensor, "positions n 3"]
    gaussian: Float[Tensor, "positions n 3"]
    sphere: Float[Tensor, "positions n 3"]


def token_laws(
    discrete: Pipeline,
    gaussian: Pipeline,
    sphere: Pipeline,
    positions: Sequence[int],
    label: int,
    images: int = 200,
    steps: int = 25,
) -> TokenLaws:
    """Draw `images` images of one label with each model, unguided; return the tokens at `positions`.

    A model whose latent dimension (or number of codes) is not 3: ValueError.
    """
    codes = discrete.ar.config.codes
    require(codes == 3, f"the discrete model has {codes} codes; expected 3")
    for pipeline in (gaussian, sphere):
        dim = pipeline.ar.config.latent_dim
        require(dim == 3, f"tokens of {pipeline.vae.config.bottleneck} have {dim} numbers; expected 3")
    labels = torch.full((images,), label)
    settings = SamplingSettings(guidance_scale=1.0, steps=steps)
    clouds = [trace(p.steps(labels, settings)).tokens[:, list(positions)].transpose(0, 1) for p in (gaussian, sphere)]
    return TokenLaws(tuple(positions), _probabilities(discrete, labels, settings)[list(positions)], *clouds)


@torch.no_grad()
def _probabilities(pipeline: Pipeline, labels: Int[Tensor, " n"], settings: SamplingSettings) -> Tensor:
    """The probability of every code at every position of a decode: (tokens, n, codes)."""
    head = pipeline.ar.head
    assert isinstance(head, CategoricalHead)
    tokens = trace(pipeline.steps(labels, settings)).tokens
    return head(pipeline.ar(tokens, labels)).softmax(dim=-1).transpose(0, 1)


@dataclass(frozen=True)
class TokenVariances:
    """Variance of tokens over images. per_dim: averaged over positions.  per_token: averaged over dimensions."""

    per_dim: Float[Tensor, " dim"]
    per_token: Float[Tensor, " tokens"]

    @property
    def unevenness(self) -> float:
        """Largest / smallest variance of a dimension; 1 if all dimensions have the same scale."""
        return float(self.per_dim.max() / self.per_dim.min())


@dataclass(frozen=True)
class WrongLength:
    """One image's tokens, decoded after multiplication by every factor.

    images: (factors, 3, size, size).  errors: mean absolute difference from the image at factor 1, per factor.
    """

    factors: tuple[float, ...]
    images: Float[Tensor, "factors 3 size size"]
    errors: list[float]


def token_variances(tokens: Float[Tensor, "images tokens dim"]) -> TokenVariances:
    """Variance of tokens over images, per dimension and per token. Fewer than two images: ValueError."""
    require(len(tokens) >= 2, f"tokens are of {len(tokens)} images; expected at least 2")
    variance = tokens.double().var(dim=0)  # (tokens, dim)
    return TokenVariances(variance.mean(dim=0), variance.mean(dim=1))


@torch.no_grad()
def wrong_length(vae: VAE, image: Float[Tensor, "3 size size"], factors: Sequence[float]) -> WrongLength:
    """Encode an image, multiply its tokens by every factor, and decode. A factor of 0 or less: ValueError."""
    require(min(factors) > 0, f"factors are {list(factors)}; expected numbers above 0")
    tokens = vae.encode(image[None]).mode
    reference = vae.decode(tokens)
    images = torch.cat([vae.decode(factor * tokens) for factor in factors])
    return WrongLength(tuple(factors), images, (images - reference).abs().mean(dim=(1, 2, 3)).tolist())
