"""The cost of a training run, estimated before it starts: parameters, operations, memory and time."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import require
from spherear.models.layers import seeded
from spherear.models.vae import VAE, VAEConfig
from spherear.training.adversarial import Extras
from spherear.training.build import autocast, recompute_blocks
from spherear.training.data.propose import values_per_number
from spherear.training.jobs import Execution
from spherear.training.objectives import ARObjective, vae_losses
from spherear.training.recipes import ARRecipe, Recipe, VAERecipe
from spherear.training.run import keyed_generator

StepFunction = Callable[[int], torch.Tensor]
FLOAT = 4  # bytes per weight, gradient or moment
TRIAL = (2, 4)  # batch sizes of the measured steps
GIB = 2**30
USABLE = 0.95  # of a device's memory; the rest is left to libraries and to gaps between tensors


@dataclass(frozen=True)
class Estimate:
    """parameters: of the model.  flops: per step on all devices, forward and backward.
    fixed: bytes per device of weights, gradients, moments and EMA.  activations: bytes per device of one micro-batch.
    per_image: bytes that every further image of a micro-batch adds.
    """

    parameters: int
    flops: int
    fixed: int
    activations: int
    per_image: int = 0

    @property
    def memory(self) -> int:
        """Peak bytes per device."""
        return self.fixed + self.activations

    def seconds(self, steps: int, teraflops: float, devices: int) -> float:
        """Duration of `steps`; `teraflops` are 10^12 operations per second and device."""
        return steps * self.flops / (1e12 * teraflops * devices)


def estimate(model: nn.Module, step: StepFunction, recipe: Recipe, execution: Execution, devices: int = 1) -> Estimate:
    """Measure small steps and extrapolate: memory to the size of a micro-batch, operations to the size of a batch.

    step: number of images -> their loss, on the model's device.
    """
    device = next(model.parameters()).device
    step(TRIAL[0]).backward()  # allocates the gradients, which every later step already holds

    def trial(images: int) -> int:
        return peak_bytes(lambda: step(images).backward(), device)

    small, large = map(trial, TRIAL)
    with FlopCounterMode(display=False) as counter:
        step(1).backward()
    per_image = (large - small) / (TRIAL[1] - TRIAL[0])
    micro_batch = recipe.batch_size // recipe.micro_batches_on(devices)
    parameters = sum(p.numel() for p in model.parameters())
    copies = 4 + (recipe.ema_decay > 0 and not execution.average_on)  # weight, gradient, two moments, EMA
    return Estimate(
        parameters,
        counter.get_total_flops() * recipe.batch_size,
        FLOAT * copies * parameters // (devices if execution.sharded else 1),
        int(small + per_image * (micro_batch - TRIAL[0])),
        int(per_image),
    )


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Without what libraries in C++ write to stderr: the profiler writes a line whenever it starts or stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_memory(
    measure: Callable[[Execution], Estimate], recipe: Recipe, execution: Execution, devices: int, limit: int
) -> Estimate:
    """`measure(execution)`, if its memory fits into `limit` bytes on each device; 0: any does.

    Otherwise ValueError, which names the options that would make it fit, with the memory that each takes.
    """
    found = measure(execution)
    if not limit or found.memory <= USABLE * limit:
        return found
    options = _smaller(found, recipe, devices)
    if not execution.checkpointing:
        lighter = measure(replace(execution, checkpointing=True))
        options |= {"--checkpointing": lighter.memory}
        options |= {f"--checkpointing {name}": size for name, size in _smaller(lighter, recipe, devices).items()}
    if devices > 1 and not execution.sharded:
        options |= {"--sharded": found.memory - found.fixed + found.fixed // devices}
    fitting = [f"{name} ({size / GIB:.3g} GiB)" for name, size in options.items() if size <= USABLE * limit]
    listed = (
        f"that fits with {', or '.join(fitting[:3])}" if fitting else "none of --checkpointing, --micro-batches fits"
    )
    raise ValueError(
        f"a step takes {found.memory / GIB:.3g} GiB on each of {devices} devices; expected at most "
        f"{USABLE * limit / GIB:.3g}, {USABLE:.0%} of a device's memory: {listed}"
    )


def _smaller(found: Estimate, recipe: Recipe, devices: int) -> dict[str, int]:
    """Memory by number of micro-batches: with twice as many, and so on, down to one image on each device."""
    now, sizes = recipe.micro_batches_on(devices), {}
    images = recipe.batch_size // now
    for count in range(2 * now, recipe.batch_size + 1, now):
        factor = count // now
        if recipe.batch_size % count == 0 and factor & (factor - 1) == 0:  # powers of two
            saved = found.per_image * (images - recipe.batch_size // count)
            sizes[f"--micro-batches {count}"] = found.memory - saved
    return sizes


def device_memory(device: torch.device, given: float) -> int:
    """Bytes of a device: `given` in GiB, or else what a GPU has; 0 if unknown. Not a finite size: ValueError."""
    require(0 <= given < 1e6, f"device_memory is {given}; expected GiB, or 0 for what the device has")
    if given:
        return int(given * GIB)
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def peak_bytes(work: Callable[[], object], device: torch.device | str) -> int:
    """Peak memory of `work` in bytes, beyond what was held before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    profile: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with silent_stderr():
        profile.start()
    work()
    with silent_stderr():
        profile.stop()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def lasting(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def tokens_line(vae: VAEConfig) -> str:
    """The tokens of a VAE, and how much a number of them stands for."""
    return (
        f"tokens              {vae.tokens} of {vae.patch}x{vae.patch} pixels, {vae.latent_dim} numbers each; "
        f"{values_per_number(vae)}"
    )


def report(found: Estimate, recipe: Recipe, images: int, devices: int, teraflops: float) -> str:
    """The estimate as lines of text."""
    epochs = recipe.steps * recipe.batch_size / images
    time = lasting(found.seconds(recipe.steps, teraflops, devices))
    return (
        f"parameters          {found.parameters:,}\n"
        f"steps               {recipe.steps:,} of {recipe.batch_size} images: {epochs:.1f} epochs of {images:,}\n"
        f"arithmetic          {found.flops / 1e12:.4g} TFLOP per step, forward and backward\n"
        f"memory              {found.memory / GIB:.3f} GiB on each of {devices} devices: {found.fixed / GIB:.3f} for "
        f"weights, gradients, moments and average, {found.activations / GIB:.3f} for "
        f"activations of {recipe.batch_size // recipe.micro_batches_on(devices)} images\n"
        f"time                {time} at {teraflops:g} TFLOP/s per device"
    )


def vae_step(
    config: VAEConfig, recipe: VAERecipe, execution: Execution, device: torch.device
) -> tuple[nn.Module, StepFunction]:
    """A VAE, and its training step on grey images at `gan_start`, when the critic is trained too."""
    model = seeded(0, VAE, config).to(device).train()
    extras = Extras(recipe, config.image_size, device)
    if execution.checkpointing:
        recompute_blocks(model)

    def step(count: int) -> torch.Tensor:
        images = torch.zeros(count, 3, config.image_size, config.image_size, device=device)
        with autocast(device, recipe.precision):
            reconstruction, latent = model(images, keyed_generator(0, 0, device))
            losses = vae_losses(images, reconstruction, latent, recipe)
            return extras.add(losses, images, reconstruction, recipe.gan_start)["loss"]

    return model, step


def ar_step(
    config: ARConfig, recipe: ARRecipe, execution: Execution, device: torch.device
) -> tuple[nn.Module, StepFunction]:
    """An AR model, and its training step on random tokens."""
    model = seeded(0, SphereAR, config).to(device).train()
    objective = ARObjective(model, recipe)
    if execution.checkpointing:
        recompute_blocks(model)

    def step(count: int) -> torch.Tensor:
        generator = keyed_generator(0, 0, device)
        tokens = torch.randn(count, config.tokens, config.latent_dim, generator=generator, device=device)
        with autocast(device, recipe.precision):
            return objective(tokens, torch.zeros(count, dtype=torch.int64, device=device), generator)

    return model, step
