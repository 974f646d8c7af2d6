"""Models, objectives and devices, prepared for a run."""

import os
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spherear.models.config import require
from spherear.models.layers import Block
from spherear.training.jobs import Execution
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
        objective.compile(dynamic=False)
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
