"""One token's way from noise to its place: the path, and the velocities that make it.

Knows: the head's velocity under a label and under none, and the solver between.  Does not know: how it is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import require
from spherear.models.head import VelocityHead
from spherear.sampling.draw import guide
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings, seeded_noise
from spherear.sampling.solvers import Velocity


@dataclass(frozen=True)
class TokenPath:
    """Token `position` of one image, drawn in n steps.

    times: n + 1 moments, from 0 to 1.  points: where the token was at those times, raw at the end.
    conditional, null, guided: velocities at the first n points, guided = null + scale (conditional - null).
    token: the end as it is handed on.  unguided: the path from the same noise and past without guidance.
    scale: of this position.
    """

    times: Float[Tensor, " moments"]
    points: Float[Tensor, "moments dim"]
    conditional: Float[Tensor, "n dim"]
    null: Float[Tensor, "n dim"]
    guided: Float[Tensor, "n dim"]
    token: Float[Tensor, " dim"]
    unguided: Float[Tensor, "moments dim"]
    scale: float


@torch.no_grad()
def token_path(
    pipeline: Pipeline,
    label: int,
    position: int,
    settings: SamplingSettings,
    seed: int,
    over: Callable[[], bool] = lambda: False,
) -> TokenPath | None:
    """The path that a decode of (label, seed) takes at `position`, looked into.

    over: asked before every token; once it says so, there is no path, but None.
    A position beyond the last, or a head without a velocity: ValueError.
    """
    tokens, head = pipeline.ar.config.tokens, pipeline.ar.head
    require(0 <= position < tokens, f"position is {position}; expected 0 to {tokens - 1}")
    require(isinstance(head, VelocityHead), f"the head is a {type(head).__name__}; expected one with a velocity")
    assert isinstance(head, VelocityHead)
    scale = settings.scale_at(position, tokens)
    conditions = _conditions(pipeline, label, position, settings, seed, over)  # (2, width)
    if conditions is None:
        return None
    noise = seeded_noise([seed])(position, (settings.draws, 1, head.final_linear.out_features))
    noise = noise.to(conditions.device, head.state_dtype) * settings.temperature

    def velocities(x: Tensor, t: float) -> Tensor:
        return head(x.expand(2, -1), x.new_full((2,), t), conditions)  # conditional, null

    points = _points(lambda x, t: guide(velocities(x, t), scale), noise, settings)
    unguided = _points(lambda x, t: velocities(x, t)[:1], noise, settings)
    times = settings.times()
    both = torch.stack([velocities(x[None], t) for x, t in zip(points[:-1], times, strict=False)])  # (n, 2, dim)
    conditional, null = both[:, 0], both[:, 1]
    token = pipeline.vae.project(points[-1]) if settings.project else points[-1]
    return TokenPath(
        torch.tensor(times), points, conditional, null, null + scale * (conditional - null), token, unguided, scale
    )


def _points(velocity: Velocity, noise: Tensor, settings: SamplingSettings) -> Float[Tensor, "moments dim"]:
    """Where the solver was at every time of its grid: what it asked about last at that time, and where it ended."""
    asked: dict[float, Tensor] = {}

    def watched(x: Tensor, t: float) -> Tensor:
        asked[t] = x[0]
        return velocity(x, t)

    times = settings.times()
    end = settings.method.integrate(watched, noise, times)
    return torch.stack([*(asked[t] for t in times[:-1]), end[0]])


def _conditions(
    pipeline: Pipeline, label: int, position: int, settings: SamplingSettings, seed: int, over: Callable[[], bool]
) -> Float[Tensor, "2 width"] | None:
    """What the transformer says before token `position`, under the label and under none.

    Both branches of a guided decode have the same past, but for tokens at scale 1: there the null branch drew
    its own.
    """
    ar = pipeline.ar
    shape = (2, ar.config.tokens, ar.config.latent_dim)
    past = torch.zeros(shape, device=ar.proj_in.weight.device, dtype=ar.head.state_dtype)
    alone = replace(settings, guidance_scale=1.0)
    branches = pipeline.steps([label], settings, seed), pipeline.steps([ar.null_label], alone, seed)
    for ours, nulls in islice(zip(*branches, strict=True), position):
        if over():
            return None
        past[0, ours.index] = ours.token[0]
        past[1, ours.index] = nulls.token[0] if ours.guidance_scale == 1.0 else ours.token[0]
    labels = torch.tensor([label, ar.null_label], device=past.device)
    return ar(past, labels)[:, position]


def arrow_tips(path: TokenPath, step: int) -> Float[Tensor, "3 dim"]:
    """x + (1 - t) v at a step, for the conditional, null and guided velocity: where each alone would end."""
    steps = len(path.guided)
    require(0 <= step < steps, f"step is {step}; expected 0 to {steps - 1}")
    left = 1 - float(path.times[step])
    return path.points[step] + left * torch.stack((path.conditional[step], path.null[step], path.guided[step]))
