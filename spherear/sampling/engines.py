"""Engines run the two repeated computations of a decode: as written, in numpy, packed, compiled, or as CUDA graphs.

The computations are two functions: `sample_token` draws a token, and `SphereAR.advance` is the transformer's step. An
engine wraps them for one decode in a `Session`. What it keeps between decodes (packed weights, compiled code, graphs)
depends on the model's weights and shapes alone, never on an earlier decode, and ends with the model.
"""

import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.config import one_of
from spherear.models.layers import KVCache
from spherear.sampling.head_sampling import evaluate, sample_token
from spherear.sampling.packed import (
    HalfLinear,
    PackedLinear,
    Swap,
    check_halvable,
    check_packable,
    swap_linears,
    tensors_of,
)

TokenFunction = Callable[..., Tensor]
"""`sample_token`, or a function that gives the same tokens for the same arguments."""
AdvanceFunction = Callable[[SphereAR, Tensor, KVCache, Tensor, int], Tensor]
"""`SphereAR.advance`, or a function that gives the same conditions for the same arguments."""
StartFunction = Callable[[SphereAR, Tensor, KVCache], Tensor]
"""`SphereAR.start`, likewise."""


@dataclass(frozen=True)
class Session:
    """One decode's model, empty KV cache and functions."""

    ar: SphereAR
    cache: KVCache
    sample_token: TokenFunction = sample_token
    advance: AdvanceFunction = SphereAR.advance
    start: StartFunction = SphereAR.start

    def step(self, token: Tensor) -> Tensor:
        """The newest token -> the condition of the next one."""
        index = self.cache.reserve(1)
        return self.advance(self.ar, token, self.cache, index, self.cache.span)


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """No gradients, ordinary tensors, and the dtypes of the weights, whatever surrounds it (autocast, inference mode).

    Never around a yield, or it would also apply to the caller's code.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Engine:
    """As written: nothing is prepared or kept. The base class of the others."""

    @property
    def name(self) -> str:
        """The name in `ENGINES`; of an engine of one's own, the name of its class."""
        return next((name for name, made in ENGINES.items() if made is type(self)), type(self).__name__)

    def check(self, ar: SphereAR) -> None:
        """ValueError for a model that this engine cannot run."""

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session for a decode of `rows` conditions at once. Enter it within `own_precision`.

        cache: an empty one for as many rows, to use instead of a new one.
        """
        return nullcontext(Session(ar, cache or ar.kv_cache(rows)))


class Kept:
    """What an engine keeps for a model while the model lives, one value per key, made when first asked for.

    At most `limit` per model: then the one not used for longest is dropped. Values must not refer to the model.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit, self.lock = limit, RLock()
        self.of_model: weakref.WeakKeyDictionary[SphereAR, OrderedDict[Any, Any]] = weakref.WeakKeyDictionary()

    def get(self, ar: SphereAR, key: Any, make: Callable[[], Any]) -> Any:
        """The value for this key."""
        with self.lock:
            values = self.of_model.setdefault(ar, OrderedDict())
            if key not in values:
                values[key] = make()
            values.move_to_end(key)
            while len(values) > self.limit:
                values.popitem(last=False)
            return values[key]

    def take(self, ar: SphereAR, key: Any) -> Any:
        """The value for this key, which is then no longer kept; None if there is none."""
        with self.lock:
            return self.of_model.get(ar, OrderedDict()).pop(key, None)


