"""How long a person waits for the first partial image and the whole grid, with the shipped models.

Of S alone and of S beside G, by named settings and with a head of one evaluation per token. That head has not learnt
anything: its time does not depend on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from spherear.bench.timing import Timing, measure
from spherear.models.config import require
from spherear.models.pretrained import shipped_families
from spherear.sampling.engines import engine_named
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import NAMED_SETTINGS, SamplingSettings
from spherear.sampling.small.together import steps_together
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.distillation.student import student_of

FAMILIES = "power_spherical", "gaussian"
ENGINES = {"cpu": ("eager", "numpy"), "cuda": ("eager", "cuda_graphs")}
ONE = "one evaluation"
MOST = 2000  # evaluations of an image; settings that take more are left out, nobody waits for them


@dataclass(frozen=True)
class LatencyRow:
    """One of the settings with one engine, of `models` models side by side, `images` images each.

    first: until the first partial images.  grid: until the whole ones, drawn in one go.  stream: until the whole ones,
    with partial ones after every token.  speedup: the grid's median as written over this one's.
    """

    preset: str
    models: int
    settings: str
    engine: str
    evaluations: int
    images: int
    first: Timing
    grid: Timing
    stream: Timing
    speedup: float


def bench_latency(
    preset: str, images: int, device: torch.device, guidance_scale: float, repeats: int
) -> Iterator[LatencyRow]:
    """A row for every number of models, settings and engine: guided images of all classes in turn.

    ValueError, when called, for a preset without shipped models of both families.
    """
    known = shipped_families(preset)
    require(
        set(FAMILIES) <= set(known), f"preset is {preset!r}; expected one whose models of {FAMILIES} ship, not {known}"
    )
    return _rows(preset, images, device, guidance_scale, repeats)


def _rows(preset: str, images: int, device: torch.device, guidance_scale: float, repeats: int) -> Iterator[LatencyRow]:
    names = [f"{preset}-{family}" for family in FAMILIES]
    pipelines = [Pipeline.from_pretrained(n, device=device, dtype="float32", engine="eager") for n in names]
    students = [Pipeline(p.vae, student_of(p.ar, DistillRecipe()).to(device)) for p in pipelines]
    ways = [(name, SamplingSettings.named(name, guidance_scale=guidance_scale)) for name in NAMED_SETTINGS]
    ways = [(name, s) for name, s in ways if s.evaluations * pipelines[0].ar.config.tokens <= MOST]
    ways.append((ONE, SamplingSettings(guidance_scale=guidance_scale, solver="euler", steps=1)))
    for count in range(1, len(FAMILIES) + 1):
        for name, settings in ways:
            drawn, baseline = (students if name == ONE else pipelines)[:count], 0.0
            for engine in ENGINES[device.type]:
                for pipeline in drawn:
                    pipeline.engine = engine_named(engine)
                first, grid, stream = (
                    measure(lambda d=drawn, s=settings, k=k: _draw(d, images, s, *k), device, repeats)  # type: ignore[misc]
                    for k in ((1, True), (None, False), (None, True))
                )
                baseline = baseline or grid.median
                yield LatencyRow(
                    preset, count, name, engine, settings.evaluations, images, first, grid, stream,
                    baseline / grid.median,
                )  # fmt: skip


def _draw(
    pipelines: Sequence[Pipeline], images: int, settings: SamplingSettings, tokens: int | None, partial: bool
) -> list[Tensor]:
    """Images of the first `tokens` tokens, all if None. partial: make some after every token, not only the last."""
    labels, made = torch.arange(images) % pipelines[0].ar.config.num_classes, list[Tensor]()
    sizes = [(p.ar.config.tokens, p.ar.config.latent_dim) for p in pipelines]
    grids = [p.ar.proj_in.weight.new_zeros(images, *size) for p, size in zip(pipelines, sizes, strict=True)]
    for steps in islice(steps_together(pipelines, labels, [settings] * len(pipelines), 0), tokens):
        for grid, step in zip(grids, steps, strict=True):
            grid[:, step.index] = step.token
        if partial or steps[0].index + 1 == sizes[0][0]:
            made = [p.images(grid) for p, grid in zip(pipelines, grids, strict=True)]
    return made
