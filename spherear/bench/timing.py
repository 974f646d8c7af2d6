"""Timing of repeated runs: median and quartiles, warm-up apart, and peak memory."""

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
    """Seconds per run. median, low, high: of the repeats; low and high are quartiles.  warm_up: of the first run.

    peak_mib: peak GPU memory during the repeats, beyond what was held before; NaN on a CPU, whose allocator
    keeps memory that earlier runs freed (see `bench.growth` for CPU peaks).
    """

    median: float
    low: float
    high: float
    warm_up: float
    peak_mib: float
    repeats: int


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Duration of one run, until the device has finished."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def measure(work: Callable[[], Any], device: torch.device, repeats: int) -> Timing:
    """Run once to warm up, then `repeats` times. Fewer than one: ValueError."""
    require(repeats >= 1, f"repeats is {repeats}; expected at least 1")
    warm_up = seconds(work, device)
    held = reset_peak(device)
    runs = [seconds(work, device) for _ in range(repeats)]
    peak = (peak_memory(device) - held) / 2**20 if device.type == "cuda" else math.nan
    return summary(runs, warm_up, peak)


def summary(runs: list[float], warm_up: float, peak_mib: float) -> Timing:
    """Median and quartiles of `runs`."""
    low, _, high = quantiles(runs, n=4, method="inclusive") if len(runs) > 1 else (runs[0],) * 3
    return Timing(median(runs), low, high, warm_up, peak_mib, len(runs))


def reset_peak(device: torch.device) -> float:
    """Reset the recorded peak; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return process_bytes("VmRSS")


def peak_memory(device: torch.device) -> float:
    """Peak bytes since `reset_peak`: of tensors on a GPU, of the process on a CPU."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else process_bytes("VmHWM")
