"""Several models drawn side by side, token by token; those of one shape, by the engine `numpy`, in one decode."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.sampling.decode import Step, decode
from spherear.sampling.noise import consecutive_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.sampling.small.engine import InNumpy, is_known


def steps_together(
    pipelines: Sequence[Pipeline], labels: Int[Tensor, " batch"], settings: Sequence[SamplingSettings], seed: int
) -> Iterator[tuple[Step, ...]]:
    """One step of every pipeline at a time, with its own settings; the same labels, and seeds from `seed` on.

    The tokens are those of `Pipeline.steps`. Errors as there, and ValueError if one draws fewer tokens than another.
    """
    if _alike(pipelines, settings):
        return _in_one(pipelines, labels, settings[0], seed)
    return zip(*(p.steps(labels, own, seed) for p, own in zip(pipelines, settings, strict=True)), strict=True)


def _alike(pipelines: Sequence[Pipeline], settings: Sequence[SamplingSettings]) -> bool:
    """Whether the models can be one decode: all in numpy, of one shape and one dtype, with the same settings."""
    if len(pipelines) < 2 or any(type(p.engine) is not InNumpy for p in pipelines):
        return False
    shapes = {replace(p.ar.config, classes=()) for p in pipelines}
    kinds = {(type(p.ar.head), p.ar.proj_in.weight.dtype, _scales(p.ar)) for p in pipelines}
    same = all(own == settings[0] for own in settings)
    return same and len(shapes) == len(kinds) == 1 and all(is_known(p.ar.head) for p in pipelines)


def _scales(ar: SphereAR) -> tuple[float, ...]:
    return tuple(ar.head.scales.tolist()) if isinstance(ar.head, MeanVelocityHead) else ()


def _in_one(
    pipelines: Sequence[Pipeline], labels: Tensor, settings: SamplingSettings, seed: int
) -> Iterator[tuple[Step, ...]]:
    models, images = [p.ar for p in pipelines], len(labels)
    own = consecutive_noise(seed, images)

    def noise(index: int, shape: tuple[int, ...]) -> Tensor:
        return own(index, (shape[0], images, shape[2])).repeat(1, len(models), 1)

    def project(raw: Tensor) -> Tensor:
        return torch.cat([p.vae.project(rows) for p, rows in zip(pipelines, raw.split(images), strict=True)])

    engine = InNumpy(models, images)
    for step in decode(models[0], labels.repeat(len(models)), settings, noise, project, engine=engine):
        pairs = zip(step.raw.split(images), step.token.split(images), strict=True)
        yield tuple(replace(step, raw=raw, token=token) for raw, token in pairs)
