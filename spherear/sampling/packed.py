"""A copy of an AR model with its large weights in another layout or format, for fast CPU decoding of few rows.

One image with guidance is two rows. The time of a linear layer is then the time to read its weight, and the default
layout is not the fastest to read (`spherear bench image` measures the difference): oneDNN has one of its own, and
FBGEMM reads weights in float16, which are half as many bytes. Such weights are copies, so they need additional memory.
A copy knows whether the model's weights have changed since.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.models.config import require

MIN_NUMBERS = 2**17  # smallest weight, in numbers, for which packing is faster
DTYPES = (torch.float32, torch.bfloat16)
ROWS = 2  # that the layout is made for; on the processors tried it is the same for 1 to 256

Swap = Callable[[nn.Linear], nn.Module]
"""Makes the layer that stands for a large linear one in a copy of the model."""


class PackedLinear(nn.Module):
    """x W^T + b with W in oneDNN's layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")


class HalfLinear(nn.Module):
    """x W^T + b in float32, with W rounded to float16 and read by FBGEMM: a relative error of up to 2^-11 per weight.

    ValueError for weights that float16 cannot hold: not finite, or beyond 65504.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        largest = float(linear.weight.detach().abs().max())
        most = torch.finfo(torch.float16).max
        require(largest <= most, f"the largest weight is {largest:g}; expected at most {most:g}, for float16 weights")
        self.packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach().float(), None)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        product = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return product if self.bias is None else product.add_(self.bias)


def can_halve() -> bool:
    """Whether this torch build and this processor have FBGEMM's kernels for float16 weights."""
    try:
        torch.ops.quantized.linear_prepack_fp16(torch.ones(1, 1), None)
    except (AttributeError, NotImplementedError, RuntimeError):  # unknown to the build; or another backend is set
        return False
    return True


def can_pack() -> bool:
    """Whether this torch build has the oneDNN kernels."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_bfloat16() -> bool:
    """Whether the processor supports the bfloat16 kernels."""
    return can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_packable(ar: SphereAR) -> None:
    """ValueError for a model that is not on the CPU or not float32 or bfloat16, for bfloat16 on a processor without
    AVX-512 or AVX-NE-CONVERT, and for a torch without oneDNN.
    """
    weight = ar.proj_in.weight
    require(weight.device.type == "cpu", f"the AR model is on {weight.device}; expected cpu for packed weights")
    require(weight.dtype in DTYPES, f"the AR model is {weight.dtype}; expected one of {DTYPES} for packed weights")
    require(can_pack(), "this torch has no oneDNN; expected it for packed weights (the engine 'eager' needs none)")
    require(
        weight.dtype != torch.bfloat16 or can_pack_bfloat16(),
        "this processor has no bfloat16 kernels; expected AVX-512 or AVX-NE-CONVERT, float32, or engine 'eager'",
    )


def check_halvable(ar: SphereAR) -> None:
    """ValueError for a model that is not on the CPU or not float32, and for a torch without the kernels."""
    weight = ar.proj_in.weight
    require(weight.device.type == "cpu", f"the AR model is on {weight.device}; expected cpu for float16 weights")
    require(
        weight.dtype == torch.float32,
        f"the AR model is {weight.dtype}; expected torch.float32, in which it computes with float16 weights",
    )
    require(can_halve(), "this torch has no FBGEMM; expected it for float16 weights (the engine 'eager' needs none)")


@dataclass(frozen=True)
class Source:
    """A tensor of the model as it was when it was copied.

    state: its address, dtype, shape and count of changes in place.  probed: of a weight that was copied, its product
    with a fixed vector, since `tensor.data` can be changed without being counted.
    """

    tensor: Tensor
    state: tuple
    probed: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, copied: bool) -> "Source":
        """The tensor as it is now."""
        return cls(tensor, _state(tensor), probe(tensor) if copied else None)

    def still(self, tensor: Tensor) -> bool:
        """Whether this is the tensor and it is unchanged."""
        if tensor is not self.tensor:
            return False
        if self.probed is None:  # shared by the copy: whatever it holds is right
            return True
        return _state(tensor) == self.state and torch.equal(probe(tensor), self.probed)


def _state(tensor: Tensor) -> tuple:
    changes = -1 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.dtype, tensor.shape, changes


def probe(weight: Float[Tensor, "outputs inputs"]) -> Int32[Tensor, " outputs"]:
    """Bits of the weight's product with a fixed vector: one read of the weight."""
    wide = weight.detach().float()
    angles = torch.arange(1, 1 + wide.shape[1], dtype=torch.float32, device=wide.device)
    return torch.mv(wide, angles.sin()).view(torch.int32)  # as integers, nan equals nan


@dataclass(frozen=True)
class SwappedCopy:
    """A copy of an AR model with other layers in place of its large linear ones; it shares all other tensors."""

    ar: SphereAR
    sources: list[Source]

    def is_of(self, ar: SphereAR) -> bool:
        """Whether the model's tensors are still those that were copied or are shared."""
        tensors = tensors_of(ar)
        return len(tensors) == len(self.sources) and all(
            source.still(tensor) for source, tensor in zip(self.sources, tensors, strict=True)
        )


def tensors_of(ar: SphereAR) -> list[Tensor]:
    """All parameters and buffers."""
    return [*ar.parameters(), *ar.buffers()]


def swap_linears(
    ar: SphereAR, swap: Swap = PackedLinear, check: Callable[[SphereAR], None] = check_packable
) -> SwappedCopy:
    """A copy of `ar` with `swap(linear)` for every large linear layer of its blocks.

    Errors: those of `check` and of `swap`.
    """
    check(ar)
    tensors = tensors_of(ar)
    twin = copy.deepcopy(ar, {id(tensor): tensor for tensor in tensors})
    copied = set[int]()
    for part in (twin.layers, *twin.head.children()):
        if isinstance(part, nn.ModuleList):  # only the blocks: the dtype of other layers is read from their weights
            for parent in list(part.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.Linear) and child.weight.numel() >= MIN_NUMBERS:
                        copied.add(id(child.weight))
                        setattr(parent, name, swap(child))
    return SwappedCopy(twin, [Source.of(tensor, id(tensor) in copied) for tensor in tensors])
