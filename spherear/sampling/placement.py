"""Which engine, dtype and device a model is run with: a pure function of its size and of the hardware, in one line.

Nothing here reads weights, and importing this module does not import torch.
"""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spherear.models.config import Config, one_of, require

if TYPE_CHECKING:
    import torch

    from spherear.models.sources import Outline, Source

AUTO = "auto"
SMALL = 20_000_000
"""Parameters up to which an AR model counts as small: packed weights, which double its memory, are no faster there.

One guided image in float32 on a core of an AMD EPYC with AVX2, time as written / packed: 0.94 at 16.0 million
parameters, 1.05 at 24.2, 0.96 at 62.1, 1.16 at 192.1. `OMP_NUM_THREADS=1 python -m spherear.bench.sizes`
"""
BYTES = {"float32": 4, "bfloat16": 2}
"""Of one number, per dtype of an AR model."""
REQUIRED = {"numpy": "cpu", "packed": "cpu", "half": "cpu", "cuda_graphs": "cuda", "compiled_cuda_graphs": "cuda"}
"""Engines that run on one type of device alone."""


@dataclass(frozen=True)
class Hardware:
    """What the choice depends on. packs, packs_bfloat16: packed weights can be used, in float32 and in bfloat16.

    halves: weights can be read in float16.
    fast_bfloat16: the processor has AMX or AVX512-BF16.  cuda_bfloat16: the GPU computes in bfloat16 itself.
    cuda_index: the device of this process, of several under torchrun.
    """

    packs: bool = False
    packs_bfloat16: bool = False
    halves: bool = False
    fast_bfloat16: bool = False
    cuda: bool = False
    cuda_bfloat16: bool = False
    cuda_index: int = 0
    mps: bool = False

    @classmethod
    def here(cls) -> "Hardware":
        """This machine."""
        import torch

        from spherear.sampling.packed import can_halve, can_pack, can_pack_bfloat16

        cuda, packs_bfloat16 = torch.cuda.is_available(), can_pack() and can_pack_bfloat16()
        instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return cls(
            packs=can_pack(),
            packs_bfloat16=packs_bfloat16,
            halves=can_halve(),
            fast_bfloat16=packs_bfloat16 and any(getattr(torch.cpu, name, bool)() for name in instructions),
            cuda=cuda,
            cuda_bfloat16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            cuda_index=int(os.environ.get("LOCAL_RANK", "0")),
            mps=torch.backends.mps.is_available(),
        )


@dataclass(frozen=True)
class Placement(Config):
    """Where and how an AR model draws."""

    device: str = AUTO
    """cpu, cuda, cuda:N or mps; auto: CUDA where there is one, else MPS for large models, else the CPU."""
    dtype: str = AUTO
    """Of the AR model: float32 or bfloat16; auto: bfloat16 where it is fast and the model large, or on CUDA."""
    engine: str = AUTO
    """eager (as written), numpy (for small models), packed, half (weights in float16), compiled, cuda_graphs,
    compiled_cuda_graphs; auto: half or packed for large models on a CPU, graphs on CUDA, numpy for small ones in
    panels."""

    @property
    def sentence(self) -> str:
        """In words, for people."""
        return f"engine {self.engine}, {self.dtype}, on {self.device}"


AS_WRITTEN = Placement("cpu", "float32", "eager")
"""What figures, records and notebooks are drawn with: the same numbers on every machine, to rounding."""


def placement_of(
    device: "torch.device | str" = AUTO, dtype: "torch.dtype | str" = AUTO, engine: str = AUTO
) -> Placement:
    """A `Placement` from torch's own objects or from names."""
    return Placement(str(device), str(dtype).removeprefix("torch."), engine)


def choose(
    parameters: int, wish: Placement | None = None, stored: str = "float32", hardware: Hardware | None = None
) -> Placement:
    """The placement for an AR model of so many parameters, whose weights are in `stored`: no `auto` is left in it.

    | device | model | engine | dtype |
    | cpu | up to `SMALL` parameters | eager | as stored |
    | cpu | larger | packed | bfloat16 with AMX or AVX512-BF16 |
    | cpu | larger, otherwise | half with FBGEMM, else packed | float32 |
    | cuda | any | cuda_graphs | bfloat16 if the GPU has it, else float32 |
    | mps | any | eager | as stored |

    Fields of `wish` that are not `auto` are kept; the others follow from them. ValueError for unknown names, for a
    device that is not here, and for an engine that does not run on the device or in the dtype.
    """
    wish, here = wish or Placement(), hardware or Hardware.here()
    _check_names(wish)
    large = parameters > SMALL
    device = _device(wish, here, large)
    kind = device.partition(":")[0]
    dtype = _dtype(kind, large, stored, here) if wish.dtype == AUTO else wish.dtype
    if wish.dtype == AUTO and (
        wish.engine in ("half", "numpy") or (wish.engine == "packed" and not here.packs_bfloat16)
    ):
        dtype = "float32"
    halves = here.halves and wish.dtype == AUTO  # who asks for float32 gets float32 weights
    engine = _engine(kind, large, dtype, replace(here, halves=halves)) if wish.engine == AUTO else wish.engine
    _check_engine(engine, kind, dtype, here)
    return Placement(device, dtype, engine)


