"""Transformer layers: attention with 2-D rotary positions and a KV cache, gated feed-forward, pre-norm block."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

NORM_EPS = 1e-6
SPAN = 64  # cached positions are read in multiples of this number

P = ParamSpec("P")
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def rope_table(
    grid: int, prefix: int, head_width: int, device: torch.device | None = None
) -> Float[Tensor, "positions pairs 2"]:
    """cos and sin of p * 10000^(-2k / (head_width / 2)): angles of 2-D rotary positions.

    Each axis has half of the head's pairs, x (column) before y (row). Cell i of an axis is at p = i + 1.5; the
    `prefix` tokens before the grid (classes, registers) are at p = 0, which is no rotation.

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
    """The table of `rope_table` as a module: it moves with the model's device and stays float32.

    Not saved with the weights. `length` truncates the table (an AR model never feeds its last token back).
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
        before = self.table
        super()._apply(fn, recurse)
        moved = self.table.device != before.device
        self.table = self._build(self.table.device) if moved else before  # same device: same memory
        return self

    def forward(self, count: int) -> Float[Tensor, "count pairs 2"]:
        """The table of the first `count` positions."""
        return self.table[:count]

    def at(self, index: Int[Tensor, " new"]) -> Float[Tensor, "new pairs 2"]:
        """The table of the positions in `index`."""
        return self.table.index_select(0, index)


def rotate(
    x: Float[Tensor, "*batch tokens width"], table: Float[Tensor, "tokens pairs 2"]
) -> Float[Tensor, "*batch tokens width"]:
    """(a, b) -> (a cos - b sin, b cos + a sin) on interleaved pairs, in float32 or better."""
    pairs = x.to(torch.promote_types(x.dtype, table.dtype)).unflatten(-1, (-1, 2))
    cos, sin = table.unsqueeze(-1).unbind(-2)  # (tokens, pairs, 1)
    turned = pairs * cos + pairs.flip(-1) * torch.cat((-sin, sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""One layer's part of a KV cache: new keys and values -> those of all positions that are read, with the new ones."""


class KVCache:
    """The KV cache of a causal transformer: keys and values of every layer, preallocated in the compute dtype.

    keys, values: one tensor per layer, (batch, heads, length, head width).  filled: positions that hold a token.
    Its size is fixed: new tokens are written at an index that is a tensor, and attention reads the first `span`
    positions, a multiple of SPAN, with a mask. So a decode has few shapes and can be compiled or captured.
    """

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
        shape = (batch, heads, length, head_width)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2)
        )
        self.positions = torch.arange(length, device=device)
        self.filled = 0

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    @property
    def span(self) -> int:
        """Number of positions that attention reads now: those that are filled, rounded up to a multiple of SPAN."""
        return min(len(self.positions), SPAN * math.ceil(self.filled / SPAN))

    def clear(self) -> None:
        """Empty the cache. Its numbers become 0: attention multiplies masked positions by 0, and 0 x nan is nan."""
        for tensor in (*self.keys, *self.values):
            tensor.zero_()
        self.filled = 0

    def reserve(self, count: int) -> Int[Tensor, " count"]:
        """The positions of the next `count` tokens, now filled. ValueError if the cache is too short."""
        end = self.filled + count
        if end > len(self.positions):
            raise ValueError(f"the KV cache has {len(self.positions)} positions; expected {end} or more")
        index, self.filled = self.positions[self.filled : end], end
        return index

    def bias(self, index: Int[Tensor, " new"], span: int) -> Float[Tensor, "new span"]:
        """`mask` as attention adds it to its scores: 0, or -inf; made once per step, not in every layer."""
        mask = self.mask(index, span)
        return torch.zeros_like(mask, dtype=self.keys[0].dtype).masked_fill_(~mask, -math.inf)

    def mask(self, index: Int[Tensor, " new"], span: int) -> Bool[Tensor, "new span"]:
        """Which of the first `span` positions each token at `index` attends to: itself and earlier ones."""
        return self.positions[:span] <= index[:, None]

    def update(
        self, layer: int, index: Int[Tensor, " new"], span: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values in place; returns those of the layer's first `span` positions."""
        self.keys[layer].index_copy_(2, index, keys)
        self.values[layer].index_copy_(2, index, values)
        return self.keys[layer][:, :, :span], self.values[layer][:, :, :span]

    def updates(self, index: Int[Tensor, " new"], span: int) -> list[Update]:
        """`update` for new tokens at `index`, one function per layer."""
        return [partial(self.update, layer, index, span) for layer in range(len(self.keys))]


class Attention(nn.Module):
    """Multi-head attention with a fused, bias-free query-key-value projection and rotary positions.

    update: adds the keys and values of earlier tokens, from a KV cache; then `mask` says who attends to whom (or is
    added to the scores). Without it, `causal` chooses between causal and full attention.
    """

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
        update: Update | None = None,
        mask: Bool[Tensor, "tokens span"] | Float[Tensor, "tokens span"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        qkv = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, batch, heads, tokens, w)
        q, k = rotate(qkv[:2], rope)
        v = qkv[2]
        if update is not None:
            k, v = update(k, v)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.wo(out.transpose(1, 2).flatten(2))  # (batch, tokens, width)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight, in the weight's dtype: float32 under autocast, like layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return super().forward(x.to(self.weight.dtype))


def hidden_width(width: int) -> int:
    """Width of the feed-forward layer: 8/3 of the model's, rounded up to a multiple of 256."""
    return 256 * math.ceil(int(8 * width / 3) / 256)


class SwiGLU(nn.Module):
    """w2(SiLU(a) * b) with (a, b) = w1(x), each of `hidden_width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = hidden_width(width)
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
        update: Update | None = None,
        mask: Bool[Tensor, "tokens span"] | Float[Tensor, "tokens span"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attention(self.attention_norm(x), rope, causal, update, mask)
        return x + self.feed_forward(self.ffn_norm(x))


def seeded(seed: int, build: Callable[P, ModuleT], *args: P.args, **options: P.kwargs) -> ModuleT:
    """`build(...)` with initial weights that depend on `seed` alone; the global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args, **options)


def init_xavier(module: nn.Module) -> None:
    """Initialise all linear weights in `module` with Xavier's uniform distribution, their biases with 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """Initialise all linear and embedding weights in `module` with N(0, std^2), linear biases with 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
