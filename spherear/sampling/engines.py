"""How the two repeated computations of a decode are run: as written, packed, compiled, or as CUDA graphs.

Knows: the draw of a token and the step of the transformer, as functions of tensors of fixed shapes.
Does not know: the token loop, guidance scales, or what is drawn.

An engine lends a `Machine` to one decode at a time. The engines that prepare something (compiled code, graphs)
keep their machines for the next decode of the same model, solver and batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.config import one_of, require
from spherear.models.layers import KVCache
from spherear.sampling.draw import Transform, as_written, drawing
from spherear.sampling.packed import packed_copy
from spherear.sampling.settings import SamplingSettings

AdvanceFunction = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Machine:
    """What a decode works with. draws: rows of noise a token.  draw(condition, noise, scale or None) -> raw tokens.

    advance(token, index, span) -> condition: the transformer's step at a place of the cache.
    """

    cache: KVCache
    draws: int
    draw: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    advance: AdvanceFunction

    def step(self, token: Tensor) -> Tensor:
        """The newest token -> the condition of the one after it."""
        index = self.cache.extend(1).index
        return self.advance(token, index, self.cache.span(self.cache.filled))


def build(ar: SphereAR, settings: SamplingSettings, rows: int, transform: Transform = as_written) -> Machine:
    """A machine that runs as written, but for what `transform` makes of its repeated functions."""
    cache = ar.kv_cache(rows)
    drawer = drawing(ar.head, settings, transform)

    def advance(token: Tensor, index: Tensor, span: int) -> Tensor:
        return ar.advance(token, cache.at(index, span))

    return Machine(cache, drawer.draws, drawer.draw, transform(advance))


class Engine:
    """As written: nothing is prepared or cached. The base of the others."""

    @contextmanager
    def machine(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Iterator[Machine]:
        """For a decode of `rows` conditions at once, with an empty cache."""
        yield build(ar, settings, rows)


@dataclass
class CachingEngine(Engine):
    """An engine whose machines are expensive to make: they are cached, and used again once they are free."""

    free: dict[Any, list[Machine]] = field(default_factory=dict, init=False, repr=False)

    @contextmanager
    def machine(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Iterator[Machine]:
        """A free machine of the same model, solver and rows, or a new one."""
        weight = ar.proj_in.weight
        core = replace(
            settings, guidance_scale=1.0, schedule="linear", project=True
        )  # a machine depends on none of these
        machines = self.free.setdefault((ar, weight.data_ptr(), weight.dtype, core, rows), [])
        machine = machines.pop() if machines else self.make(ar, settings, rows)
        machine.cache.filled = 0
        try:
            yield machine
        finally:
            machines.append(machine)

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Machine:
        """A new machine."""
        return build(ar, settings, rows, self.transform)

    def transform(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What becomes of an evaluation of the head, and of a step."""
        return function


@dataclass
class Packed(CachingEngine):
    """As written, on the CPU, with large weights laid out for few rows (see `sampling.packed`)."""

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Machine:
        """A machine of a packed copy."""
        return build(packed_copy(ar, rows), settings, rows)


@dataclass
class Compiled(CachingEngine):
    """`torch.compile` on an evaluation of the head and on the transformer's step; needs a compiler."""

    def transform(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Compiled, one version a shape."""
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def run(*inputs: Any) -> Tensor:
            with _explained():
                return compiled(*inputs)

        return run


@contextmanager
def _explained() -> Iterator[None]:
    """A compiler that is missing or fails, in a sentence."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"torch.compile failed ({type(error).__name__}: {first}); the engine 'eager' needs no compiler "
                "(this one wants a C++ compiler on the CPU, Triton on CUDA)"
            ) from error
        raise


@dataclass
class CudaGraphs(CachingEngine):
    """The whole solver loop of a token captured as one CUDA graph, and the transformer's step as another.

    compiled: capture compiled code instead of code as written. A CPU model: ValueError.
    """

    compiled: bool = False
    inner: CachingEngine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.inner = Compiled() if self.compiled else CachingEngine()

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Machine:
        """A new machine, whose graphs are captured as they are first needed."""
        device = ar.proj_in.weight.device
        require(device.type == "cuda", f"the AR model is on {device}; expected cuda for CUDA graphs")
        machine = self.inner.make(ar, settings, rows)
        return replace(machine, draw=Captured(machine.draw), advance=Captured(machine.advance))


class Captured:
    """A function of tensors, captured once for every combination of shapes and constants, then replayed."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Any], Tensor]] = {}

    def __call__(self, *inputs: Tensor | int | None) -> Tensor:
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)
        if key not in self.graphs:
            self.graphs[key] = self._capture(inputs)
        graph, captured, out = self.graphs[key]
        for target, new in zip(captured, inputs, strict=True):
            if isinstance(new, Tensor):
                target.copy_(new)
        graph.replay()
        return out.clone()

    def _capture(self, inputs: tuple[Tensor | int | None, ...]) -> tuple[torch.cuda.CUDAGraph, list[Any], Tensor]:
        """Once as it is, on a side stream (libraries set themselves up, compilers compile), then captured."""
        captured = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.function(*captured)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.function(*captured)
        return graph, captured, out


ENGINES: dict[str, Callable[[], Engine]] = {
    "eager": Engine,
    "packed": Packed,
    "compiled": Compiled,
    "cuda_graphs": CudaGraphs,
    "compiled_cuda_graphs": lambda: CudaGraphs(compiled=True),
}


def engine_named(name: str) -> Engine:
    """A new engine of that name. Unknown names: ValueError with the known."""
    one_of("engine", name, ENGINES)
    return ENGINES[name]()
