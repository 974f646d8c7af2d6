"""What one guided image costs with random weights: time per token and of the whole image, for every engine and dtype.

`spherear bench image` prints a table. Engines alternate, so that load on the machine affects all equally.
"""

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean, median
from typing import Any

import torch

from spherear.bench.decoding import decode_random, random_model
from spherear.bench.timing import Timing, measure, summary, synchronise
from spherear.models.ar import SphereAR
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.models.vae import VAE
from spherear.sampling.engines import Engine, engine_named
from spherear.sampling.packed import can_halve, can_pack, can_pack_bfloat16
from spherear.sampling.placement import Placement, choose
from spherear.sampling.settings import SamplingSettings

SETTINGS = ("balanced", "reference")
FOUR: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.9}, {"steps": 5}, {"solver": "heun", "steps": 4})
"""Changes of `balanced`: four settings, with which one process draws in turn."""


@dataclass(frozen=True)
class ImageRow:
    """One engine and dtype with one of the named settings. timing: of a token.  tokens: how many are drawn.

    speedup: of the first engine's time over this one's, the median within rounds.  pixels: decoding all tokens.
    image: seconds of the whole image; measured where `tokens` is all of them, otherwise estimated from `timing`.
    """

    preset: str
    settings: str
    engine: str
    dtype: str
    tokens: int
    timing: Timing
    speedup: float
    pixels: Timing
    image: float
    measured: bool


@dataclass(frozen=True)
class SettingsMemory:
    """Peak memory of a process that draws a token with one setting, and with four in turn, in MiB; NaN if unknown."""

    preset: str
    engine: str
    one: float
    four: float


def cases_on(device: torch.device, dtypes: Sequence[torch.dtype] = ()) -> list[tuple[str, torch.dtype]]:
    """Engines and dtypes that this machine has, the slowest first; of these dtypes, or of those it computes fast."""
    if device.type != "cpu":
        graphs = ("eager", "cuda_graphs") if device.type == "cuda" else ("eager",)
        return [(name, dtype) for dtype in dtypes or (torch.float32, torch.bfloat16) for name in graphs]
    fast = (torch.float32, torch.bfloat16) if can_pack_bfloat16() else (torch.float32,)
    cases = []
    for dtype in dtypes or fast:
        packs = can_pack_bfloat16() if dtype == torch.bfloat16 else can_pack()
        cases += [("eager", dtype), *([("packed", dtype)] if packs else [])]
        cases += [("half", dtype)] if dtype == torch.float32 and can_halve() else []
    return cases


def bench_image(
    name: str, settings: str, cases: Sequence[tuple[str, torch.dtype]], device: torch.device, tokens: int, repeats: int
) -> Iterator[ImageRow]:
    """One row per case: the first `tokens` tokens of one guided image, `repeats` times after one to warm up."""
    config = preset(name)
    plan = SamplingSettings.named(settings)
    models = {dtype: random_model(config.ar, dtype, device) for _, dtype in cases}
    engines = [engine_named(engine) for engine, _ in cases]
    rounds: list[list[list[float]]] = [[] for _ in cases]
    for _ in range(1 + repeats):
        for case, (_, dtype) in enumerate(cases):
            rounds[case].append(token_seconds(models[dtype], plan, engines[case], device, tokens))
    pixels = measure(pixel_decoder(name, device), device, repeats)
    for (engine, dtype), found in zip(cases, rounds, strict=True):
        timing = summary([t for times in found[1:] for t in times], sum(found[0]), math.nan)
        ratios = [fmean(first) / fmean(own) for first, own in zip(rounds[0][1:], found[1:], strict=True)]
        whole = tokens == config.ar.tokens
        drawing = median(map(sum, found[1:])) if whole else config.ar.tokens * timing.median
        yield ImageRow(
            name, settings, engine, str(dtype).removeprefix("torch."), tokens, timing, median(ratios), pixels,
            drawing + pixels.median, whole,
        )  # fmt: skip


def token_seconds(
    ar: SphereAR, settings: SamplingSettings, engine: Engine, device: torch.device, tokens: int
) -> list[float]:
    """Seconds of every token of one image; the first includes the start."""
    times, start = list[float](), time.perf_counter()
    for _ in islice(decode_random(ar, 1, settings, engine), tokens):
        synchronise(device)
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return times


def pixel_decoder(name: str, device: torch.device) -> Callable[[], torch.Tensor]:
    """A function that decodes the tokens of one image, with random weights."""
    config = preset(name).vae
    vae = seeded(0, VAE, config).to(device).eval()
    tokens = vae.project(torch.randn(1, config.tokens, config.latent_dim, generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def decode() -> torch.Tensor:
        return vae.decode(tokens.to(device))

    return decode


def settings_memory(name: str) -> SettingsMemory:
    """Of the engine that suits the model on a CPU, each in a process of its own."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SphereAR(preset(name).ar).parameters())
    placement = choose(parameters, Placement(device="cpu"))
    one, four = (_in_a_process(name, placement.engine, placement.dtype, count) for count in (1, 4))
    return SettingsMemory(name, placement.engine, one, four)


def _in_a_process(*arguments: object) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(peak_mib, arguments)


def peak_mib(name: str, engine: str, dtype: str, settings: int) -> float:
    """Peak memory of this process after it has drawn a token with each of so many settings, in MiB."""
    if sys.platform == "win32":
        return math.nan
    import resource

    ar, runner = random_model(preset(name).ar, getattr(torch, dtype), torch.device("cpu")), engine_named(engine)
    for changes in FOUR[:settings]:
        next(decode_random(ar, 1, SamplingSettings.named("balanced", **changes), runner))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
