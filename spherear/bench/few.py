"""What few evaluations save: a guided batch with 101 evaluations of a velocity, and with 1, 2 and 4 of a mean velocity.

`spherear bench head` prints a table. All weights are random; the cases take turns in every round, so that load on the
machine affects all equally. Time in the head is measured around the function that draws a token.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from spherear.bench.decoding import decode_random, random_model
from spherear.bench.timing import Timing, summary, synchronise
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.layers import KVCache
from spherear.models.presets import preset
from spherear.sampling.engines import Engine, Session
from spherear.sampling.head_sampling import sample_token
from spherear.sampling.settings import SamplingSettings

CASES = (
    ("velocity", SamplingSettings()),
    *(("mean_velocity", SamplingSettings(solver="euler", steps=steps)) for steps in (1, 2, 4)),
)
"""Heads and settings; the first, the published settings, is what the others are compared with."""


@dataclass(frozen=True)
class HeadRow:
    """One head and its settings. drawing, total: seconds in the head, and of all, for `tokens` tokens of the batch.

    share: of the head in the total.  head_speedup, speedup: of the first case's time in the head, and of its total,
    over this one's, the median within rounds.
    """

    preset: str
    batch: int
    dtype: str
    head: str
    evaluations: int
    tokens: int
    drawing: Timing
    total: Timing
    share: float
    head_speedup: float
    speedup: float


class Timed(Engine):
    """As written, with a stopwatch around the drawing of a token. seconds: in the head so far."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session whose `sample_token` is timed."""
        return nullcontext(Session(ar, cache or ar.kv_cache(rows), self._timed))

    def _timed(self, head: object, condition: Tensor, *inputs: object) -> Tensor:
        synchronise(condition.device)
        start = time.perf_counter()
        token = sample_token(head, condition, *inputs)  # type: ignore[arg-type]
        synchronise(condition.device)
        self.seconds += time.perf_counter() - start
        return token


def run_seconds(ar: SphereAR, batch: int, settings: SamplingSettings, tokens: int) -> tuple[float, float]:
    """Seconds in the head and of all, for the first tokens of a guided batch."""
    engine, device = Timed(), ar.proj_in.weight.device
    synchronise(device)
    start = time.perf_counter()
    for _ in islice(decode_random(ar, batch, settings, engine), tokens):
        pass
    synchronise(device)
    return engine.seconds, time.perf_counter() - start


def bench_head(
    name: str, batch: int, dtype: torch.dtype, device: torch.device, tokens: int, repeats: int
) -> Iterator[HeadRow]:
    """One row per case, `repeats` rounds after one to warm up. ValueError, when called, for too many tokens."""
    config = preset(name).ar
    require(1 <= tokens <= config.tokens, f"tokens is {tokens}; expected 1 to {config.tokens}")

    def rows() -> Iterator[HeadRow]:
        models = {head: random_model(replace(config, head=head), dtype, device) for head, _ in CASES}
        found = [[run_seconds(models[head], batch, s, tokens) for head, s in CASES] for _ in range(1 + repeats)]
        for case, (head, settings) in enumerate(CASES):
            drawing, total = ([times[case][part] for times in found] for part in (0, 1))
            ratios = [median(t[0][part] / t[case][part] for t in found[1:]) for part in (0, 1)]
            head_time, whole = (summary(times[1:], times[0], math.nan) for times in (drawing, total))
            yield HeadRow(
                name, batch, str(dtype).removeprefix("torch."), head, settings.evaluations, tokens, head_time,
                whole, head_time.median / whole.median, ratios[0], ratios[1],
            )  # fmt: skip

    return rows()
