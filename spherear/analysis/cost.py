"""The cost of a preset, computed from its sizes: parameters, operations and memory. Nothing is timed.

An operation is a multiplication or an addition of a matrix product (2 m n k for m x k times k x n); norms,
activations and rotary positions are not counted, as is usual.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import require
from spherear.models.layers import SPAN, hidden_width
from spherear.models.presets import Preset, preset
from spherear.models.published_weights import to_published
from spherear.models.vae import VAE
from spherear.sampling.settings import SamplingSettings

ADAM = 2  # averages that AdamW stores per parameter


@dataclass(frozen=True)
class Cost:
    """The cost of one preset. parameters: of the AR model and its head.  vae_parameters: of the VAE.

    transformer_flops, head_flops: operations per image, all guidance branches.  cache_bytes: KV cache per image, all
    branches, in the requested precision.  weight_bytes: of the AR model in that precision.
    training_bytes: float32 weights, gradients, AdamW's two averages and the EMA, without activations.
    """

    name: str
    parameters: int
    vae_parameters: int
    transformer_flops: int
    head_flops: int
    cache_bytes: int
    weight_bytes: int
    training_bytes: int

    @property
    def image_flops(self) -> int:
        """Operations per image, without the VAE."""
        return self.transformer_flops + self.head_flops


def parameters(model: nn.Module) -> int:
    """The number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def transformer_flops(config: ARConfig, cached: bool = True) -> int:
    """Operations of the transformer per image and guidance branch.

    With a KV cache, every position is computed once and attends to the filled part of the cache, rounded up to a
    multiple of SPAN. Without one, the whole sequence so far is computed again for every token.
    """
    c = config
    lengths = range(c.class_tokens, c.class_tokens + c.tokens)  # of the sequence when a token is predicted
    per_position = c.layers * (2 * c.width * 4 * c.width + 2 * c.width * 3 * hidden_width(c.width))
    if cached:
        capacity = lengths[-1]
        reads = [min(capacity, SPAN * -(-n // SPAN)) for n in lengths]
        attended = c.class_tokens * reads[0] + sum(reads[1:])
        return capacity * per_position + c.layers * 4 * c.width * attended + 2 * c.latent_dim * c.width * (c.tokens - 1)
    return sum(
        n * per_position + c.layers * 4 * c.width * n**2 + 2 * c.latent_dim * c.width * (n - c.class_tokens)
        for n in lengths
    )


def head_flops(config: ARConfig) -> int:
    """Operations per velocity evaluation and token, with time and condition already embedded."""
    c = config
    blocks = c.head_depth * 2 * (c.head_width * 2 * int(1.5 * c.head_width) + int(1.5 * c.head_width) * c.head_width)
    modulation = 2 * c.head_width * (3 * c.head_groups + 2) * c.head_width
    return blocks + modulation + 2 * 2 * c.latent_dim * c.head_width


def cost(name: str, settings: SamplingSettings | None = None, bytes_each: int = 2) -> Cost:
    """The cost of a preset when decoding with `settings`. `bytes_each` other than 2 or 4: ValueError."""
    require(bytes_each in (2, 4), f"bytes_each is {bytes_each}; expected 2 (bfloat16) or 4 (float32)")
    settings, row = settings or SamplingSettings(), preset(name)
    c = row.ar
    with torch.device("meta"):
        ar, vae = SphereAR(c), VAE(row.vae)
    branches = 1 if settings.guidance_scale == 1.0 else 2
    per_token = settings.evaluations * head_flops(c) + 2 * c.width * c.head_width
    positions = c.class_tokens + c.tokens - 1
    return Cost(
        name,
        parameters(ar),
        parameters(vae),
        branches * transformer_flops(c),
        branches * c.tokens * per_token,
        branches * positions * 2 * c.layers * c.width * bytes_each,
        parameters(ar) * bytes_each,
        parameters(ar) * 4 * (2 + ADAM + 1),
    )


def made_up_checkpoint(sizes: Preset, seed: int = 0) -> Mapping[str, Tensor]:
    """A state dict in the published format, of these sizes, filled with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        parts = (VAE(sizes.vae), SphereAR(sizes.ar))
    vae, ar = (
        {k: 0.02 * torch.randn(v.shape, generator=generator) for k, v in to_published(part).items()} for part in parts
    )
    return {**{f"vae.{k}": v for k, v in vae.items()}, **ar}
