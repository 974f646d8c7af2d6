"""The least time that a decode's arithmetic and memory traffic allow on a machine, and that machine's ceilings.

Knows: how many weights a token reads and multiplies, and how fast this machine copies and multiplies.
Does not know: how decoding is done; a floor is below every way of doing it that evaluates as often.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from spherear.bench.timing import seconds
from spherear.models.ar import ARConfig, SphereAR
from spherear.models.categorical import CategoricalHead

RUNS = 9  # of which the first does not count
MULTIPLY = 1024  # rows and columns of the square matrices that are multiplied


@dataclass(frozen=True)
class Work:
    """Of one token. weights: numbers read in one sweep.  sweeps: how often.  products: multiply-adds in all."""

    weights: int
    sweeps: int
    products: int


def works(config: ARConfig, rows: int, evaluations: int, position: int) -> dict[str, Work]:
    """What one token needs of the transformer and of the head, for so many rows (images, doubled by guidance).

    The head: blocks and ends once an evaluation; what depends on time and condition alone once a token.
    The cache is read up to `position`, and counted as weights of the transformer.
    """
    with torch.device("meta"):
        ar = SphereAR(config)
    layers = sum(p.numel() for p in ar.layers.parameters())
    cached = 2 * config.layers * rows * (config.class_tokens + position) * config.width
    transformer = Work(layers + cached, 1, layers * rows + cached)
    head = sum(p.numel() for p in ar.head.parameters())
    if isinstance(ar.head, CategoricalHead):
        return {"transformer": transformer, "head": Work(head, 1, head * rows)}
    again = (ar.head.res_blocks, ar.head.input_proj, ar.head.final_linear)
    repeated = sum(p.numel() for part in again for p in part.parameters())
    once = head - repeated
    ahead = Work(once, 1, once * rows * evaluations)
    return {
        "transformer": transformer,
        "head, once": ahead,
        "head": Work(repeated, evaluations, repeated * rows * evaluations),
    }


def copy_rate(nbytes: int, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes a second, read and write counted, of copying a block so that `nbytes` pass in all; measured here.

    A block that fits a cache is copied at the cache's speed, as weights of that size are read.
    """
    source = torch.ones(max(1, nbytes // 2 // dtype.itemsize), dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _usual(lambda: target.copy_(source), device)


@cache
def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds a second of a large matmul; measured once."""
    square = torch.ones(MULTIPLY, MULTIPLY, dtype=dtype, device=device)
    return MULTIPLY**3 / _usual(lambda: square @ square, device)


def _usual(work: Callable[[], Tensor], device: torch.device) -> float:
    """Median seconds, the first run left out."""
    return median([seconds(work, device) for _ in range(RUNS)][1:])


def floor_seconds(
    config: ARConfig, rows: int, evaluations: int, position: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Of one token: for each part the longer of reading and multiplying, at this machine's ceilings."""
    total = 0.0
    for work in works(config, rows, evaluations, position).values():
        nbytes = work.weights * dtype.itemsize
        reading = work.sweeps * nbytes / copy_rate(nbytes, dtype, device)
        total += max(reading, work.products / product_rate(dtype, device))
    return total
