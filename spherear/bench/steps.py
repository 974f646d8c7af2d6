"""Time of a training step: encoding at every step, with cached posteriors, compiled, in bfloat16.

`spherear bench train` prints a table. Weights are random, because they do not affect the time.
"""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace

import torch

from spherear.bench.timing import Timing, seconds, summary
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.models.vae import VAE
from spherear.train import train_ar
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from spherear.training.recipes import recipes
from spherear.training.run import TrainState

WARM_UP = 5  # steps after the first that are not counted

VARIANTS: dict[str, tuple[bool, bool, str]] = {
    "encoding at every step": (False, False, "float32"),
    "cached posteriors": (True, False, "float32"),
    "cached, compiled": (True, True, "float32"),
    "cached, compiled, bfloat16": (True, True, "bfloat16"),
}
"""name -> whether posteriors are cached, the step compiled, and its precision; the first is the baseline."""


@dataclass(frozen=True)
class StepTime:
    """One variant. timing: per step; its warm-up is the first step, including encoding and compiling.

    speedup: over encoding at every step.
    """

    preset: str
    batch: int
    variant: str
    timing: Timing
    speedup: float


def step_times(
    name: str = "digits",
    steps: int = 40,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    variants: Mapping[str, tuple[bool, bool, str]] = VARIANTS,
) -> list[StepTime]:
    """Time `steps` training steps of a preset's AR model in every variant. Variants alternate, so that load on
    the machine affects all equally. batch_size: the recipe's by default."""
    sizes, plan, torch_device = preset(name), recipes(name), torch.device(device)
    batch = batch_size or plan.ar.batch_size
    vae = seeded(0, VAE, sizes.vae)
    data = load_data(plan.data, sizes.vae.image_size)
    runs: dict[str, Generator[TrainState, None, None]] = {}
    for variant, (cached, compiled, precision) in variants.items():
        recipe = replace(plan.ar, cached_copies=int(cached), precision=precision, batch_size=batch)
        runs[variant] = train_ar(sizes.ar, vae, data, recipe, device=device, execution=Execution(compile=compiled))
    first = {variant: seconds(lambda s=states: next(s), torch_device) for variant, states in runs.items()}  # type: ignore[misc]
    durations = dict[str, list[float]]((variant, []) for variant in runs)
    for _ in range(WARM_UP + steps):
        for variant, states in runs.items():
            durations[variant].append(seconds(lambda s=states: next(s), torch_device))  # type: ignore[misc]
    timings = {variant: summary(durations[variant][WARM_UP:], first[variant], math.nan) for variant in runs}
    baseline = next(iter(timings.values())).median
    return [StepTime(name, batch, variant, timing, baseline / timing.median) for variant, timing in timings.items()]
