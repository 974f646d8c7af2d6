"""Decoding benchmarks: the plain reference and every engine on the same random weights, labels and noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from spherear.bench.floor import floor_seconds
from spherear.bench.machine import memory_bytes
from spherear.bench.timing import Timing, measure
from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import one_of, require
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.sampling.decode import EAGER, Step, decode
from spherear.sampling.engines import Engine, engine_named
from spherear.sampling.noise import Noise, seeded_noise
from spherear.sampling.packed import can_pack_bfloat16
from spherear.sampling.placement import SMALL
from spherear.sampling.reference import reference_steps
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.geometry import project

PATHS = {
    "cpu": ("reference", "eager", "numpy", "packed"),
    "cuda": ("reference", "eager", "cuda_graphs"),
}
COMPILED_PATHS = {
    "cpu": ("compiled",),
    "cuda": ("reference, compiled", "compiled", "compiled_cuda_graphs"),
}


@dataclass(frozen=True)
class DecodeRow:
    """One path at one size. timing: of `tokens` tokens.  first: of the first token alone, including the start.

    speedup: the reference's median over this one's.
    of_floor: the floor (see `bench.floor`) over this median; 1 is the best that the algorithm allows.
    """

    preset: str
    batch: int
    dtype: str
    path: str
    tokens: int
    timing: Timing
    first: Timing
    speedup: float
    of_floor: float


def random_model(config: ARConfig, dtype: torch.dtype, device: torch.device) -> SphereAR:
    """A model with seeded random weights everywhere, so that no layer outputs zeros."""
    place = device if device.type == "cuda" else torch.device("cpu")  # where drawing a billion weights takes no time
    with place:
        ar = seeded(0, SphereAR, config)
    generator = torch.Generator(place).manual_seed(0)
    with torch.no_grad():
        for weight in ar.head.parameters():
            weight.normal_(std=1 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.1, generator=generator)
    return ar.to(device, dtype).eval()


@lru_cache(maxsize=1)
def _kept_model(config: ARConfig, dtype: torch.dtype, device: torch.device) -> SphereAR:
    """One model for all batches."""
    return random_model(config, dtype, device)


def fits(config: ARConfig, rows: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights (twice, as packing copies them) and the cache take less than 80 % of the memory."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in SphereAR(config).parameters())
    cache = 2 * config.layers * rows * (config.class_tokens + config.tokens) * config.width
    return (2 * weights + cache) * dtype.itemsize < 0.8 * memory_bytes(device)


def decode_random(ar: SphereAR, batch: int, settings: SamplingSettings, engine: Engine = EAGER) -> Iterator[Step]:
    """A decode of all classes in turn from seeded noise, with tokens of length √dim."""
    labels, noise, radius = _inputs(ar, batch)
    return decode(ar, labels, settings, noise, lambda z: project(z, radius), engine=engine)


def _inputs(ar: SphereAR, batch: int) -> tuple[Tensor, Noise, float]:
    """Labels, noise on the model's device, and the length of tokens."""
    device, noise = ar.proj_in.weight.device, seeded_noise(range(batch))
    labels = torch.arange(batch, device=device) % ar.config.num_classes
    return labels, lambda index, shape: noise(index, shape).to(device), math.sqrt(ar.config.latent_dim)


Run = Callable[[int], list[Tensor]]


def chosen_paths(device: torch.device, compiled: bool, paths: Sequence[str] = ()) -> tuple[str, ...]:
    """The paths to measure on a device: all, or the reference and `paths`. ValueError for one that it has not."""
    plain, more = PATHS[device.type], COMPILED_PATHS[device.type]
    for path in paths:
        one_of("path", path, plain + more)
    return ("reference", *(p for p in paths if p != "reference")) if paths else plain + (more if compiled else ())


def runs(
    ar: SphereAR, batch: int, settings: SamplingSettings, compiled: bool, paths: Sequence[str] = ()
) -> Iterator[tuple[str, Run]]:
    """Every path of the model's device, or those chosen, as a function that draws the first n tokens of a batch."""
    device = ar.proj_in.weight.device

    def engine_run(name: str) -> Run:
        engine = engine_named(name)

        def run(tokens: int) -> list[Tensor]:
            return [step.token for step in islice(decode_random(ar, batch, settings, engine), tokens)]

        return run

    def reference_run(**options: Any) -> Run:
        @torch.no_grad()
        def run(tokens: int) -> list[Tensor]:
            labels, noise, radius = _inputs(ar, batch)
            steps = reference_steps(ar, labels, settings, noise, radius, **options)
            return list(islice(steps, tokens))

        return run

    for path in chosen_paths(device, compiled, paths):
        if not _can_run(path, ar):
            continue
        if not path.startswith("reference"):
            yield path, engine_run(path)
        else:
            yield path, reference_run(**({"transform": torch.compile} if "compiled" in path else {}))


def _can_run(path: str, ar: SphereAR) -> bool:
    """Whether a path is for models like this one: bfloat16 is not packed everywhere, numpy is for small ones."""
    dtype = ar.proj_in.weight.dtype
    if path == "numpy":
        return dtype == torch.float32 and sum(p.numel() for p in ar.parameters()) <= SMALL
    return path != "packed" or dtype != torch.bfloat16 or can_pack_bfloat16()


def bench_decode(
    name: str,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    settings: SamplingSettings,
    tokens: int,
    repeats: int,
    compiled: bool,
    paths: Sequence[str] = (),
) -> Iterator[DecodeRow]:
    """One row per path, the reference first. ValueError, when called, for more tokens than an image has."""
    config = preset(name).ar
    require(1 <= tokens <= config.tokens, f"tokens is {tokens}; expected 1 to {config.tokens}")

    def rows() -> Iterator[DecodeRow]:
        conditions = batch * (1 if settings.guidance_scale == 1.0 else 2)
        ar = _kept_model(config, dtype, device)
        floor = tokens * floor_seconds(config, conditions, settings.evaluations, tokens // 2, dtype, device)
        baseline = math.nan
        for path, run in runs(ar, batch, settings, compiled, paths):
            timing = measure(lambda run=run: run(tokens), device, repeats)  # type: ignore[misc]
            first = measure(lambda run=run: run(1), device, repeats)  # type: ignore[misc]
            baseline = timing.median if path == "reference" else baseline
            label = str(dtype).removeprefix("torch.")
            yield DecodeRow(
                name, batch, label, path, tokens, timing, first, baseline / timing.median, floor / timing.median
            )

    return rows()
