"""Observers of a training loop: curves (TensorBoard, wandb), held-out scores, and preview images.

They do not change what is trained.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.console import import_library, require_installed, say
from spherear.models.ar import SphereAR
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import save_png, tile
from spherear.sampling.settings import SamplingSettings
from spherear.training.data.dataset import hashed
from spherear.training.progress import memory_gib
from spherear.training.run import TrainState
from spherear.training.run_file import cut_metrics
from spherear.world import World, gathered

Observer = Callable[[TrainState], None]
Preview = Callable[[torch.nn.Module], Float[Tensor, "n 3 size size"]]
Score = Callable[[torch.nn.Module, World], Mapping[str, float]]
"""score(model in eval mode, processes) -> scores by name; all processes call it."""
Logger = Callable[[int, Mapping[str, float]], None]
"""logger(step, numbers) writes them down; the first process calls it."""
VALIDATION_FILE = "validation.jsonl"
COLUMNS = 10


def every(steps: int, observer: Observer) -> Observer:
    """An observer that calls `observer` every `steps` steps, and after the last one."""

    def observe(state: TrainState) -> None:
        if state.step % steps == 0 or state.step == state.total:
            observer(state)

    return observe


def tensorboard_logger(folder: Path) -> Logger:
    """Curves in TensorBoard's format, below a run's folder.

    Without tensorboard: ModuleNotFoundError that says what to install.
    """
    require_installed("tensorboard", "train", "curves need it")
    from torch.utils.tensorboard import SummaryWriter

    writer: list[SummaryWriter] = []

    def log(step: int, numbers: Mapping[str, float]) -> None:
        if not writer:
            writer.append(SummaryWriter(str(folder / "tensorboard"), purge_step=step))
        for name, value in numbers.items():
            writer[0].add_scalar(name, value, step)
        writer[0].flush()

    return log


def wandb_logger(folder: Path, project: str) -> Logger:
    """Curves at Weights & Biases, or wherever its settings send them (`WANDB_MODE=offline`: below the run's folder).

    A run that is resumed goes on there too. Without wandb: ModuleNotFoundError that says what to install.
    """
    library = import_library("wandb", "wandb", "its curves need it")
    begun: list[Any] = []

    def log(step: int, numbers: Mapping[str, float]) -> None:
        if not begun:
            path = folder.resolve()
            name = "-".join(path.parts[-2:])
            begun.append(
                library.init(project=project, name=name, id=hashed([str(path)]), resume="allow", dir=str(path))
            )
        begun[0].log(dict(numbers), step=step)

    return log


def curves(loggers: Sequence[Logger]) -> Observer:
    """Losses, and what metrics.jsonl has beside them; memory."""

    def observe(state: TrainState) -> None:
        if not state.world.first:
            return
        numbers = {f"loss/{name}": value for name, value in state.metrics().items()}
        numbers |= {f"run/{name}": value for name, value in state.numbers().items()}
        numbers |= {"run/memory_gib": memory_gib()}
        for log in loggers:
            log(state.step, numbers)

    return observe


def validation(folder: Path, score: Score, loggers: Sequence[Logger] = ()) -> Observer:
    """Held-out scores of the model, a line each time in `validation.jsonl`. All processes must call it."""

    def observe(state: TrainState) -> None:
        model = gathered(state.model)
        model, training = model.to(next(state.model.parameters()).device), model.training
        found = score(model.eval(), state.world)
        model.train(training)
        if state.world.first:
            numbers = {name: value if math.isfinite(value) else None for name, value in found.items()}
            cut_metrics(folder / VALIDATION_FILE, state.step - 1)  # of a run that was resumed from an earlier step
            with (folder / VALIDATION_FILE).open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"step": state.step, **numbers}) + "\n")
            say(f"step {state.step}, held out: " + ", ".join(f"{name}={value:.4g}" for name, value in found.items()))
            for log in loggers:
                log(state.step, {f"held_out/{name}": value for name, value in found.items()})

    return observe


def pictures(folder: Path, draw: Preview) -> Observer:
    """Save a sheet of `draw(model)` as `previews/STEP.png`. All processes must call it; only the first draws."""

    def observe(state: TrainState) -> None:
        model = gathered(state.model)
        if state.world.first:
            training = model.training
            sheet = tile(draw(model.eval()).float().cpu(), COLUMNS)
            model.train(training)
            save_png(folder / "previews" / f"{state.step:07}.png", sheet, zoom=2)

    return observe


def reconstructions(images: Float[Tensor, "n 3 size size"]) -> Preview:
    """Preview of a VAE: the images, and below them the decoded modes of their posteriors."""

    @torch.no_grad()
    def draw(model: torch.nn.Module) -> Tensor:
        assert isinstance(model, VAE)
        device = model.quant_proj.weight.device
        latent = model.encode(images.to(device), torch.Generator(device).manual_seed(0))
        return torch.cat((images, model.decode(latent.mode).float().cpu()))

    return draw


def samples(
    vae: VAE, labels: Sequence[int] | Int[Tensor, " n"], settings: SamplingSettings | None = None, seed: int = 0
) -> Preview:
    """Preview of an AR model: one image per label, with the same seeds at every step."""
    settings = settings or SamplingSettings.named("fast", guidance_scale=2.0)

    def draw(model: torch.nn.Module) -> Tensor:
        assert isinstance(model, SphereAR)
        vae_device = vae.quant_proj.weight.device
        vae.to(model.proj_in.weight.device)
        images = Pipeline(vae, model).sample(labels, settings, seed)
        vae.to(vae_device)
        return images

    return draw
