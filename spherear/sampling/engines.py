"""Engines run the two repeated computations of a decode: eager, with packed weights, compiled, or as CUDA graphs.

These computations are the draw of a token and the step of the transformer, as functions of tensors with fixed
shapes. One decode at a time uses a `DecodeState` of an engine. Engines with expensive preparation (packed weights,
compiled code, graphs) cache their states for the next decode with the same model, settings and batch.
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
from spherear.sampling.head_sampling import Transform, identity, token_sampler
from spherear.sampling.packed import packed_copy
from spherear.sampling.settings import SamplingSettings

AdvanceFunction = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class DecodeState:
    """Cache and functions of a decode. draws: rows of noise per token.

    sample_token(condition, noise, scale or None) -> tokens.
    advance(token, index, span) -> condition: the transformer's step at position `index` of the cache.
    """

    cache: KVCache
    draws: int
    sample_token: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    advance: AdvanceFunction

    def step(self, token: Tensor) -> Tensor:
        """The newest token -> the condition of the next one."""
        index = self.cache.extend(1).index
        return self.advance(token, index, self.cache.span(self.cache.filled))


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """No gradients, and the dtypes of the weights whatever autocast surrounds it.

    Never around a yield, or it would also apply to the caller's code.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def build(ar: SphereAR, settings: SamplingSettings, rows: int, transform: Transform = identity) -> DecodeState:
    """A state for `rows` conditions, with `transform` applied to its repeated functions."""
    cache = ar.kv_cache(rows)
    with own_precision(ar.proj_in.weight.device):
        sampler = token_sampler(ar.head, settings, transform)

    def advance(token: Tensor, index: Tensor, span: int) -> Tensor:
        return ar.advance(token, cache.at(index, span))

    return DecodeState(cache, sampler.draws, sampler.sample, transform(advance))


class Engine:
    """Eager: nothing is prepared or cached. The base class of the others."""

    @contextmanager
    def state(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Iterator[DecodeState]:
        """A state with an empty cache, for a decode of `rows` conditions at once."""
        yield build(ar, settings, rows)


@dataclass
class CachingEngine(Engine):
    """An engine whose states are expensive to make: they are cached and reused when they are free."""

    free: dict[Any, list[DecodeState]] = field(default_factory=dict, init=False, repr=False)

    @contextmanager
    def state(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> Iterator[DecodeState]:
        """A free state with the same model, settings and rows, or a new one; its cache is empty."""
        weight = ar.proj_in.weight
        # A state does not depend on guidance scale, schedule or projection.
        key_settings = replace(settings, guidance_scale=1.0, schedule="linear", project=True)
        states = self.free.setdefault((ar, weight.data_ptr(), weight.dtype, key_settings, rows), [])
        state = states.pop() if states else self.make(ar, settings, rows)
        state.cache.filled = 0
        try:
            yield state
        finally:
            states.append(state)

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> DecodeState:
        """A new state."""
        return build(ar, settings, rows, self.transform)

    def transform(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Applied to the head's evaluation and the transformer's step; no change here."""
        return function


@dataclass
class Packed(CachingEngine):
    """Eager, on the CPU, with large weights in a layout for few rows (see `sampling.packed`)."""

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> DecodeState:
        """A state of a packed copy of the AR model."""
        return build(packed_copy(ar, rows), settings, rows)


@dataclass
class Compiled(CachingEngine):
    """`torch.compile` on the head's evaluation and on the transformer's step; needs a compiler."""

    def transform(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Compiled, one version per shape; RuntimeError when called if that fails."""
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def run(*inputs: Any) -> Tensor:
            with _explain_compiler_errors():
                return compiled(*inputs)

        return run


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


@dataclass
class CudaGraphs(CachingEngine):
    """The whole solver loop of a token captured as one CUDA graph, and the transformer's step as another.

    compiled: capture compiled code instead of eager code. ValueError if the AR model is not on a CUDA device.
    """

    compiled: bool = False
    inner: CachingEngine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.inner = Compiled() if self.compiled else CachingEngine()

    def make(self, ar: SphereAR, settings: SamplingSettings, rows: int) -> DecodeState:
        """A new state; its graphs are captured on first use."""
        device = ar.proj_in.weight.device
        require(device.type == "cuda", f"the AR model is on {device}; expected cuda for CUDA graphs")
        state = self.inner.make(ar, settings, rows)
        return replace(state, sample_token=Captured(state.sample_token), advance=Captured(state.advance))


class Captured:
    """A function of tensors as CUDA graphs: captured once per combination of shapes and constants, then replayed."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Any], Tensor]] = {}

    def __call__(self, *inputs: Tensor | int | None) -> Tensor:
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in inputs)
        if key not in self.graphs:
            self.graphs[key] = self._capture(inputs)
        graph, captured, out = self.graphs[key]
        for target, source in zip(captured, inputs, strict=True):
            if isinstance(source, Tensor):
                target.copy_(source)
        graph.replay()
        return out.clone()

    def _capture(self, inputs: tuple[Tensor | int | None, ...]) -> tuple[torch.cuda.CUDAGraph, list[Any], Tensor]:
        """Capture the function, after two warm-up runs on a side stream (library set-up, compilation)."""
        captured = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(2):
                self.function(*captured)
        torch.cuda.current_stream().wait_stream(side_stream)
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
    """A new engine of that name. Unknown names: ValueError that lists the known ones."""
    one_of("engine", name, ENGINES)
    return ENGINES[name]()
