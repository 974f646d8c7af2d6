"""Benchmark results as Markdown tables and JSON files."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spherear.bench.decoding import DecodeRow
from spherear.bench.few import HeadRow
from spherear.bench.growth import Growth, Memory
from spherear.bench.image import ImageRow
from spherear.bench.latency import LatencyRow
from spherear.bench.machine import machine
from spherear.bench.steps import StepTime
from spherear.bench.timing import Timing
from spherear.console import command_line, markdown_table
from spherear.models.files import write_json


def write(path: Path, kind: str, rows: Sequence[Any], device: torch.device) -> None:
    """Write rows as JSON, with the command and the machine."""
    values = [dataclasses.asdict(row) for row in rows]
    write_json(path, {"bench": kind, "command": command_line(), "machine": machine(device), "rows": values})


def ms(timing: Timing, per: int = 1) -> str:
    """Median [quartiles] in milliseconds."""
    median, low, high = (1000 * x / per for x in (timing.median, timing.low, timing.high))
    return f"{median:.3g} [{low:.3g}, {high:.3g}]"


def mib(timing: Timing) -> str:
    """Peak memory in MiB, or - if unknown."""
    return "-" if math.isnan(timing.peak_mib) else f"{timing.peak_mib:.0f}"


def decode_table(rows: Sequence[DecodeRow]) -> str:
    """One line per path."""
    head = ("preset", "batch", "dtype", "path", "ms per token", "first, ms", "x reference", "% of floor", "peak MiB",
            "warm-up s")  # fmt: skip
    return markdown_table(head, [
        (r.preset, str(r.batch), r.dtype, r.path, ms(r.timing, r.tokens), ms(r.first), f"{r.speedup:.2f}",
         f"{100 * r.of_floor:.0f}", mib(r.timing), f"{r.timing.warm_up:.2f}")
        for r in rows
    ], padded=True)  # fmt: skip


def latency_table(rows: Sequence[LatencyRow]) -> str:
    """One line per number of models, settings and engine."""
    head = (
        "preset", "models", "settings", "evaluations", "engine", "images", "first images, ms", "grid, ms",
        "grid streamed, ms", "x eager",
    )  # fmt: skip
    return markdown_table(head, [
        (r.preset, str(r.models), r.settings, str(r.evaluations), r.engine, str(r.images), ms(r.first), ms(r.grid),
         ms(r.stream), f"{r.speedup:.2f}") for r in rows
    ], padded=True)  # fmt: skip


def image_table(rows: Sequence[Any]) -> str:
    """One line per engine; then the memory of four settings. Where few tokens were drawn, the image is `about`."""
    head = (
        "preset",
        "settings",
        "engine",
        "dtype",
        "tokens",
        "ms per token",
        "x eager",
        "pixels, ms",
        "whole image, s",
    )
    images = [row for row in rows if isinstance(row, ImageRow)]
    table = markdown_table(head, [
        (r.preset, r.settings, r.engine, r.dtype, str(r.tokens), ms(r.timing), f"{r.speedup:.2f}", ms(r.pixels),
         f"{'' if r.measured else 'about '}{r.image:.3g}")
        for r in images
    ], padded=True)  # fmt: skip
    memory = [
        f"{r.preset}, {r.engine}: {r.one:.0f} MiB with one setting, {r.four:.0f} with four in turn, "
        f"{r.four / r.one:.2f} x"
        for r in rows
        if not isinstance(r, ImageRow)
    ]
    return "\n".join([table.rstrip("\n"), "", *memory])


def head_table(rows: Sequence[HeadRow]) -> str:
    """One line per head and number of evaluations; ratios to the first line of the same size."""
    head = ("preset", "batch", "dtype", "head", "evaluations", "tokens", "head, ms per token", "total, ms per token",
            "head's share", "x head", "x total")  # fmt: skip
    return markdown_table(head, [
        (r.preset, str(r.batch), r.dtype, r.head, str(r.evaluations), str(r.tokens), ms(r.drawing, r.tokens),
         ms(r.total, r.tokens), f"{r.share:.0%}", f"{r.head_speedup:.1f}", f"{r.speedup:.2f}")
        for r in rows
    ], padded=True)  # fmt: skip


def growth_table(rows: Sequence[Growth]) -> str:
    """One line per decode."""
    head = ("preset", "batch", "tokens", "seconds", "ms per token", "r2 of a line", "first eighth, ms",
            "last eighth, ms")  # fmt: skip
    return markdown_table(head, [
        (r.preset, str(r.batch), str(len(r.upto)), f"{r.upto[-1]:.3g}", f"{1000 * r.slope:.3g}", f"{r.r2:.5f}",
         f"{1000 * r.early:.3g}", f"{1000 * r.late:.3g}")
        for r in rows
    ], padded=True)  # fmt: skip


def memory_table(rows: Sequence[Memory]) -> str:
    """One line per number of steps."""
    head = ("preset", "batch", "solver steps", "peak MiB", "cache MiB", "cache MiB in float32")
    return markdown_table(head, [
        (r.preset, str(r.batch), str(steps), f"{peak:.0f}", f"{r.cache_mib:.0f}", f"{r.float32_mib:.0f}")
        for r in rows
        for steps, peak in r.peak_mib.items()
    ], padded=True)  # fmt: skip


def step_table(rows: Sequence[StepTime]) -> str:
    """One line per variant."""
    head = ("preset", "batch", "training step", "ms per step", "x encoding at every step", "first step, s")
    return markdown_table(head, [
        (r.preset, str(r.batch), r.variant, ms(r.timing), f"{r.speedup:.2f}", f"{r.timing.warm_up:.1f}") for r in rows
    ], padded=True)  # fmt: skip
