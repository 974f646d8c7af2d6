"""Weights laid out for the CPU's matrix kernels: what few rows and much weight need.

Knows: oneDNN's packed layout, and a copy of an AR model that reads its large weights in it.
Does not know: decoding, or when it is worth it.

One image under guidance is two rows: then the time of a linear layer is the time to read its weight, and the layout
that training wants is not the one that reads fastest (`spherear bench decode --preset imagenet256-B` says by how
much). Packed weights are copies: they cost their memory again, and do not follow the model if it is trained on.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.models.config import require

MIN_NUMBERS = 2**17  # numbers in a weight from which packing pays
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
    """Whether this torch has the kernels."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack_bfloat16() -> bool:
    """Whether the processor has what the bfloat16 kernels need."""
    return can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packed_copy(ar: SphereAR, rows: int) -> SphereAR:
    """A model that shares everything with `ar` but its large linear layers, which are packed for `rows` rows.

    A model that is not on the CPU, not float32 or bfloat16, bfloat16 on a processor without AVX-512 or
    AVX-NE-CONVERT, or a torch without oneDNN: ValueError.
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
        if isinstance(part, nn.ModuleList):  # the blocks; what is asked for its dtype stays as it is
            _pack(part, rows)
    return packed


def _pack(module: nn.Module, rows: int) -> None:
    """Replace the large linear layers below a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.weight.numel() >= MIN_NUMBERS:
                setattr(parent, name, PackedLinear(child, rows))