def _check_names(wish: Placement) -> None:
    from spherear.sampling.engines import ENGINES

    one_of("engine", wish.engine, (AUTO, *ENGINES))
    one_of("dtype", wish.dtype, (AUTO, *BYTES))


def _device(wish: Placement, here: Hardware, large: bool) -> str:
    if wish.device != AUTO:
        return checked_device(wish.device, here)
    if required := REQUIRED.get(wish.engine):
        return checked_device(f"cuda:{here.cuda_index}" if required == "cuda" and here.cuda else required, here)
    if here.cuda:
        return f"cuda:{here.cuda_index}"
    return "mps" if here.mps and large else "cpu"


def checked_device(name: str, hardware: Hardware | None = None) -> str:
    """The name of a device that is here. Otherwise ValueError."""
    import torch

    here = hardware or Hardware.here()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected auto, cpu, cuda, cuda:N or mps ({error})") from error
    present = {"cpu": True, "cuda": here.cuda, "mps": here.mps}
    require(device.type in present, f"device is {name!r}; expected auto, cpu, cuda, cuda:N or mps")
    require(present[device.type], f"device is {name!r}; expected cpu: {device.type.upper()} is not available")
    return name


def _dtype(kind: str, large: bool, stored: str, here: Hardware) -> str:
    if kind == "cuda":
        return "bfloat16" if here.cuda_bfloat16 else "float32"
    if kind == "cpu" and large:
        return "bfloat16" if here.fast_bfloat16 else "float32"
    return stored


def _engine(kind: str, large: bool, dtype: str, here: Hardware) -> str:
    if kind == "cuda":
        return "cuda_graphs"
    if kind == "cpu" and large and dtype == "float32" and here.halves:
        return "half"
    packs = here.packs_bfloat16 if dtype == "bfloat16" else here.packs and dtype == "float32"
    return "packed" if kind == "cpu" and large and packs else "eager"


def _check_engine(engine: str, kind: str, dtype: str, here: Hardware) -> None:
    required = REQUIRED.get(engine, kind)
    require(kind == required, f"engine is {engine!r} on {kind}; expected {required}, or another engine")
    require(engine != "numpy" or dtype == "float32", f"dtype is {dtype!r} with engine 'numpy'; expected float32")
    require(engine != "half" or here.halves, "engine is 'half'; expected 'eager': this torch has no FBGEMM")
    require(engine != "half" or dtype == "float32", f"dtype is {dtype!r} with engine 'half'; expected float32, or auto")
    require(engine != "packed" or here.packs, "engine is 'packed'; expected 'eager': this torch has no oneDNN")
    require(
        engine != "packed" or dtype != "bfloat16" or here.packs_bfloat16,
        "dtype is 'bfloat16' with engine 'packed'; expected float32, or engine 'eager': this processor has no bfloat16 "
        "kernels",
    )


@dataclass(frozen=True)
class Plan:
    """A model that is not loaded yet, and how it will be run. outline: its configs."""

    source: "Source"
    outline: "Outline"
    placement: Placement

    @classmethod
    def of(cls, source: "Source", wish: Placement | None = None) -> "Plan":
        """The plan for a source. Only its configs are read; errors as in `Source.outline` and `choose`."""
        outline = source.outline()
        return cls(source, outline, choose(outline.parameters()[1], wish))

    @property
    def sentence(self) -> str:
        """For people: what is loaded, how much memory that takes, and how it is run."""
        return describe(str(self.source), self.outline, self.placement)

    @property
    def memory(self) -> int:
        """Bytes of the weights, see `memory`."""
        return memory(self.outline, self.placement)


def describe(name: str, outline: "Outline", placement: Placement) -> str:
    """A model in one line, with its memory and its placement."""
    mib, ar = memory(outline, placement) / 2**20, outline.parameters()[1]
    takes = f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
    return f"{name}: AR model of {ar / 1e6:.1f} million parameters, {takes} of weights; {placement.sentence}"


def memory(outline: "Outline", placement: Placement) -> int:
    """Bytes that the weights take at most: the VAE in float32, the AR model as it is read (float32) or as it is run.

    Packed weights and those of numpy are copies; in float16, of half the size. Images, caches and what libraries take
    are not counted.
    """
    vae, ar = outline.parameters()
    copied = {"packed": BYTES[placement.dtype], "half": 2, "numpy": 4}.get(placement.engine, 0)
    return 4 * vae + ar * max(BYTES["float32"], BYTES[placement.dtype] + copied)
