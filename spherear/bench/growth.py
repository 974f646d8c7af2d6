"""How decoding scales: time over tokens, memory over solver steps, and the size of the KV cache."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context

import torch

from spherear.bench.decoding import random_model
from spherear.bench.timing import peak_memory, reset_peak, synchronise
from spherear.models.ar import SphereAR
from spherear.models.presets import preset
from spherear.sampling.decode import Step, decode
from spherear.sampling.noise import seeded_noise
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.geometry import project


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
    labels = torch.arange(batch) % ar.config.num_classes
    radius = ar.config.latent_dim**0.5

    def steps() -> Iterator[Step]:
        return decode(ar, labels, settings, seeded_noise(range(batch)), lambda z: project(z, radius))

    next(steps())
    start, upto = time.perf_counter(), []
    for _ in steps():
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
    """Peak memory of the first tokens of a guided decode, by solver steps; and the size of the KV cache.

    Each is measured in its own process, because an allocator that has freed memory hides the next peak.
    """
    peaks = {}
    for count in counts:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[count] = pool.submit(decode_peak, name, batch, dtype, device, count, tokens).result() / 2**20
    with torch.device("meta"):
        nbytes = SphereAR(preset(name).ar).to(dtype).kv_cache(2 * batch).nbytes
    float32_bytes = nbytes * torch.float32.itemsize // dtype.itemsize
    return Memory(name, batch, peaks, nbytes / 2**20, float32_bytes / 2**20)


def decode_peak(name: str, batch: int, dtype: torch.dtype, device: torch.device, steps: int, tokens: int) -> float:
    """Peak bytes of a decode's first tokens, beyond those of the model."""
    ar = random_model(preset(name).ar, dtype, device)
    labels = torch.arange(batch) % ar.config.num_classes
    radius = ar.config.latent_dim**0.5
    settings = SamplingSettings(guidance_scale=2.0, steps=steps)
    held = reset_peak(device)
    for _ in islice(decode(ar, labels, settings, seeded_noise(range(batch)), lambda z: project(z, radius)), tokens):
        pass
    return peak_memory(device) - held


def straight_line(upto: Sequence[float]) -> tuple[float, float]:
    """Slope and coefficient of determination of the least-squares line through values at 1, 2, 3, ..."""
    y = torch.tensor(upto, dtype=torch.float64)
    x = torch.arange(1, len(y) + 1, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    residuals = y - y.mean() - slope * (x - x.mean())
    return float(slope), float(1 - residuals.square().sum() / (y - y.mean()).square().sum())
