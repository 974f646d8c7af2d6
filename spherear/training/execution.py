"""How a run is carried out: what speeds it up or spreads it out, and leaves its result alone.

Knows: choices of execution, as data.  Does not know: what is trained, or on what.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from torch.utils.checkpoint import checkpoint

from spherear.models.layers import Block


@dataclass(frozen=True)
class Execution:
    """Choices that may differ between a run and its continuation; the defaults are the plain path."""

    compile: bool = False
    """Compile the model's part of a step; needs a C++ compiler, and a minute or so at the start."""
    cache: Path | None = None
    """Folder for cached posteriors (see cached_copies), shared by runs on the same VAE; none: in memory."""
    workers: int = 0
    """Processes that read images ahead of the step; 0: the loop reads them itself."""
    sharded: bool = False
    """Split weights, optimiser and average over the processes (FSDP2) instead of copying them (DDP)."""
    checkpointing: bool = False
    """Recompute every block in the backward pass instead of keeping it: less memory, a third more time."""
    average_on: str = ""
    """Device of the averaged weights; none: with the model's."""
    preview_every: int = 0
    """Steps between sheets of pictures in the run's folder; 0: none."""
    tensorboard: bool = False
    """Write curves for TensorBoard into the run's folder."""
    override: bool = False
    """Go on although the folder's run was begun with another recipe or other data."""


def recompute_blocks(model: nn.Module) -> None:
    """Let every transformer block keep its input alone, and run again in the backward pass."""
    for part in model.modules():
        if isinstance(part, Block):
            part.forward = partial(checkpoint, part.forward, use_reentrant=False)  # type: ignore[method-assign]
