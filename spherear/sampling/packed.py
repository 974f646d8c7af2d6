"""A copy of an AR model with its large weights in oneDNN's packed layout, for fast CPU decoding of few rows.

One image with guidance is two rows. The time of a linear layer is then the time to read its weight, and the default
layout is not the fastest to read (`spherear bench decode --presets imagenet256-B` measures the difference). Packed
weights are copies: they need additional memory and are not updated when the model is trained further.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.models.config import require

MIN_NUMBERS = 2**17  # smallest weight, in numbers, for which packing is faster
DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """x W^T + b with W in oneDNN's layout, best for about `rows` rows at once."""

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")


def can_pack() -> bool:
    """Whether this torch build has the oneDNN kernels."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_bfloat16() -> bool:
    """Whether the processor supports the bfloat16 kernels."""
    return can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_copy(ar: SphereAR, rows: int) -> SphereAR:
    """A copy of `ar` with its large linear layers packed for `rows` rows; it shares all other tensors with `ar`.

    ValueError for a model that is not on the CPU or not float32 or bfloat16, for bfloat16 on a processor without
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
    shared = {id(tensor): tensor for tensor in (*ar.parameters(), *ar.buffers())}
    packed = copy.deepcopy(ar, shared)
    for part in (packed.layers, *packed.head.children()):
        if isinstance(part, nn.ModuleList):  # only the blocks: the dtype of other layers is read from their weights
            _pack(part, rows)
    return packed


def _pack(module: nn.Module, rows: int) -> None:
    """Replace the large linear layers in a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.weight.numel() >= MIN_NUMBERS:
                setattr(parent, name, PackedLinear(child, rows))
