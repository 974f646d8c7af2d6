"""The processes of one run: one alone, or several with equal shares of every batch.

Knows: who is first, how gradients and numbers are averaged, how weights are split.
Does not know: what is trained.  Several processes need the extra `train` and a launcher (torchrun).
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from spherear.models.config import require
from spherear.models.layers import Block
from spherear.models.pretrained import Pretrained


class Team:
    """One process alone: everything is what it is."""

    rank = 0
    size = 1
    sharded = False

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def shard(self, model: nn.Module) -> None:
        """Split a model's weights over the processes, in place, where they are to be split."""

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module to call for a loss whose gradients are averaged over the processes."""
        return objective

    def sync(self, objective: nn.Module, last: bool) -> None:
        """Average gradients in the coming backward pass, or (of all parts but the last) leave them where they are."""

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars averaged over the processes, still on the device."""
        return dict(values)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process gets the same answer."""
        return flag

    def wait(self) -> None:
        """Until all processes are here."""


class Processes(Team):
    """Several processes, begun by torchrun or `accelerate launch`: DDP, or FSDP2 where `sharded`."""

    def __init__(self, device: torch.device, sharded: bool) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ModuleNotFoundError(
                'accelerate is not installed; several processes need it: pip install "spherear[train]"'
            ) from error
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.sharded = device, sharded
        self.mesh = torch.distributed.init_device_mesh(device.type, (self.size,)) if sharded else None

    def shard(self, model: nn.Module) -> None:
        if not self.sharded:
            return
        from torch.distributed.fsdp import fully_shard

        for part in model.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=self.mesh)
        head = getattr(model, "head", None)
        if isinstance(head, nn.Module):
            fully_shard(head, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def wrap(self, objective: nn.Module) -> nn.Module:
        return objective if self.sharded else self.accelerator.prepare_model(objective, device_placement=False)

    def sync(self, objective: nn.Module, last: bool) -> None:
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for part in objective.modules():
                if isinstance(part, FSDPModule):
                    part.set_requires_gradient_sync(last, recurse=False)
        else:
            objective.require_backward_grad_sync = last  # type: ignore[assignment]

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        together = torch.stack([value.float() for value in values.values()])
        torch.distributed.all_reduce(together)
        return dict(zip(values, (together / self.size).unbind(), strict=True))

    def any(self, flag: bool) -> bool:
        asked = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(asked)
        return bool(asked > 0)

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def team_of(device: torch.device | str, sharded: bool = False) -> Team:
    """The processes this one was started with: alone, unless a launcher said otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Processes(torch.device(device), sharded)
    require(not sharded, "sharded is asked of a single process; expected several, begun by torchrun")
    return Team()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where it is split: every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(model: nn.Module) -> nn.Module:
    """The model with all its weights, on every process; the model itself where nothing is split."""
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return model
    assert isinstance(model, Pretrained)
    weights = {name: whole(tensor).cpu() for name, tensor in state.items()}
    return type(model).from_weights(model.config, weights)
