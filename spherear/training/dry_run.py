"""What a run will take, before it is begun: parameters, arithmetic, memory, time.

Knows: how a step of one and of two images is measured, and what follows for a batch.
Does not know: data, folders, or a job's options.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.vae import VAE, VAEConfig
from spherear.training.adversarial import Extras
from spherear.training.build import autocast, recompute_blocks, seeded
from spherear.training.jobs import Execution
from spherear.training.objectives import ARObjective, vae_losses
from spherear.training.recipes import ARRecipe, Recipe, VAERecipe
from spherear.training.run import keyed_generator

StepFunction = Callable[[int], torch.Tensor]
FLOAT = 4  # bytes of a weight, a gradient, a moment
TRIAL = (2, 4)  # images of the steps that are measured


@dataclass(frozen=True)
class Estimate:
    """parameters: of the model.  flops: of a step on all devices, forward and backward.
    fixed, activations: bytes on each device: weights, gradients, moments, average; and what a part adds.
    """

    parameters: int
    flops: int
    fixed: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes on each device at the most."""
        return self.fixed + self.activations

    def seconds(self, steps: int, teraflops: float, devices: int) -> float:
        """Time of `steps` where each device does so many 10^12 operations a second."""
        return steps * self.flops / (1e12 * teraflops * devices)


def estimate(model: nn.Module, step: StepFunction, recipe: Recipe, execution: Execution, devices: int = 1) -> Estimate:
    """Measure steps of few images and reckon what a batch takes: memory grows with a part, arithmetic with a batch.

    step: number of images -> their loss, on the model's device.
    """
    device = next(model.parameters()).device
    step(TRIAL[0]).backward()  # gradients are there from now on, as in every step but the first

    def trial(images: int) -> int:
        return peak_bytes(lambda: step(images).backward(), device)

    few, more = map(trial, TRIAL)
    with FlopCounterMode(display=False) as counter:
        step(1).backward()
    each = (more - few) / (TRIAL[1] - TRIAL[0])
    part = recipe.batch_size // recipe.parts
    parameters = sum(p.numel() for p in model.parameters())
    copies = 4 + (recipe.ema_decay > 0 and not execution.average_on)  # weight, gradient, two moments, average
    return Estimate(
        parameters,
        counter.get_total_flops() * recipe.batch_size,
        FLOAT * copies * parameters // (devices if execution.sharded else 1),
        int(few + each * (part - TRIAL[0])),
    )


def peak_bytes(work: Callable[[], object], device: torch.device | str) -> int:
    """The most memory that `work` holds at once beside what was held before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def report(found: Estimate, recipe: Recipe, images: int, devices: int, teraflops: float) -> str:
    """The estimate as lines to read."""
    epochs = recipe.steps * recipe.batch_size / images
    hours = found.seconds(recipe.steps, teraflops, devices) / 3600
    gib = 2**30
    return (
        f"parameters          {found.parameters:,}\n"
        f"steps               {recipe.steps:,} of {recipe.batch_size} images: {epochs:.1f} epochs of {images:,}\n"
        f"arithmetic          {found.flops / 1e12:.4g} TFLOP a step, forward and backward\n"
        f"memory              {found.memory / gib:.3f} GiB on each of {devices} devices: {found.fixed / gib:.3f} of "
        f"weights, gradients, moments and average, {found.activations / gib:.3f} of "
        f"activations of {recipe.batch_size // recipe.parts} images\n"
        f"time                {hours:.4g} hours at {teraflops:g} TFLOP/s a device"
    )


def vae_step(
    config: VAEConfig, recipe: VAERecipe, execution: Execution, device: torch.device
) -> tuple[nn.Module, StepFunction]:
    """A VAE, and a step of it on grey images, as late as the critic's start."""
    model = seeded(VAE, config, 0).to(device).train()
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
    """An AR model, and a step of it on tokens of noise."""
    model = seeded(SphereAR, config, 0).to(device).train()
    objective = ARObjective(model, recipe)
    if execution.checkpointing:
        recompute_blocks(model)

    def step(count: int) -> torch.Tensor:
        generator = keyed_generator(0, 0, device)
        tokens = torch.randn(count, config.tokens, config.latent_dim, generator=generator, device=device)
        with autocast(device, recipe.precision):
            return objective(tokens, torch.zeros(count, dtype=torch.int64, device=device), generator)

    return model, step
