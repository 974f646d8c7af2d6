"""How tokens are spread where they have three numbers: on a simplex, in a cloud, on a sphere (paper, figure 3).

Knows: three pipelines of latent dimension 3, one discrete, one Gaussian, one spherical.
Does not know: how they are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.lab.diagnostics import trace
from spherear.models.categorical import CategoricalHead
from spherear.models.config import require
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings


@dataclass(frozen=True)
class TokenLaws:
    """Points (positions, n, 3) of the tokens at `positions`, drawn by three models from the same seeds.

    discrete: the probabilities of three codes, points of a simplex.  gaussian, sphere: the tokens.
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
    """Draw `images` images of one label with each model, unguided; keep the tokens at `positions`.

    A model whose tokens have another number of numbers (or codes) than 3: ValueError.
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
    """What the head gave every code at every position of its own decode: (tokens, n, codes)."""
    head = pipeline.ar.head
    assert isinstance(head, CategoricalHead)
    tokens = trace(pipeline.steps(labels, settings)).tokens
    return head(pipeline.ar(tokens, labels)).softmax(dim=-1).transpose(0, 1)
