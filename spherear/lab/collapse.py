"""What guidance does to the length of tokens, beside the images it happens to.

Knows: a trained pipeline and its real latents.  Does not know: how it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.lab.diagnostics import NormComparison, compare_norms, trace
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings


@dataclass(frozen=True)
class CollapseRow:
    """One family. norms: of raw tokens against real ones, a guidance scale each.  images: ten a scale or fewer."""

    family: str
    scales: tuple[float, ...]
    norms: list[NormComparison]
    images: list[Float[Tensor, "n 3 size size"]]


def collapse_row(
    pipeline: Pipeline,
    latents: Float[Tensor, "n tokens dim"],
    scales: Sequence[float],
    images: int = 100,
    shown: int = 10,
    steps: int = 25,
    seed: int = 0,
) -> CollapseRow:
    """Draw `images` images (labels in turn, the same seeds) at every guidance scale; keep `shown` of them.

    latents: real tokens of the same VAE.
    """
    labels = torch.arange(images) % pipeline.ar.config.num_classes
    traces = [trace(pipeline.steps(labels, SamplingSettings(s, steps=steps), seed)) for s in scales]
    return CollapseRow(
        pipeline.vae.config.bottleneck,
        tuple(scales),
        [compare_norms(t.raw.cpu(), latents.cpu()) for t in traces],
        [pipeline.images(t.tokens[:shown]).cpu() for t in traces],
    )
