"""CUDA graphs: the whole draw of a token as one graph, and the transformer's step as another.

A graph reads and writes memory at fixed addresses. So a session is kept together with its KV cache, for one decode at a
time, and only while the weights stay where they are. Weights changed in place are read as they are.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.layers import KVCache
from spherear.sampling.engines import Engine, Kept, Session
from spherear.sampling.head_sampling import Times
from spherear.sampling.packed import tensors_of

GRAPHS = 32  # kept per session; a graph holds constants, such as the solver's times
CAPTURE = threading.RLock()  # one capture at a time in this process


Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""Records what a function does with tensors at fixed addresses; returns what repeats it, and its result's tensor."""


class GraphRecorder:
    """Records CUDA graphs. All graphs of a recorder share one pool of memory: they are never replayed at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        """Two warm-up runs on a side stream (library set-up, compilation), then the capture.

        Other threads may use the device meanwhile, for the capture is that of this thread alone, but not the device's
        default generator, which torch then refuses; noise is drawn on the CPU.
        """
        with CAPTURE, torch.cuda.device(self.device):
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(2):
                    run()
            torch.cuda.current_stream(self.device).wait_stream(side)
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                out = run()
        return graph.replay, out


@dataclass(frozen=True)
class Recording:
    """One recorded function. inputs: the tensors that it reads.  replay: repeats it.  out: its result, overwritten."""

    inputs: list[Tensor]
    replay: Callable[[], Any]
    out: Tensor


class Recordings:
    """Functions of tensors, recorded once per combination of shapes and constants, then replayed."""

    def __init__(self, record: Recorder, limit: int = GRAPHS) -> None:
        self.record, self.limit = record, limit
        self.recordings: OrderedDict[Any, Recording] = OrderedDict()

    def __call__(self, constants: Any, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """function(*tensors). constants: what else its result depends on."""
        key = (constants, *((x.shape, x.dtype) if x is not None else None for x in tensors))
        if key not in self.recordings:
            self.recordings[key] = self._recorded(function, tensors)
        self.recordings.move_to_end(key)
        while len(self.recordings) > self.limit:
            self.recordings.popitem(last=False)
        recording = self.recordings[key]
        for target, source in zip(recording.inputs, (x for x in tensors if x is not None), strict=True):
            target.copy_(source)
        recording.replay()
        return recording.out.clone()

    def _recorded(self, function: Callable[..., Tensor], tensors: Sequence[Tensor | None]) -> Recording:
        inputs = [None if x is None else x.clone() for x in tensors]
        replay, out = self.record(lambda: function(*inputs))
        return Recording([x for x in inputs if x is not None], replay, out)


@dataclass(frozen=True)
class GraphSession:
    """What is kept of a session: its KV cache, and the recordings that read and write it."""

    cache: KVCache
    recordings: Recordings

    def of(self, inner: Session) -> Session:
        """A session that records and replays the functions of `inner`."""
        return replace(
            inner,
            sample_token=lambda *inputs: self._sample(inner, *inputs),
            advance=lambda *inputs: self._advance(inner, *inputs),
        )

    def _sample(
        self, inner: Session, head: Any, condition: Tensor, noise: Tensor, times: Times, scale: Tensor | None,
        temperature: float = 1.0,
    ) -> Tensor:  # fmt: skip
        def run(condition: Tensor, noise: Tensor, embedded: Tensor, scale: Tensor | None) -> Tensor:
            return inner.sample_token(head, condition, noise, replace(times, embedded=embedded), scale, temperature)

        constants = ("token", times.solver, times.grid, temperature)
        return self.recordings(constants, run, condition, noise, times.embedded, scale)

    def _advance(self, inner: Session, ar: SphereAR, token: Tensor, cache: KVCache, index: Tensor, span: int) -> Tensor:
        def run(token: Tensor, index: Tensor) -> Tensor:
            return inner.advance(ar, token, cache, index, span)

        return self.recordings(("step", span), run, token, index)


@dataclass
class CudaGraphs(Engine):
    """The functions of another engine, captured. ValueError if the AR model is not on a CUDA device."""

    inner: Engine = field(default_factory=Engine)
    kept: Kept = field(default_factory=Kept, init=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the inner engine, if it is not the plain one, and of this."""
        return "cuda_graphs" if type(self.inner) is Engine else f"{self.inner.name}_cuda_graphs"

    def check(self, ar: SphereAR) -> None:
        """ValueError for a model elsewhere than on a CUDA device."""
        device = ar.proj_in.weight.device
        require(device.type == "cuda", f"the AR model is on {device}; expected cuda for CUDA graphs")
        self.inner.check(ar)

    def recorder(self, ar: SphereAR) -> Recorder:
        """A new recorder for a session with this model."""
        return GraphRecorder(ar.proj_in.weight.device)

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session with graphs of the weights where they are now."""
        return self._session(ar, rows, cache)

    @contextmanager
    def _session(self, ar: SphereAR, rows: int, cache: KVCache | None) -> Iterator[Session]:
        key = (rows, torch.get_float32_matmul_precision(), addresses(ar))
        graphs = self.kept.take(ar, key)
        graphs = graphs or GraphSession(cache or ar.kv_cache(rows), Recordings(self.recorder(ar)))
        graphs.cache.clear()
        try:
            with self.inner.session(ar, rows, graphs.cache) as inner:
                yield graphs.of(inner)
        finally:
            self.kept.get(ar, key, lambda: graphs)


def addresses(ar: SphereAR) -> tuple[Any, ...]:
    """Where every weight and table is, and of which kind."""
    return tuple((x.data_ptr(), x.shape, x.dtype, x.device) for x in tensors_of(ar))
