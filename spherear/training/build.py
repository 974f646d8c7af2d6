"""Models and devices, ready for a run.

Knows: initial weights from a seed, precision, how an objective is to be called.  Does not know: what is trained.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spherear.models.config import Config, require
from spherear.models.layers import Block
from spherear.training.jobs import Execution
from spherear.training.team import Team

ModelT = TypeVar("ModelT", bound=nn.Module)
ConfigT = TypeVar("ConfigT", bound=Config)


def seeded(build: Callable[[ConfigT], ModelT], config: ConfigT, seed: int) -> ModelT:
    """`build(config)` with initial weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Autocast to bfloat16 where the recipe asks for it, else nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")


def prepared(objective: nn.Module, model: nn.Module, team: Team, execution: Execution) -> nn.Module:
    """The objective, ready to be called in training as execution and team ask."""
    if execution.checkpointing:
        recompute_blocks(model)
    if execution.compile:
        objective.compile(dynamic=False)
    return team.wrap(objective)


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one; anything else is taken as it is."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N ({error})") from error
    require(device.type != "cuda" or torch.cuda.is_available(), f"device is {name!r}; expected cpu: no CUDA here")
    return device


def recompute_blocks(model: nn.Module) -> None:
    """Let every transformer block keep its input alone, and run again in the backward pass."""
    for part in model.modules():
        if isinstance(part, Block):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)  # type: ignore[method-assign]
