"""`spherear bench`: default sizes per device, the requested measurement, its table and its file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from spherear.bench import report
from spherear.bench.decoding import DecodeRow, bench_decode, chosen_paths, fits
from spherear.bench.few import bench_head
from spherear.bench.growth import bench_growth, bench_memory
from spherear.bench.image import SETTINGS, bench_image, cases_on, settings_memory
from spherear.bench.latency import bench_latency
from spherear.bench.machine import machine
from spherear.bench.steps import VARIANTS, step_times
from spherear.models.config import one_of, require
from spherear.models.presets import preset
from spherear.sampling.settings import SamplingSettings
from spherear.training.recipes import PRECISIONS

DTYPES = {name: getattr(torch, name) for name in PRECISIONS}
HEAVY = 1e8  # with more parameters, a CPU draws two tokens of an image, not all


@dataclass(frozen=True)
class Request:
    """What to measure. Empty tuples and zeros: defaults of the measurement and the device."""

    presets: tuple[str, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    tokens: int
    steps: int
    repeats: int
    compiled: bool
    device: torch.device
    paths: tuple[str, ...] = ()


def bench(kind: str, request: Request, out: Path | None) -> int:
    """Measure, print a table, and write JSON if `out` is given. Unknown kinds, presets or dtypes: ValueError."""
    one_of("bench", kind, KINDS)
    for name in request.dtypes:
        one_of("dtype", name, DTYPES)
    require(min((1, *request.batches)) >= 1, f"batches are {request.batches}; expected at least 1 each")
    require(min(request.tokens, request.steps, request.repeats) >= 0, "tokens, steps and repeats: expected 0 or more")
    measurement, table = KINDS[kind]
    rows = measurement(request)
    print(table(rows))
    print("; ".join(f"{name}: {value}" for name, value in machine(request.device).items()))
    if out is not None:
        report.write(out, kind, rows, request.device)
        print(out)
    return 0


def _cases(request: Request, presets: tuple[str, ...], batches: tuple[int, ...]) -> list[tuple[str, int, torch.dtype]]:
    """All requested combinations of preset, batch and dtype that fit; `presets` and `batches` are the defaults."""
    cases = []
    for name in request.presets or presets:
        for batch in request.batches or batches:
            for dtype in request.dtypes or ("float32",):
                if fits(preset(name).ar, 2 * batch, DTYPES[dtype], request.device):
                    cases.append((name, batch, DTYPES[dtype]))
                else:
                    print(f"{name}, batch {batch}, {dtype}: left out, it does not fit the memory")
    return cases


def _decode(request: Request) -> list[Any]:
    rows: list[DecodeRow] = []
    chosen_paths(request.device, request.compiled, request.paths)  # an unknown one is refused before anything is made
    cases = _cases(request, ("digits",), (1, 16))
    for name, batch, dtype in (bar := tqdm(cases, "decoding", unit="case")):
        bar.set_postfix_str(f"{name}, batch {batch}")
        tokens = request.tokens or _tokens(name, request.device)
        settings = SamplingSettings(steps=request.steps or 100)
        repeats = request.repeats or 5
        rows += bench_decode(
            name, batch, dtype, request.device, settings, tokens, repeats, request.compiled, request.paths
        )
    return rows


def _tokens(name: str, device: torch.device) -> int:
    """All tokens of an image, or two if all would take minutes."""
    config = preset(name).ar
    heavy = config.layers * 12 * config.width**2 > HEAVY and device.type == "cpu"
    return 2 if heavy else config.tokens


def _latency(request: Request) -> list[Any]:
    batches, repeats = request.batches or (16,), request.repeats or 11
    cases = [(name, batch) for name in request.presets or ("digits",) for batch in batches]
    return [row for case in cases for row in bench_latency(*case, request.device, 2.0, repeats)]


def _growth(request: Request) -> list[Any]:
    settings = SamplingSettings(guidance_scale=2.0, solver="euler", steps=request.steps or 4)
    cases = _cases(request, ("imagenet256-B",), (1,))
    return [bench_growth(name, batch, dtype, request.device, settings) for name, batch, dtype in cases]


def _memory(request: Request) -> list[Any]:
    cases = _cases(request, ("imagenet256-B",), (1,))
    counts = (request.steps,) if request.steps else (10, 20, 40)
    return [bench_memory(name, batch, dtype, request.device, counts) for name, batch, dtype in cases]


def _train(request: Request) -> list[Any]:
    """Compiled variants only if requested."""
    variants = {name: row for name, row in VARIANTS.items() if request.compiled or not row[1]}
    return [
        row
        for name in request.presets or ("digits",)
        for batch in request.batches or (None,)
        for row in step_times(name, request.steps or 40, batch, request.device, variants)
    ]


def _image(request: Request) -> list[Any]:
    rows: list[Any] = []
    for name in request.presets or ("imagenet256-B",):
        cases = cases_on(request.device, [DTYPES[dtype] for dtype in request.dtypes])
        for settings in SETTINGS:
            few = 8 if settings == "reference" and _tokens(name, request.device) < preset(name).ar.tokens else 0
            tokens = request.tokens or few or preset(name).ar.tokens
            rows += bench_image(name, settings, cases, request.device, tokens, request.repeats or 2)
        if request.device.type == "cpu":
            rows.append(settings_memory(name))
    return rows


def _head(request: Request) -> list[Any]:
    rows: list[Any] = []
    for name, batch, dtype in _cases(request, ("imagenet256-B",), (64,)):
        rows += bench_head(name, batch, dtype, request.device, request.tokens or 2, request.repeats or 3)
    return rows


Kind = tuple[Callable[[Request], list[Any]], Callable[[Sequence[Any]], str]]
KINDS: dict[str, Kind] = {
    "decode": (_decode, report.decode_table),
    "latency": (_latency, report.latency_table),
    "growth": (_growth, report.growth_table),
    "memory": (_memory, report.memory_table),
    "train": (_train, report.step_table),
    "image": (_image, report.image_table),
    "head": (_head, report.head_table),
}
