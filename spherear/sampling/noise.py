"""Noise from seeds: one counter-based random stream per image, drawn on the CPU."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import require

Noise = Callable[[int, tuple[int, int, int]], Tensor]
"""noise(token_index, (draws, batch, dim)) -> all noise of one token, standard normal."""


def seeded_noise(seeds: Sequence[int]) -> Noise:
    """N(0, I) from one Philox stream per image and token, keyed by (seed, token), so any order of tokens works.

    An image's noise depends only on its seed, not on the rest of the batch, the device, or (row 0) the solver.
    ValueError for seeds outside 0 to 2^64 - 1.
    """
    for seed in seeds:
        require(0 <= seed < 2**64, f"seed is {seed}; expected an integer from 0 to 2^64 - 1")

    def noise(token_index: int, shape: tuple[int, int, int]) -> Float[Tensor, "draws batch dim"]:
        draws, batch, dim = shape
        require(batch == len(seeds), f"the batch is {batch}; expected {len(seeds)}, one image per seed")
        out = np.empty(shape, dtype=np.float32)
        for row, seed in enumerate(seeds):
            stream = np.random.Generator(np.random.Philox(key=[seed, token_index]))
            out[:, row] = stream.standard_normal((draws, dim), dtype=np.float32)
        return torch.from_numpy(out)

    return noise


def remembered(noise: Noise) -> Noise:
    """The same, but a token's single draw is made once and kept, for decodes that differ in their settings alone."""
    kept = dict[tuple[int, tuple[int, int, int]], Tensor]()

    def once(token_index: int, shape: tuple[int, int, int]) -> Float[Tensor, "draws batch dim"]:
        key = (token_index, shape)
        if shape[0] > 1:
            return noise(token_index, shape)
        if key not in kept:
            kept[key] = noise(token_index, shape)
        return kept[key].clone()

    return once


@lru_cache(maxsize=64)
def consecutive_noise(first: int, count: int) -> Noise:
    """`seeded_noise` of `count` seeds from `first` on, remembered: a panel draws the same seeds again and again."""
    return remembered(seeded_noise(range(first, first + count)))
