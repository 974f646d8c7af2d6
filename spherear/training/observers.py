"""Observers of a training loop: TensorBoard curves, and preview images. They do not change what is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.console import require_installed
from spherear.models.ar import SphereAR
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import save_png, tile
from spherear.sampling.settings import SamplingSettings
from spherear.training.progress import memory_gib
from spherear.training.run import TrainState
from spherear.world import gathered

Observer = Callable[[TrainState], None]
Preview = Callable[[torch.nn.Module], Float[Tensor, "n 3 size size"]]
COLUMNS = 10


def every(steps: int, observer: Observer) -> Observer:
    """An observer that calls `observer` every `steps` steps, and after the last one."""

    def observe(state: TrainState) -> None:
        if state.step % steps == 0 or state.step == state.total:
            observer(state)

    return observe


def curves(folder: Path) -> Observer:
    """TensorBoard curves: losses, and what metrics.jsonl has beside them; memory.

    Without tensorboard: ModuleNotFoundError that says what to install.
    """
    require_installed("tensorboard", "train", "curves need it")
    from torch.utils.tensorboard import SummaryWriter

    writer: list[SummaryWriter] = []

    def observe(state: TrainState) -> None:
        if not state.world.first:
            return
        if not writer:
            writer.append(SummaryWriter(str(folder / "tensorboard"), purge_step=state.step))
        numbers = {f"loss/{name}": value for name, value in state.metrics().items()}
        numbers |= {f"run/{name}": value for name, value in state.numbers().items()}
        numbers |= {"run/memory_gib": memory_gib()}
        for name, value in numbers.items():
            writer[0].add_scalar(name, value, state.step)
        writer[0].flush()

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
