"""The network of AR models of one shape in numpy: a transformer's step, and the velocity of its head.

Arrays are (models, rows, width). Weights of all models lie one above the other, so that one call multiplies the rows of
each by its own. They are views or copies of the weights as they are now. What is computed is said where torch computes
it: `models.layers`, `models.ar` and `models.heads.velocity`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import NORM_EPS, Block

Array = np.ndarray


def stacked(tensors: Sequence[Tensor]) -> Array:
    """Tensors of one shape, one above the other; a view of a single one."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def rows_of(tensors: Sequence[Tensor]) -> Array:
    """Vectors that stand beside rows: (models, 1, width)."""
    return stacked(tensors)[:, None]


class Affine:
    """x W^T + b with the weights of every model."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = np.ascontiguousarray(stacked([layer.weight for layer in layers]).swapaxes(1, 2))
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = rows_of(biases) if biases else None

    def __call__(self, x: Array) -> Array:
        y = np.matmul(x, self.weight)
        if self.bias is not None:
            y += self.bias
        return y


def root_mean_square(x: Array) -> Array:
    """sqrt(mean of x^2 + NORM_EPS) of every row: (models, rows, 1)."""
    square = np.einsum("mri,mri->mr", x, x)
    square /= x.shape[-1]
    square += NORM_EPS
    return np.sqrt(square, out=square)[..., None]


def rms_norm(x: Array, weight: Array) -> Array:
    """x / rms(x) * weight."""
    y = x / root_mean_square(x)
    y *= weight
    return y


def standardised(x: Array) -> Array:
    """A layer norm without weights."""
    y = x - (np.einsum("mri->mr", x) / x.shape[-1])[..., None]
    y /= root_mean_square(y)
    return y


def silu(x: Array) -> Array:
    """x / (1 + exp(-x)); where exp overflows, that is 0."""
    y = np.negative(x)
    np.exp(y, out=y)
    y += 1
    return np.divide(x, y, out=y)


def gated(x: Array) -> Array:
    """SiLU(a) * b of the halves of every row."""
    half = x.shape[-1] // 2
    y = silu(x[..., :half])
    y *= x[..., half:]
    return y


class _Block:
    def __init__(self, blocks: Sequence[Block]) -> None:
        def each(part: Callable[[Block], nn.Module]) -> list[Any]:
            return [part(block) for block in blocks]

        self.heads = blocks[0].attention.heads
        self.attention_norm = rows_of([norm.weight for norm in each(lambda b: b.attention_norm)])
        self.ffn_norm = rows_of([norm.weight for norm in each(lambda b: b.ffn_norm)])
        self.wqkv, self.wo = Affine(each(lambda b: b.attention.wqkv)), Affine(each(lambda b: b.attention.wo))
        self.w1, self.w2 = Affine(each(lambda b: b.feed_forward.w1)), Affine(each(lambda b: b.feed_forward.w2))

    def __call__(self, x: Array, turn: Array, keys: Array, values: Array, position: int) -> Array:
        """keys, values: (models, rows, heads, length, head width); the new ones are written at `position`."""
        models, rows, width = x.shape
        shape = (models, rows, self.heads, width // self.heads)
        qkv = self.wqkv(rms_norm(x, self.attention_norm))
        both = rotated(qkv[..., : 2 * width].reshape(models, rows, 2 * self.heads, -1), turn)
        keys[:, :, :, position] = both[:, :, self.heads :]
        values[:, :, :, position] = qkv[..., 2 * width :].reshape(shape)
        query = both[:, :, : self.heads] / math.sqrt(shape[-1])
        share = np.matmul(keys[:, :, :, : position + 1], query[..., None])[..., 0]
        share -= share.max(-1, keepdims=True)
        np.exp(share, out=share)
        share /= share.sum(-1, keepdims=True)
        read = np.matmul(share[..., None, :], values[:, :, :, : position + 1]).reshape(x.shape)
        x = x + self.wo(read)
        x += self.w2(gated(self.w1(rms_norm(x, self.ffn_norm))))
        return x


def rotated(x: Array, turn: Array) -> Array:
    """(a, b) -> (a cos - b sin, b cos + a sin) on interleaved pairs of the last axis. turn: (pairs, 2)."""
    cos, sin = turn[:, 0], turn[:, 1]
    a, b, y = x[..., 0::2], x[..., 1::2], np.empty_like(x)
    y[..., 0::2] = a * cos - b * sin
    y[..., 1::2] = b * cos + a * sin
    return y


class Transformer:
    """`SphereAR.advance` of every model."""

    def __init__(self, models: Sequence[SphereAR]) -> None:
        self.prefix = models[0].config.class_tokens
        self.proj_in = Affine([model.proj_in for model in models])
        self.emb_norm = rows_of([model.emb_norm.weight for model in models])
        self.norm = rows_of([model.norm.weight for model in models])
        self.positions = stacked([model.pos_for_diff.weight for model in models])
        self.turns = models[0].rotary.table.numpy().astype(self.proj_in.weight.dtype)
        layers = [model.layers for model in models]
        self.blocks = [_Block([blocks[i] for blocks in layers]) for i in range(len(layers[0]))]  # type: ignore[misc]

    def advance(self, tokens: Array, cache: Sequence[tuple[Array, Array]], position: int) -> Array:
        """Tokens (models, rows, dim) at a position of the sequence -> the conditions of the next ones.

        cache: keys and values of every layer, see `_Block`.
        """
        with np.errstate(over="ignore"):
            x = rms_norm(self.proj_in(tokens), self.emb_norm)
            for block, (keys, values) in zip(self.blocks, cache, strict=True):
                x = block(x, self.turns[position], keys, values, position)
            x = rms_norm(x, self.norm)
        x += self.positions[:, position - self.prefix + 1][:, None]
        return x


class Velocity:
    """The network of the velocity heads of every model."""

    def __init__(self, heads: Sequence[VelocityHead]) -> None:
        first = heads[0]
        self.input_proj = Affine([head.input_proj for head in heads])
        self.cond_embed = Affine([head.cond_embed for head in heads])
        self.final_linear = Affine([head.final_linear for head in heads])
        places = range(len(first.ada_ln_blocks))
        self.modulate = [Affine([head.ada_ln_blocks[i] for head in heads]) for i in places]  # type: ignore[misc]
        self.modulate.append(Affine([head.final_modulation for head in heads]))
        self.shared = len(first.res_blocks) // len(first.ada_ln_blocks)  # blocks per modulation
        self.blocks: list[tuple[Array, Array, Affine, Affine]] = []
        for i in range(len(first.res_blocks)):
            own: list[Any] = [head.res_blocks[i] for head in heads]
            scale, shift = rows_of([b.norm.weight for b in own]), rows_of([b.norm.bias for b in own])
            self.blocks.append((scale, shift, Affine([b.w1 for b in own]), Affine([b.w2 for b in own])))

    def modulations(self, times: Array, condition: Array) -> list[list[Array]]:
        """Per time, those of every group and the final one: 1 + scale, shift and gate in one row each.

        times: (models, times, 1, width).  condition: (models, rows, width), with what else is added to the time.
        """
        with np.errstate(over="ignore"):
            y = silu(times + condition[:, None])
        models, count, rows, width = y.shape
        flat = y.reshape(models, count * rows, width)
        found = []
        for modulate in self.modulate:
            z = modulate(flat).reshape(models, count, rows, -1)
            z[..., :width] += 1
            found.append(z)
        return [[z[:, i] for z in found] for i in range(count)]

    def at(self, x: Array, modulation: list[Array]) -> Array:
        """Velocity at x, (models, rows, dim), with as many rows as the modulation: x twice if it has half of them."""
        h = self.input_proj(x)
        if modulation[0].shape[1] == 2 * h.shape[1]:
            h = np.concatenate((h, h), axis=1)
        width = h.shape[-1]
        with np.errstate(over="ignore"):
            for i, (weight, bias, w1, w2) in enumerate(self.blocks):
                by = modulation[i // self.shared]
                y = standardised(h)
                y *= weight
                y += bias
                y *= by[..., :width]
                y += by[..., width : 2 * width]
                y = w2(gated(w1(y)))
                y *= by[..., 2 * width :]
                h += y
        y = standardised(h)
        y *= modulation[-1][..., :width]
        y += modulation[-1][..., width:]
        return self.final_linear(y)
