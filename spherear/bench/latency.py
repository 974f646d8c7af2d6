"""Waiting times for the first partial image and the whole grid, per named settings, with the shipped models."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from spherear.bench.timing import Timing, measure
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import NAMED_SETTINGS, SamplingSettings


@dataclass(frozen=True)
class LatencyRow:
    """One of the named settings. first: until the first partial image.  grid: until the whole grid, not streamed.

    stream: until the whole grid, with a partial image after every token.
    """

    settings: str
    evaluations: int
    images: int
    first: Timing
    grid: Timing
    stream: Timing


def bench_latency(pipeline: Pipeline, images: int, guidance_scale: float, repeats: int) -> Iterator[LatencyRow]:
    """One row per named settings: `images` guided images of all classes in turn."""
    device = pipeline.ar.proj_in.weight.device
    labels = torch.arange(images) % pipeline.ar.config.num_classes
    for name in NAMED_SETTINGS:
        settings = SamplingSettings.named(name, guidance_scale=guidance_scale)
        yield LatencyRow(
            name,
            settings.evaluations,
            images,
            measure(lambda s=settings: list(islice(pipeline.stream(labels, s), 1)), device, repeats),  # type: ignore[misc]
            measure(lambda s=settings: pipeline.sample(labels, s), device, repeats),  # type: ignore[misc]
            measure(lambda s=settings: list(pipeline.stream(labels, s)), device, repeats),  # type: ignore[misc]
        )
