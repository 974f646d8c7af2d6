"""The processes of a run: one alone, or several with equal shares of every batch.

Several processes need the extra `train` and a launcher (torchrun).
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from spherear.console import require_installed
from spherear.models.config import require
from spherear.models.layers import Block
from spherear.models.pretrained import Pretrained, load_weights


class World:
    """A single process: nothing is averaged, sharded or waited for."""

    rank = 0
    size = 1
    sharded = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs (rank 0)."""
        return self.rank == 0

    def shard(self, model: nn.Module) -> None:
        """Shard a model's weights over the processes, in place, if `sharded`."""

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module to call for the loss; its gradients are averaged over the processes."""
        return objective

    def sync(self, objective: nn.Module, last: bool) -> None:
        """Average gradients in the next backward pass, or (for all parts but the last) only accumulate them."""

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars averaged over the processes, still on the device."""
        return dict(values)

    def average(self, model: nn.Module) -> None:
        """Average the gradients of an unwrapped model over the processes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; all processes get the same answer."""
        return flag

    def wait(self) -> None:
        """Wait for all processes (barrier)."""


class DistributedWorld(World):
    """Several processes, started by torchrun or `accelerate launch`: DDP, or FSDP2 if `sharded`."""

    def __init__(self, device: torch.device, sharded: bool) -> None:
        require_installed("accelerate", "train", "several processes need it")
        from accelerate import Accelerator

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
        stacked = torch.stack([value.float() for value in values.values()])
        torch.distributed.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind(), strict=True))

    def average(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def any(self, flag: bool) -> bool:
        count = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(count)
        return bool(count > 0)

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def launched_world(device: torch.device | str, sharded: bool = False) -> World:
    """The processes of this launch; one without a launcher, and then `sharded` is a ValueError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return DistributedWorld(torch.device(device), sharded)
    require(not sharded, "sharded is True for a single process; expected several processes, started by torchrun")
    return World()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(model: nn.Module) -> nn.Module:
    """The model with its full weights, on every process; the model itself if nothing is sharded."""
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return model
    assert isinstance(model, Pretrained)
    weights = {name: whole(tensor).cpu() for name, tensor in state.items()}
    return type(model).from_weights(model.config, weights)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load full tensors into a model; if it is sharded, each process loads its shard. Other names: ValueError."""
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        load_weights(model, weights, source)
        return
    faults = sorted(state.keys() ^ weights.keys())
    if faults:
        raise ValueError(f"{source} does not fit {type(model).__name__} as configured: {', '.join(faults[:4])}")
    with torch.no_grad():
        for name, tensor in state.items():
            local(tensor).copy_(local(as_split(weights[name], tensor)))


def as_split(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor, sharded and placed like `like`."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(local(like).device), like.device_mesh, like.placements, src_data_rank=None)
