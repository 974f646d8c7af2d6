"""The engine `numpy`: a decode whose network is computed by numpy, for one model or several of one shape.

The solver, the projection and what begins a decode stay torch's; a head of one's own, or of codes, draws in torch too.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.heads.contract import Head
from spherear.models.heads.geodesic import GeodesicHead
from spherear.models.heads.mean_velocity import GeodesicMeanHead, MeanVelocityHead
from spherear.models.heads.velocity import HeadBlock, TimeEmbedding, VelocityHead
from spherear.models.layers import Attention, Block, KVCache, RMSNorm, Rotary, SwiGLU
from spherear.sampling.engines import Engine, Session
from spherear.sampling.head_sampling import NO_SCALE, Modulations, Times, embed_times, sample_token
from spherear.sampling.small.network import Array, Transformer, Velocity, stacked

BODY = {SphereAR, Block, Attention, SwiGLU, RMSNorm, Rotary, nn.Embedding, nn.Linear, nn.ModuleList}
HEADS = {VelocityHead, GeodesicHead, MeanVelocityHead, GeodesicMeanHead}
PARTS = {TimeEmbedding, HeadBlock, nn.Sequential, nn.SiLU, nn.LayerNorm, nn.Linear, nn.ModuleList}
DTYPES = torch.float32, torch.float64


def check_plain(ar: SphereAR) -> None:
    """ValueError for an AR model that is not on the CPU in float32 or float64, or has layers other than its own."""
    weight = ar.proj_in.weight
    require(weight.device.type == "cpu", f"the AR model is on {weight.device}; expected cpu for engine 'numpy'")
    require(weight.dtype in DTYPES, f"the AR model is {weight.dtype}; expected one of {DTYPES} for engine 'numpy'")
    head = set(ar.head.modules())
    for name, part in ar.named_modules():
        plain = part in head or (type(part) in BODY and not _hooked(part))
        require(plain, f"{name or 'the AR model'} is a {type(part).__name__}; expected its own layers, or engine eager")


def is_known(head: Head) -> bool:
    """Whether the head's network is the one that `Velocity` computes."""
    parts = list(head.modules())
    return type(head) in HEADS and not any(map(_hooked, parts)) and all(type(part) in PARTS for part in parts[1:])


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


class OneThread:
    """While anyone is inside, numpy multiplies in the caller's thread alone, as few rows want it.

    The threads of its products wait for work by spinning, and would keep those of torch off the processors.
    """

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0
        self.limit: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.inside == 0:
                self.limit = _products().limit(limits=1)
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self.limit.restore_original_limits()


@cache
def _products() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


one_thread = OneThread()


class InNumpy(Engine):
    """On the CPU, with the network in numpy.

    models: instead of the decode's own, those whose rows it holds, in the order (branches, models, images); they have
    its shape.  images: of each of them.
    """

    def __init__(self, models: Sequence[SphereAR] = (), images: int = 0) -> None:
        self.models, self.images = models, images

    @property
    def name(self) -> str:
        """The name in `ENGINES`."""
        return "numpy"

    def check(self, ar: SphereAR) -> None:
        """ValueError for a model that numpy cannot compute."""
        for model in self.models or (ar,):
            check_plain(model)

    def session(self, ar: SphereAR, rows: int, cache: KVCache | None = None) -> AbstractContextManager[Session]:
        """A session with the weights as they are now."""
        run = _Run(self.models or (ar,), self.images)
        token = run.sample_token if is_known(ar.head) else sample_token
        return nullcontext(Session(ar, cache or ar.kv_cache(rows), token, run.advance, run.start))


