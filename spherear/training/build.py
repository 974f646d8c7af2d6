"""Models, objectives, devices and data, checked and prepared for a run."""

import os
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spherear.models.ar import ARConfig
from spherear.models.config import require
from spherear.models.layers import Block
from spherear.models.pretrained import fingerprint
from spherear.models.vae import VAE
from spherear.training.data.cached import encode_all
from spherear.training.data.dataset import ImageData
from spherear.training.jobs import Execution
from spherear.training.progress import counting
from spherear.training.recipes import ARRecipe, Recipe
from spherear.world import World


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Autocast to bfloat16, disabled unless `precision` is bfloat16."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def laid_out(images: Tensor, execution: Execution) -> Tensor:
    """Images in the order of memory that `execution` asks for; anything but images is returned unchanged."""
    if not execution.channels_last or images.ndim != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def prepared(objective: nn.Module, model: nn.Module, world: World, execution: Execution) -> nn.Module:
    """The objective for training, with checkpointing and compilation as in `execution`, wrapped by `world`."""
    if execution.checkpointing:
        recompute_blocks(model)
    if execution.compile:
        objective.compile(dynamic=False, **({"mode": "reduce-overhead"} if execution.graphs else {}))
    return world.wrap(objective)


def pick_device(name: str) -> torch.device:
    """`auto` is cuda if available, else cpu. Unknown or unavailable devices: ValueError."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N ({error})") from error
    require(
        device.type != "cuda" or torch.cuda.is_available(), f"device is {name!r}; expected cpu: CUDA is not available"
    )
    return device


def recompute_blocks(model: nn.Module) -> None:
    """Gradient checkpointing: every transformer block stores only its input and runs again in the backward pass."""
    for part in model.modules():
        if isinstance(part, Block):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)  # type: ignore[method-assign]


def check_images(data: ImageData, image_size: int, recipe: Recipe) -> None:
    """ValueError unless images have the VAE's size and fill a batch; checked before anything is built or written."""
    require(
        data.image_size == image_size,
        f"the data's images have {data.image_size} px; expected {image_size}, as the VAE's",
    )
    require(
        len(data) >= recipe.batch_size,
        f"the data set has {len(data)} images; expected at least one batch, {recipe.batch_size}",
    )


def check_graphs(recipe: Recipe, device: torch.device | str, execution: Execution) -> None:
    """ValueError where steps cannot be replayed as CUDA graphs, which overwrite their gradients."""
    kind, processes = torch.device(device).type, int(os.environ.get("WORLD_SIZE", "1"))
    require(
        not execution.graphs or (kind == "cuda" and processes == 1 and recipe.micro_batches == 1),
        f"graphs is True on {kind}, {processes} processes, {recipe.micro_batches} micro-batches; expected one CUDA "
        "device, and a batch in one part",
    )


def check_classes(data: ImageData, config: ARConfig) -> None:
    """ValueError unless the data have the AR model's classes."""
    require(
        data.num_classes == config.num_classes,
        f"the data have {data.num_classes} classes; expected {config.num_classes}, as the AR model's",
    )
    require(
        config.classes in ((), tuple(data.classes)),
        f"the AR model has the classes {config.classes[:4]}; expected {tuple(data.classes)[:4]}, as the data's",
    )


def cached_posteriors(
    vae: VAE, data: ImageData, recipe: ARRecipe, device: torch.device | str, execution: Execution, world: World
) -> ImageData:
    """The data set's cached posteriors."""
    facts = {"vae": fingerprint(vae)}
    if data.augmented:
        facts |= {name: str(getattr(recipe, name)) for name in ("seed", "crop", "flip")}
    copies, precision = recipe.cached_copies, recipe.precision
    with counting("encoding", copies * len(data), "image") as bar:
        return encode_all(
            vae, data, copies, device, precision, execution.cache, facts, augmentation_at=recipe.augmentation_at,
            workers=execution.workers, world=world, progress=bar.update,
        )  # fmt: skip
