"""A partial decode: the tokens drawn so far, as images and as lengths."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.sampling.decode import Step
from spherear.sampling.pipeline import Pipeline, drawn_mask


@dataclass(frozen=True)
class Canvas:
    """The first `drawn` tokens of every image from one model; the remaining tokens are 0.

    Tokens, images and lengths are on the CPU, wherever the pipeline is.
    """

    pipeline: Pipeline
    drawn: int
    raw: Float[Tensor, "batch tokens dim"]
    tokens: Float[Tensor, "batch tokens dim"]

    @classmethod
    def empty(cls, pipeline: Pipeline, images: int) -> "Canvas":
        """A canvas without drawn tokens."""
        ar = pipeline.ar
        zeros = torch.zeros(images, ar.config.tokens, ar.config.latent_dim, dtype=ar.head.state_dtype)
        return cls(pipeline, 0, zeros, zeros)

    def extended(self, step: Step) -> "Canvas":
        """A copy with the token of `step` added."""
        raw, tokens = self.raw.clone(), self.tokens.clone()
        raw[:, step.index], tokens[:, step.index] = step.raw, step.token
        return Canvas(self.pipeline, step.index + 1, raw, tokens)

    @property
    def done(self) -> bool:
        """Whether every token is drawn."""
        return self.drawn == self.tokens.shape[1]

    @torch.no_grad()
    def images(self) -> Float[Tensor, "batch 3 size size"]:
        """Images decoded in the VAE's precision; patches that are not drawn yet are grey."""
        vae, config = self.pipeline.vae, self.pipeline.vae.config
        images = vae.decode(self.tokens.to(vae.quant_proj.weight.device)).to(self.tokens.device)
        return images if self.done else images * drawn_mask(self.drawn, config.grid, config.patch, images.device)

    def lengths(self) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
        """|raw| and |token|: lengths before and after the projection; nan for tokens not drawn yet."""
        raw, token = (torch.linalg.vector_norm(z, dim=-1).float().cpu() for z in (self.raw, self.tokens))
        raw[:, self.drawn :] = token[:, self.drawn :] = math.nan
        return raw, token


def expected_length(pipeline: Pipeline) -> float:
    """The radius R if the latents have one; else sqrt(dim), the root mean square length at variance 1 per dimension."""
    bottleneck = pipeline.vae.bottleneck
    return float(bottleneck.radius or math.sqrt(bottleneck.dim))


def length_symbol(pipeline: Pipeline) -> str:
    """The symbol of `expected_length` in figures: R or √d."""
    return "R" if pipeline.vae.bottleneck.radius else "√d"
