"""A lower bound on decoding time, from arithmetic, memory traffic and this machine's measured rates.

It holds for every implementation with the same number of evaluations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import Tensor

from spherear.bench.timing import seconds
from spherear.models.ar import ARConfig, SphereAR
from spherear.models.heads.velocity import VelocityHead

RUNS = 9  # the first is not counted
MULTIPLY = 1024  # rows and columns of the square matrices in the matmul


@dataclass(frozen=True)
class Work:
    """Work per token. weights: numbers read in one sweep.  sweeps: number of reads.  products: total multiply-adds."""

    weights: int
    sweeps: int
    products: int


def works(config: ARConfig, rows: int, evaluations: int, position: int) -> dict[str, Work]:
    """Work per token in the transformer and in the head, for `rows` rows (images, doubled by guidance).

    Of the head, blocks, input and output layers are read once per evaluation, the rest once per token.
    The KV cache is read up to `position`, and counted as weights of the transformer.
    """
    with torch.device("meta"):
        ar = SphereAR(config)
    layers = sum(p.numel() for p in ar.layers.parameters())
    cached = 2 * config.layers * rows * (config.class_tokens + position) * config.width
    transformer = Work(layers + cached, 1, layers * rows + cached)
    head = sum(p.numel() for p in ar.head.parameters())
    if not isinstance(ar.head, VelocityHead):
        return {"transformer": transformer, "head": Work(head, 1, head * rows)}
    repeated_layers = (ar.head.res_blocks, ar.head.input_proj, ar.head.final_linear)
    repeated = sum(p.numel() for part in repeated_layers for p in part.parameters())
    read_once = head - repeated
    return {
        "transformer": transformer,
        "head, once": Work(read_once, 1, read_once * rows * evaluations),
        "head": Work(repeated, evaluations, repeated * rows * evaluations),
    }


def copy_rate(nbytes: int, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes per second, counting reads and writes, of a copy that moves `nbytes` in total; measured on every call.

    A block that fits into a CPU cache is copied at its speed, just as weights of that size are read.
    """
    source = torch.ones(max(1, nbytes // 2 // dtype.itemsize), dtype=dtype, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


@cache
def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds per second of a large matmul; measured once."""
    square = torch.ones(MULTIPLY, MULTIPLY, dtype=dtype, device=device)
    return MULTIPLY**3 / _median_seconds(lambda: square @ square, device)


def _median_seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Median duration in seconds, without the first run."""
    return median([seconds(work, device) for _ in range(RUNS)][1:])


def floor_seconds(
    config: ARConfig, rows: int, evaluations: int, position: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Least seconds per token: for each part the longer of reading and multiplying, at this machine's rates."""
    total = 0.0
    for work in works(config, rows, evaluations, position).values():
        nbytes = work.weights * dtype.itemsize
        reading = work.sweeps * nbytes / copy_rate(nbytes, dtype, device)
        total += max(reading, work.products / product_rate(dtype, device))
    return total
