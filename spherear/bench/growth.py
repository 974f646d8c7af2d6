"""How decoding scales: time over tokens, memory over solver steps, and the size of the KV cache."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from spherear.bench.decoding import decode_random, random_model
from spherear.bench.timing import synchronise
from spherear.models.presets import preset
from spherear.sampling.settings import SamplingSettings
from spherear.training.dry_run import peak_bytes


@dataclass(frozen=True)
class Growth:
    """upto: seconds after each token.  slope, r2: of the straight line through them, in seconds per token.

    early, late: median seconds per token in the first and in the last eighth.
    """

    preset: str
    batch: int
    upto: list[float]
    slope: float
    r2: float
    early: float
    late: float


@dataclass(frozen=True)
class Memory:
    """peak_mib: of a decode, by number of solver steps.  cache_mib: of the KV cache.  float32_mib: of it in float32."""

    preset: str
    batch: int
    peak_mib: dict[int, float]
    cache_mib: float
    float32_mib: float


def bench_growth(name: str, batch: int, dtype: torch.dtype, device: torch.device, settings: SamplingSettings) -> Growth:
    """One decode of all tokens, timed token by token, after a warm-up of one token."""
    ar = random_model(preset(name).ar, dtype, device)
    next(decode_random(ar, batch, settings))
    start, upto = time.perf_counter(), []
    for _ in decode_random(ar, batch, settings):
        synchronise(device)
        upto.append(time.perf_counter() - start)
    slope, r2 = straight_line(upto)
    per_token = torch.tensor(upto).diff()
    eighth = max(1, len(per_token) // 8)
    early, late = float(per_token[:eighth].median()), float(per_token[-eighth:].median())
    return Growth(name, batch, upto, slope, r2, early, late)


def bench_memory(
    name: str, batch: int, dtype: torch.dtype, device: torch.device, counts: Sequence[int], tokens: int = 2
) -> Memory:
    """Peak memory of the first tokens of a guided decode, by solver steps; and the size of the KV cache."""
    ar = random_model(preset(name).ar, dtype, device)

    def peak(steps: int) -> int:
        settings = SamplingSettings(guidance_scale=2.0, steps=steps)
        return peak_bytes(lambda: list(islice(decode_random(ar, batch, settings), tokens)), device)

    peaks = {steps: peak(steps) / 2**20 for steps in counts}
    nbytes = ar.to("meta").kv_cache(2 * batch).nbytes
    float32_bytes = nbytes * torch.float32.itemsize // dtype.itemsize
    return Memory(name, batch, peaks, nbytes / 2**20, float32_bytes / 2**20)


def straight_line(upto: Sequence[float]) -> tuple[float, float]:
    """Slope and coefficient of determination of the least-squares line through values at 1, 2, 3, ..."""
    y = torch.tensor(upto, dtype=torch.float64)
    x = torch.arange(1, len(y) + 1, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    residuals = y - y.mean() - slope * (x - x.mean())
    return float(slope), float(1 - residuals.square().sum() / (y - y.mean()).square().sum())
