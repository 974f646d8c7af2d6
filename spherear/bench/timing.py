"""How long something takes: medians of repeated runs with their spread, warm-up apart, and the memory it peaks at.

Knows: clocks, devices that work on after a call returns, and where an operating system tells memory.
Does not know: what is measured.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from spherear.bench.machine import process_bytes
from spherear.models.config import require


@dataclass(frozen=True)
class Timing:
    """Seconds of a run. median, low, high: of the repeats, low and high being quartiles.  warm_up: of the first run.

    peak_mib: a GPU's memory at its peak during the repeats, beyond what was held before; NaN on a CPU, whose
    allocator keeps what earlier runs gave back (see `bench.growth` for its peaks).
    """

    median: float
    low: float
    high: float
    warm_up: float
    peak_mib: float
    repeats: int


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Of one run, to its end on the device."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def measure(work: Callable[[], Any], device: torch.device, repeats: int) -> Timing:
    """Run once to warm up, then `repeats` times. Fewer than one: ValueError."""
    require(repeats >= 1, f"repeats is {repeats}; expected at least 1")
    warm_up = seconds(work, device)
    held = reset_peak(device)
    runs = [seconds(work, device) for _ in range(repeats)]
    peak = (peak_memory(device) - held) / 2**20 if device.type == "cuda" else math.nan
    return summary(runs, warm_up, peak)


def summary(runs: list[float], warm_up: float, peak_mib: float) -> Timing:
    """The median of runs and their quartiles."""
    low, _, high = quantiles(runs, n=4, method="inclusive") if len(runs) > 1 else (runs[0],) * 3
    return Timing(median(runs), low, high, warm_up, peak_mib, len(runs))


def reset_peak(device: torch.device) -> float:
    """Forget earlier peaks; returns the bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return process_bytes("VmRSS")


def peak_memory(device: torch.device) -> float:
    """Bytes at the peak since: of tensors on a GPU, of the process on a CPU."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else process_bytes("VmHWM")