@dataclass
class Packed(Engine):
    """On the CPU, with large weights in another layout (see `sampling.packed`): one copy per model, for all settings.

    swap: makes the layer that stands for a large linear one.
    """

    swap: Swap = PackedLinear
    kept: Kept = field(default_factory=lambda: Kept(limit=1), init=False, repr=False)

    def check(self, ar: SphereAR) -> None:
        """ValueError for a model that cannot be packed."""
        check_packable(ar)

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session with the packed model; it is packed anew if any weight has changed."""
        with self.kept.lock:
            copy = self.kept.get(ar, "copy", lambda: swap_linears(ar, self.swap, self.check))
            if not copy.is_of(ar):
                self.kept.take(ar, "copy")
                copy = self.kept.get(ar, "copy", lambda: swap_linears(ar, self.swap, self.check))
        return nullcontext(Session(copy.ar, cache or ar.kv_cache(rows)))


@dataclass
class Half(Packed):
    """On the CPU, with large weights in float16 and everything else in float32 (see `HalfLinear`).

    A draw differs from one with the weights as they are by about their rounding, see `spherear bench image`.
    """

    swap: Swap = HalfLinear

    def check(self, ar: SphereAR) -> None:
        """ValueError for a model whose weights cannot be float16."""
        check_halvable(ar)


@dataclass
class Compiled(Engine):
    """`torch.compile` on the head's evaluation and on the transformer's step; needs a compiler.

    backend: of `torch.compile`.
    """

    backend: str = "inductor"
    kept: Kept = field(default_factory=lambda: Kept(limit=4), init=False, repr=False)

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session with compiled functions, kept per model and kind of weights."""
        kinds = tuple((x.shape, x.dtype, x.device, x.requires_grad) for x in tensors_of(ar))
        both = (evaluate, SphereAR.advance)
        token, advance = self.kept.get(ar, kinds, lambda: [CompiledPerShape(f, self.backend) for f in both])
        return nullcontext(Session(ar, cache or ar.kv_cache(rows), partial(sample_token, evaluate=token), advance))


class CompiledPerShape:
    """A function compiled once per combination of shapes and constants, each apart from the others.

    The compiler counts how often a piece of code is compiled anew, and gives up at eight; so every combination has a
    piece of code of its own.
    """

    numbers = count()

    def __init__(self, function: Callable[..., Tensor], backend: str) -> None:
        self.function, self.backend = function, backend
        self.compiled: dict[Any, Callable[..., Tensor]] = {}
        self.lock = RLock()

    def __call__(self, *inputs: Any) -> Tensor:
        key = tuple(map(_kind, inputs))
        with self.lock:
            if key not in self.compiled:
                own = _with_own_code(self.function, next(self.numbers))
                self.compiled[key] = torch.compile(own, fullgraph=True, dynamic=False, backend=self.backend)
            with _explain_compiler_errors():
                return self.compiled[key](*inputs)


def _kind(value: Any) -> Any:
    """What compiled code depends on: shapes, dtypes and constants; of a cache the shape of its tensors."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, KVCache):
        return _kind(value.keys[0])
    return value if isinstance(value, int | float | None) else type(value)


def _with_own_code(function: Any, number: int) -> Callable[..., Tensor]:
    """A copy of a function whose code is an object of its own."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{number}")
    return types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )


@contextmanager
def _explain_compiler_errors() -> Iterator[None]:
    """Replace an error of the compiler by a short RuntimeError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first_line = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"torch.compile failed ({type(error).__name__}: {first_line}); the engine 'eager' needs no compiler "
                "(this one needs a C++ compiler on the CPU, Triton on CUDA)"
            ) from error
        raise


def _cuda_graphs(compiled: bool = False) -> Engine:
    from spherear.sampling.cuda_graphs import CudaGraphs

    return CudaGraphs(Compiled() if compiled else Engine())


def _in_numpy() -> Engine:
    from spherear.sampling.small.engine import InNumpy

    return InNumpy()


ENGINES: dict[str, Callable[[], Engine]] = {
    "eager": Engine,
    "numpy": _in_numpy,
    "packed": Packed,
    "half": Half,
    "compiled": Compiled,
    "cuda_graphs": _cuda_graphs,
    "compiled_cuda_graphs": partial(_cuda_graphs, compiled=True),
}


def engine_named(name: str) -> Engine:
    """A new engine of that name. Unknown names: ValueError that lists the known ones."""
    one_of("engine", name, ENGINES)
    return ENGINES[name]()
