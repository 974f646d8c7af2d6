"""The categorical head, for tokens from a codebook: from a condition to the logits of the next code."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.heads.contract import Head
from spherear.models.layers import NORM_EPS, init_xavier
from spherear.sphere.bottlenecks import nearest_code


class CategoricalHead(Head):
    """logits(condition) of `codes` codes: residual blocks x + w2(SiLU(w1(norm(x)))), then a linear map.

    latent_dim: of a code's vector.  condition_width: of the condition.  width, depth: of the blocks.
    `codebook` (codes, latent_dim) is a buffer that training copies from the VAE.
    """

    discrete = True
    codebook: Tensor

    def __init__(self, latent_dim: int, condition_width: int, width: int, depth: int, codes: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, latent_dim))
        self.cond_embed = nn.Linear(condition_width, width)
        self.res_blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, 3 * width), nn.SiLU(), nn.Linear(3 * width, width)
            )
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.final_linear = nn.Linear(width, codes)
        init_xavier(self)
        nn.init.zeros_(self.final_linear.weight)

    @property
    def state_dtype(self) -> torch.dtype:
        """Dtype of the logits: float32 or better."""
        return torch.promote_types(self.final_linear.weight.dtype, torch.float32)

    def forward(self, condition: Float[Tensor, "*batch condition_width"]) -> Float[Tensor, "*batch codes"]:
        """Condition -> logits, float32 or better."""
        x = self.cond_embed(condition.to(self.cond_embed.weight.dtype))  # (..., width)
        for block in self.res_blocks:
            x = x + block(x)
        return self.final_linear(self.final_norm(x)).to(self.state_dtype)

    def codes(self, tokens: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """Index of the code nearest to every token."""
        return nearest_code(tokens, self.codebook)

    def set_codebook(self, codebook: Float[Tensor, "codes dim"]) -> None:
        """Copy a VAE's codebook into this head. ValueError if its shape differs."""
        shape, expected = tuple(codebook.shape), tuple(self.codebook.shape)
        require(shape == expected, f"the codebook has shape {shape}; expected {expected}")
        self.codebook.copy_(codebook)

    def loss(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        condition: Float[Tensor, "batch tokens width"],
        **draws: Any,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the tokens' codes, in nats per token; `draws`, for a velocity head, is ignored."""
        logits = rearrange(self(condition), "batch tokens codes -> (batch tokens) codes")
        return F.cross_entropy(logits, self.codes(tokens).flatten())
