"""Attention with 2-D rotary positions, a gated feed-forward, and the pre-norm block they make.

Knows: how tokens on a square grid exchange information, and how past keys and values are kept.
Does not know: what a token stands for, images, labels, guidance or noise.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-6


def rope_table(
    grid: int, prefix: int, head_width: int, device: torch.device | None = None
) -> Float[Tensor, "positions pairs 2"]:
    """cos and sin of p * 10000^(-2k / (head_width / 2)): angles of 2-D rotary positions.

    Each axis takes half of the head's pairs, x (column) before y (row). Cell i of an axis sits at
    p = i + 1.5; the `prefix` tokens before the grid (classes, registers) at p = 0, which rotates nothing.

    Returns: (prefix + grid^2, head_width / 2, 2), float32, raster order.
    """
    k = torch.arange(head_width // 4, dtype=torch.float32, device=device)
    frequency = 10000.0 ** (-2 * k / (head_width / 2))
    position = torch.arange(grid, dtype=torch.float32, device=device) + 1.5
    angle = position[:, None] * frequency  # (grid, pairs / 2)
    x = angle[None].expand(grid, -1, -1)
    y = angle[:, None].expand(-1, grid, -1)
    cells = torch.cat((x, y), dim=-1).flatten(0, 1)  # (grid^2, pairs)
    angles = torch.cat((cells.new_zeros(prefix, cells.shape[-1]), cells))
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


class Rotary(nn.Module):
    """The table of `rope_table` as a module: it follows the model's device and stays float32.

    Not saved with the weights. `length` cuts the table (an AR model never feeds its last token back).
    """

    table: Tensor

    def __init__(self, grid: int, prefix: int, head_width: int, length: int | None = None) -> None:
        super().__init__()
        self.shape = (grid, prefix, head_width)
        self.length = length
        self.register_buffer("table", self._build(None), persistent=False)

    def _build(self, device: torch.device | None) -> Tensor:
        return rope_table(*self.shape, device=device)[: self.length]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.table = self._build(self.table.device)
        return self

    def forward(self, start: int, count: int) -> Float[Tensor, "count pairs 2"]:
        return self.table[start : start + count]


def rotate(
    x: Float[Tensor, "batch heads tokens width"], table: Float[Tensor, "tokens pairs 2"]
) -> Float[Tensor, "batch heads tokens width"]:
    """(a, b) -> (a cos - b sin, a sin + b cos) on interleaved pairs, in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, table.dtype))
    a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


class LayerCache:
    """Keys and values of one layer, preallocated; `append` writes in place and returns what is filled."""

    def __init__(
        self,
        batch: int,
        heads: int,
        length: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (batch, heads, length, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.filled = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        end = self.filled + keys.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"KV cache holds {self.keys.shape[2]} positions; position {end} was asked for")
        self.keys[:, :, self.filled : end] = keys
        self.values[:, :, self.filled : end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The past of a causal transformer: one `LayerCache` a layer, in the compute dtype."""

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_width: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layers = [LayerCache(batch, heads, length, head_width, dtype, device) for _ in range(layers)]

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    @property
    def filled(self) -> int:
        """How many positions have been written."""
        return self.layers[0].filled

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)


class Attention(nn.Module):
    """Multi-head attention with a fused, bias-free query-key-value projection and rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        rope: Float[Tensor, "tokens pairs 2"],
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        q, k, v = rearrange(
            self.wqkv(x),
            "batch tokens (three heads w) -> three batch heads tokens w",
            three=3,
            heads=self.heads,
        )
        q, k = rotate(q, rope), rotate(k, rope)
        mask = None
        if cache is not None:
            if cache.filled and causal and x.shape[1] > 1:  # several new tokens behind old ones
                mask = _causal_mask(x.shape[1], cache.filled, x.device)
            causal = causal and not cache.filled
            k, v = cache.append(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.wo(rearrange(out, "batch heads tokens w -> batch tokens (heads w)"))


def _causal_mask(new: int, old: int, device: torch.device) -> Tensor:
    return torch.ones(new, old + new, dtype=torch.bool, device=device).tril(diagonal=old)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, in the weight's precision: in float32 under autocast, as layer norms are."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return super().forward(x.to(self.weight.dtype))


class SwiGLU(nn.Module):
    """w2(SiLU(a) * b) with (a, b) = w1(x); hidden width 8/3 of x's, rounded up to a multiple of 256."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 256 * math.ceil(int(8 * width / 3) / 256)
        self.w1 = nn.Linear(width, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        gate, value = self.w1(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * value)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = SwiGLU(width)
        self.attention_norm = RMSNorm(width)
        self.ffn_norm = RMSNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        rope: Float[Tensor, "tokens pairs 2"],
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.attention_norm(x), rope, causal, cache)
        return x + self.feed_forward(self.ffn_norm(x))


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """N(0, std) on every linear and embedding below `module`; linear biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