class _Run:
    """One decode of models whose rows lie in the order (branches, models, images)."""

    def __init__(self, models: Sequence[SphereAR], images: int) -> None:
        self.models, self.images = models, images
        self.transformer = Transformer(models)
        self.heads = [model.head for model in models if isinstance(model.head, VelocityHead)]
        self.velocity = Velocity(self.heads) if self.heads and is_known(self.heads[0]) else None
        self.times: dict[tuple[float, ...], Array] = {}

    def inward(self, x: Tensor) -> Array:
        """(rows, ...) -> (models, branches * images, ...); a view if there is one model or one branch."""
        models, rows = len(self.models), x.numpy()
        if models == 1:
            return rows[None]
        each = rows.reshape(-1, models, self.images, *rows.shape[1:]).swapaxes(0, 1)
        return each.reshape(models, -1, *rows.shape[1:])

    def outward(self, x: Array) -> Tensor:
        """The inverse of `inward`."""
        if len(self.models) == 1:
            return torch.from_numpy(x[0])
        each = x.reshape(len(self.models), -1, self.images, *x.shape[2:]).swapaxes(0, 1)
        return torch.from_numpy(each.reshape(-1, *x.shape[2:]))

    def start(self, ar: SphereAR, labels: Tensor, cache: KVCache) -> Tensor:
        """`SphereAR.start` of every model."""
        if len(self.models) == 1:
            return ar.start(labels, cache)
        cache.reserve(ar.config.class_tokens)
        conditions = []
        for number, (model, own) in enumerate(zip(self.models, self.inward(labels), strict=True)):
            begun = model.kv_cache(len(own))
            conditions.append(model.start(torch.from_numpy(own), begun))
            for kept, new in zip((*cache.keys, *cache.values), (*begun.keys, *begun.values), strict=True):
                kept.unflatten(0, (len(self.models), -1))[number].copy_(new)
        return self.outward(torch.stack(conditions).numpy())

    def advance(self, ar: SphereAR, token: Tensor, cache: KVCache, index: Tensor, span: int) -> Tensor:
        """`SphereAR.advance` of every model."""
        keys, values = (
            [kept.unflatten(0, (len(self.models), -1)).numpy() for kept in side] for side in (cache.keys, cache.values)
        )
        layers = list(zip(keys, values, strict=True))
        with one_thread():
            return self.outward(self.transformer.advance(self.inward(token), layers, int(index[-1])))

    def sample_token(
        self,
        head: Head,
        condition: Tensor,
        noise: Tensor,
        times: Times,
        scale: Tensor | None,
        temperature: float | int = 1.0,
    ) -> Tensor:
        """`head_sampling.sample_token` of every model."""
        assert isinstance(head, VelocityHead)
        with one_thread():
            return self._sample(head, condition, noise, times, scale, temperature)

    def _sample(
        self,
        head: VelocityHead,
        condition: Tensor,
        noise: Tensor,
        times: Times,
        scale: Tensor | None,
        temperature: float | int,
    ) -> Tensor:
        assert self.velocity is not None
        embedded = self.velocity.cond_embed(self.inward(condition))
        if isinstance(head, MeanVelocityHead):
            embedded += self._scale(noise.new_ones(1) if scale is None else scale)
            scale = None
        modulations = _Modulations(self.velocity, self._embedded(times), embedded)
        scales = None if scale is None else scale.tolist()
        index_of = {t: index for index, t in enumerate(times.points)}

        def velocity(x: Tensor, t: float) -> Tensor:
            index = index_of.get(t)
            if index is None:
                require(scales is None or len(scales) == 1, f"the solver evaluates at t = {t:g}; {NO_SCALE}")
            own = modulations.of(self._points((t,))) if index is None else modulations.at(index)
            found = self.velocity.at(self.inward(x), own)  # type: ignore[union-attr]
            if scales is not None:
                scale_now, half = scales[(index or 0) if len(scales) > 1 else 0], found.shape[1] // 2
                null = found[:, half:]
                found = null + found.dtype.type(scale_now) * (found[:, :half] - null)
            return head.space.tangent(self.outward(found), x)

        return times.solver(velocity, head.space.start(noise * temperature), times.grid, head.space)

    def _embedded(self, times: Times) -> Array:
        """The embeddings of a token's times by every model, (models, times, 1, width)."""
        if times.grid not in self.times:
            if len(self.heads) == 1:
                found = [times.embedded]
            else:
                found = [Times.of(head, times.solver, times.grid).embedded for head in self.heads]
            self.times[times.grid] = stacked(found)[:, :, None]
        return self.times[times.grid]

    def _points(self, points: tuple[float, ...]) -> Array:
        return stacked([embed_times(head, points) for head in self.heads])[:, :, None]

    def _scale(self, scale: Tensor) -> Array:
        return stacked([head.embed_scale(scale) for head in self.heads if isinstance(head, MeanVelocityHead)])


class _Modulations:
    """The modulations of one token, about as many rows at a time as in torch."""

    def __init__(self, network: Velocity, times: Array, condition: Array) -> None:
        self.network, self.times, self.condition = network, times, condition
        self.each = max(1, Modulations.ROWS // condition.shape[1])
        self.piece, self.found = -1, list[list[Array]]()

    def at(self, index: int) -> list[Array]:
        """Those at time number `index`."""
        piece, offset = divmod(index, self.each)
        if piece != self.piece:
            part = self.times[:, piece * self.each : (piece + 1) * self.each]
            self.piece, self.found = piece, self.network.modulations(part, self.condition)
        return self.found[offset]

    def of(self, embedded: Array) -> list[Array]:
        """Those at the time with this embedding."""
        return self.network.modulations(embedded, self.condition)[0]
