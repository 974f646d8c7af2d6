"""The processes of a run: one alone, or several with equal shares of every batch.

Several processes are started by torchrun. Weights and gradients travel between the devices; what processes agree on
(whether to stop, which images are broken) travels between the CPUs, so that no step waits for a device.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spherear.models.config import require
from spherear.models.layers import Block, RMSNorm
from spherear.models.pretrained import Pretrained, load_weights

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


class World:
    """A single process: nothing is averaged, sharded or waited for."""

    rank = 0
    size = 1
    sharded = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and logs (rank 0)."""
        return self.rank == 0

    def shard(self, model: nn.Module, precision: str = "float32") -> None:
        """Shard a model's weights over the processes, in place, if `sharded`.

        precision: that of the run. In bfloat16, the linear layers of blocks are gathered in bfloat16, half the traffic;
        gradients are summed in float32, and weights stay float32 where they are stored. Norms are gathered as they are.
        """

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module to call for the loss; its gradients are averaged over the processes."""
        return objective

    def synchronised(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass: gradients are averaged in the last of a step, else accumulated."""
        return nullcontext()

    def replicated(self, value: Tensor) -> Tensor:
        """A value that all processes have, as an optimiser of sharded weights takes it."""
        return value

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars averaged over the processes, still on the device."""
        return dict(values)

    def average(self, model: nn.Module) -> None:
        """Average the gradients of an unwrapped model over the processes."""

    def total(self, counts: Sequence[float]) -> list[float]:
        """Sums over the processes."""
        return list(counts)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks."""
        return [value]

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Overwrite a tensor in memory, in place, by that of process `source`."""

    def wait(self) -> None:
        """Wait for all processes (barrier)."""

    def first_does(self, work: Callable[[], object]) -> None:
        """Run `work` on the first process, while the others wait. Its ValueError or OSError is raised on all."""
        error: Exception | None = None
        if self.first:
            try:
                work()
            except (ValueError, OSError) as raised:
                error = raised
        message = self.gather(None if error is None else str(error))[0]
        if error is not None:
            raise error
        if message is not None:
            raise ValueError(f"process 0: {message}")


class DistributedWorld(World):
    """Several processes, started by torchrun: DDP, or FSDP2 if `sharded`. timeout: minutes to wait for each other."""

    def __init__(self, device: torch.device, sharded: bool, timeout: float = 30.0) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(minutes=timeout))
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.device, self.sharded = device, sharded
        self.mesh = distributed.init_device_mesh(device.type, (self.size,)) if sharded else None

    def shard(self, model: nn.Module, precision: str = "float32") -> None:
        if not self.sharded:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        gathered_as = torch.bfloat16 if precision == "bfloat16" else None
        policy = MixedPrecisionPolicy(gathered_as, torch.float32, cast_forward_inputs=False)
        for part in model.modules():
            if isinstance(part, Block):
                if gathered_as is not None:  # autocast computes norms in float32
                    norms: list[nn.Module] = [norm for norm in part.children() if isinstance(norm, RMSNorm)]
                    fully_shard(norms, mesh=self.mesh, reshard_after_forward=False)
                fully_shard(part, mesh=self.mesh, mp_policy=policy)
        head = getattr(model, "head", None)
        if isinstance(head, nn.Module):
            fully_shard(head, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def wrap(self, objective: nn.Module) -> nn.Module:
        if self.sharded:
            return objective
        return DistributedDataParallel(objective, device_ids=[self.device] if self.device.type == "cuda" else None)

    def synchronised(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for part in objective.modules():
                if isinstance(part, FSDPModule):
                    part.set_requires_gradient_sync(last, recurse=False)
        return nullcontext() if last or not isinstance(objective, DistributedDataParallel) else objective.no_sync()

    def replicated(self, value: Tensor) -> Tensor:
        if self.mesh is None:
            return value
        from torch.distributed.tensor import DTensor, Replicate

        return DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        stacked = torch.stack([value.float() for value in values.values()])
        distributed.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind(), strict=True))

    def average(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def total(self, counts: Sequence[float]) -> list[float]:
        sums = torch.tensor(counts, dtype=torch.float64)  # on the CPU
        distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def broadcast(self, tensor: Tensor, source: int) -> None:
        distributed.broadcast(tensor.view(torch.uint8), source)  # bytes: gloo does not know every type

    def wait(self) -> None:
        self.total([0.0])


def launched_world(device: torch.device | str, sharded: bool = False, timeout: float = 30.0) -> World:
    """The processes of this launch; one without a launcher, and then `sharded` is a ValueError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return DistributedWorld(torch.device(device), sharded, timeout)
    require(not sharded, "sharded is True for a single process; expected several processes, started by torchrun")
    return World()


def end_processes() -> None:
    """Close the connections between processes, if there are any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_split(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is sharded over the processes.

    torch's module of those takes a second to import, so only what shards imports it.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_split(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded. All processes must call it."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def gathered(model: nn.Module) -> nn.Module:
    """The model with its full weights, on every process; the model itself if nothing is sharded."""
    state = model.state_dict()
    if not any(map(is_split, state.values())):
        return model
    assert isinstance(model, Pretrained)
    weights = {name: whole(tensor).cpu() for name, tensor in state.items()}
    return type(model).from_weights(model.config, weights)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load full tensors into a model; if it is sharded, each process loads its shard. Other names: ValueError."""
    state = model.state_dict()
    if not any(map(is_split, state.values())):
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
    if not is_split(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(local(like).device), like.device_mesh, like.placements, src_data_rank=None)
