"""How long a training step takes: encoding at every step, with cached posteriors, compiled, in bfloat16.

    python -m spherear.lab.step_speed --preset digits

prints a table. Weights are random: a step costs the same with any.

Knows: ways to carry out a training step, and a clock.  Does not know: what a step does.
"""

import statistics
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import torch

from spherear.models.presets import preset
from spherear.models.vae import VAE
from spherear.train import pick_device, seeded, train_ar
from spherear.training.data import load_data
from spherear.training.engine import Engine
from spherear.training.recipes import course
from spherear.training.run import TrainState

WAYS: dict[str, tuple[bool, bool, str]] = {
    "encoding at every step": (False, False, "float32"),
    "cached posteriors": (True, False, "float32"),
    "cached, compiled": (True, True, "float32"),
    "cached, compiled, bfloat16": (True, True, "bfloat16"),
}
"""name -> whether posteriors are cached, the step compiled, and its precision; the first is the yardstick."""


@dataclass(frozen=True)
class StepTime:
    """median, low, high: milliseconds of a step, and the quartiles.  first: seconds before the second step,
    encoding and compiling included.  speedup: over encoding at every step."""

    way: str
    median: float
    low: float
    high: float
    first: float
    speedup: float


def step_times(
    name: str = "digits",
    steps: int = 40,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    ways: Mapping[str, tuple[bool, bool, str]] = WAYS,
) -> list[StepTime]:
    """Time `steps` training steps of a preset's AR model in every way, taken in turn so that a busy machine
    is equally busy for all. batch_size: the recipe's by default."""
    sizes, plan = preset(name), course(name)
    vae = seeded(VAE, sizes.vae, 0)
    data = load_data(plan.data, sizes.vae.image_size)
    runs: dict[str, Generator[TrainState, None, None]] = {}
    for way, (cached, compiled, precision) in ways.items():
        recipe = replace(
            plan.ar, cached_copies=int(cached), precision=precision, batch_size=batch_size or plan.ar.batch_size
        )
        runs[way] = train_ar(sizes.ar, vae, data, recipe, device=device, engine=Engine(compile=compiled))
    first = {way: _seconds(states, device) for way, states in runs.items()}
    for states in runs.values():  # warm-up
        for _ in range(5):
            _seconds(states, device)
    taken = {way: [] for way in runs}  # type: dict[str, list[float]]
    for _ in range(steps):
        for way, states in runs.items():
            taken[way].append(1e3 * _seconds(states, device))
    yardstick = statistics.median(taken[next(iter(runs))])
    return [_row(way, taken[way], first[way], yardstick) for way in runs]


def _row(way: str, taken: list[float], first: float, yardstick: float) -> StepTime:
    low, median, high = statistics.quantiles(taken, n=4)
    return StepTime(way, median, low, high, first, yardstick / median)


def _seconds(states: Generator[TrainState, None, None], device: torch.device | str) -> float:
    began = time.perf_counter()
    next(states)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(preset: str = "digits", steps: int = 40, batch_size: int | None = None, device: str = "auto") -> None:
    """Time training steps and print a table.

    Args:
        preset: digits, shapes, imagenet256-B, -L or -H.
        steps: Steps timed in every way.
        batch_size: Images a step; the recipe's by default.
        device: cpu, cuda, or auto: cuda where there is one.
    """
    where = pick_device(device)
    print(f"{preset}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}, random weights")
    print(f"{'':28} {'ms a step':>9} {'quartiles':>15} {'first, s':>8} {'speed-up':>8}")
    for row in step_times(preset, steps, batch_size, where):
        print(f"{row.way:28} {row.median:9.1f} {row.low:7.1f}-{row.high:7.1f} {row.first:8.1f} {row.speedup:8.2f}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
