"""From which size on packed weights are faster on this CPU: the number behind `sampling.choice.SMALL`.

    python -m spherear.bench.sizes [IMAGES]

draws a few guided tokens at every size, as written and packed, in turn, and prints milliseconds per token.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from time import perf_counter

import torch

from spherear.bench.decoding import decode_random, random_model
from spherear.console import markdown_table
from spherear.models.ar import ARConfig
from spherear.sampling.engines import Engine, engine_named
from spherear.sampling.settings import SamplingSettings

WIDTHS = {96: 4, 192: 6, 256: 8, 320: 10, 384: 12, 512: 16, 768: 24}
"""width -> layers: from the shipped models to SphereAR-B, whose proportions they have."""
TOKENS, REPEATS = 4, 7


@dataclass(frozen=True)
class SizeRow:
    """Medians of one size, in seconds per token. speedup: of packed weights, within pairs of runs."""

    parameters: int
    eager: float
    packed: float
    speedup: float


def config_of(width: int) -> ARConfig:
    """An AR model of that width, in the proportions of SphereAR-B."""
    depth = max(2, WIDTHS[width] // 8 * 2)
    return ARConfig(
        num_classes=10, class_tokens=4, tokens=64, width=width, layers=WIDTHS[width], heads=width // 32,
        head_width=width, head_depth=depth, head_groups=2,
    )  # fmt: skip


def measure_sizes(images: int = 1) -> Iterator[SizeRow]:
    """One row per size, for that many guided images at once, in float32."""
    settings = SamplingSettings.named("balanced", guidance_scale=2.0)
    for width in WIDTHS:
        ar = random_model(config_of(width), torch.float32, torch.device("cpu"))

        def seconds(engine: Engine, ar=ar) -> float:  # type: ignore[no-untyped-def]
            start = perf_counter()
            for _ in islice(decode_random(ar, images, settings, engine), TOKENS):
                pass
            return (perf_counter() - start) / TOKENS

        engines = engine_named("eager"), engine_named("packed")
        pairs = [tuple(seconds(engine) for engine in engines) for _ in range(REPEATS + 1)][1:]
        eager, packed = (median(times) for times in zip(*pairs, strict=True))
        parameters = sum(p.numel() for p in ar.parameters())
        yield SizeRow(parameters, eager, packed, median(a / b for a, b in pairs))


def main(images: int = 1) -> None:
    """Print the table."""
    rows = [
        (f"{row.parameters / 1e6:.1f}", f"{1000 * row.eager:.1f}", f"{1000 * row.packed:.1f}", f"{row.speedup:.2f}")
        for row in measure_sizes(images)
    ]
    columns = ("million parameters", "as written, ms", "packed, ms", "ratio")
    print(markdown_table(columns, rows, padded=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
