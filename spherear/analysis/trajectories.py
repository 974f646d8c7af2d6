"""From noise to a token: the path of the solver, the velocities along it, and one image traced through all models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import require
from spherear.models.heads.velocity import VelocityHead
from spherear.sampling.decode import trace
from spherear.sampling.head_sampling import guide
from spherear.sampling.noise import seeded_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.sampling.solvers import Solver, Velocity


def record(velocity: Velocity, noise: Tensor, solver: Solver, times: list[float]) -> Float[Tensor, "points batch dim"]:
    """The states of a solver on its time grid: the last state evaluated at each time, and the final state."""
    states: dict[float, Tensor] = {}

    def recorded(x: Tensor, t: float) -> Tensor:
        states[t] = x
        return velocity(x, t)

    end = solver(recorded, noise, times)
    require(states.keys() >= set(times[:-1]), "the solver skips times of its grid; expected an evaluation at each")
    return torch.stack([*(states[t] for t in times[:-1]), end])


def _velocity_head(pipeline: Pipeline, position: int) -> VelocityHead:
    """The head. A head without a velocity in flat space: TypeError; a position beyond the last token: ValueError."""
    head, tokens = pipeline.ar.head, pipeline.ar.config.tokens
    if not isinstance(head, VelocityHead):
        raise TypeError(f"the head is a {type(head).__name__}; expected a VelocityHead")
    if head.curved or head.takes_scale:
        raise TypeError(f"the head is a {type(head).__name__}; expected a VelocityHead in flat space")
    require(0 <= position < tokens, f"position is {position}; expected 0 to {tokens - 1}")
    return head


@dataclass(frozen=True)
class TokenPath:
    """Token `position` of one image, drawn in n steps.

    times: n + 1 times, from 0 to 1.  points: states at those times; the last is the raw token.
    conditional, null, guided: velocities at the first n points, guided = null + scale (conditional - null).
    token: the last point after projection.  unguided: the path from the same noise and past without guidance.
    scale: guidance scale at this position, the mean over times.
    """

    times: Float[Tensor, " points"]
    points: Float[Tensor, "points dim"]
    conditional: Float[Tensor, "n dim"]
    null: Float[Tensor, "n dim"]
    guided: Float[Tensor, "n dim"]
    token: Float[Tensor, " dim"]
    unguided: Float[Tensor, "points dim"]
    scale: float


@torch.no_grad()
def token_path(
    pipeline: Pipeline,
    label: int,
    position: int,
    settings: SamplingSettings,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
) -> TokenPath | None:
    """The solver path at `position` when decoding (label, seed), with the velocities along it.

    stopped: called before every token; once it returns True, the result is None. Tensors of the result are on the CPU.
    A position beyond the last token: ValueError. A head without a velocity: TypeError.
    """
    tokens, head = pipeline.ar.config.tokens, _velocity_head(pipeline, position)
    scale = settings.scale_at(position, tokens)
    conditions = _conditions(pipeline, label, position, settings, seed, stopped)  # (2, width)
    if conditions is None:
        return None
    times = settings.times(position, tokens)
    noise = seeded_noise([seed])(position, (settings.method.draws_for(times), 1, head.final_linear.out_features))
    noise = noise.to(conditions.device, head.state_dtype) * settings.temperature

    def velocities(x: Tensor, t: float) -> Tensor:
        return head(x.expand(2, -1), x.new_full((2,), t), conditions)  # conditional, null

    def scale_at(t: float) -> float:
        return settings.scale_at(position, tokens, t)

    points = record(lambda x, t: guide(velocities(x, t), scale_at(t)), noise, settings.method, times)[:, 0]
    unguided = record(lambda x, t: velocities(x, t)[:1], noise, settings.method, times)[:, 0]
    both = torch.stack([velocities(x[None], t) for x, t in zip(points[:-1], times, strict=False)])  # (n, 2, dim)
    conditional, null = both[:, 0], both[:, 1]
    token = pipeline.vae.project(points[-1]) if settings.project else points[-1]
    scales = torch.tensor([[scale_at(t)] for t in times[:-1]], dtype=null.dtype, device=null.device)
    guided = null + scales * (conditional - null)
    points, conditional, null, guided = points.cpu(), conditional.cpu(), null.cpu(), guided.cpu()
    return TokenPath(torch.tensor(times), points, conditional, null, guided, token.cpu(), unguided.cpu(), scale)


def _conditions(
    pipeline: Pipeline, label: int, position: int, settings: SamplingSettings, seed: int, stopped: Callable[[], bool]
) -> Float[Tensor, "2 width"] | None:
    """The conditions of token `position` for the label and for the null class.

    Both branches of a guided decode have the same past, except for tokens at scale 1, which the null branch draws
    itself.
    """
    ar = pipeline.ar
    shape = (2, ar.config.tokens, ar.config.latent_dim)
    past = torch.zeros(shape, device=ar.proj_in.weight.device, dtype=ar.head.state_dtype)
    unguided = replace(settings, guidance_scale=1.0, schedule="linear")
    branches = pipeline.steps([label], settings, seed), pipeline.steps([ar.null_label], unguided, seed)
    for conditional, null in islice(zip(*branches, strict=True), position):
        if stopped():
            return None
        past[0, conditional.index] = conditional.token[0]
        guided = settings.guided_at(conditional.index, ar.config.tokens)
        past[1, conditional.index] = conditional.token[0] if guided else null.token[0]
    labels = torch.tensor([label, ar.null_label], device=past.device)
    return ar(past, labels)[:, position]


def arrow_tips(path: TokenPath, step: int) -> Float[Tensor, "3 dim"]:
    """x + (1 - t) v at a step, for the conditional, null and guided velocity: the end point along each velocity."""
    steps = len(path.guided)
    require(0 <= step < steps, f"step is {step}; expected 0 to {steps - 1}")
    remaining = 1 - float(path.times[step])
    return path.points[step] + remaining * torch.stack((path.conditional[step], path.null[step], path.guided[step]))


@dataclass(frozen=True)
class Trajectories:
    """Paths from noise to one token, one per seed. times: (points,).  points: (points, seeds, dim).

    radius: of the sphere, or None.
    """

    times: Float[Tensor, " points"]
    points: Float[Tensor, "points seeds dim"]
    radius: float | None


@torch.no_grad()
def trajectories(
    pipeline: Pipeline, label: int, position: int, seeds: Sequence[int], steps: int = 40, scale: float = 1.0
) -> Trajectories:
    """Euler paths to token `position` of one image, from one noise per seed; earlier tokens are drawn with seed 0.

    scale: guidance scale at this token only. A head without a velocity: TypeError. A position beyond the last token:
    ValueError.
    """
    ar, head = pipeline.ar, _velocity_head(pipeline, position)
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=steps)
    past = trace(pipeline.steps([label], settings)).tokens.repeat(2, 1, 1)
    condition = ar(past, torch.tensor([label, ar.null_label]))[:, position]  # (2, width)
    noise = seeded_noise(seeds)(position, (1, len(seeds), ar.config.latent_dim))
    rows = condition.repeat_interleave(len(seeds), dim=0)

    def velocity(x: Tensor, t: float) -> Tensor:
        return guide(head(x.repeat(2, 1), torch.full((len(rows),), t), rows), scale)

    times = torch.tensor(settings.times())
    return Trajectories(times, record(velocity, noise, settings.method, times.tolist()), pipeline.vae.bottleneck.radius)


@dataclass(frozen=True)
class Overview:
    """Intermediate results of encoding one image and generating another of the same label.

    image: the real image.  tokens: its latents.  reconstruction: these tokens decoded.
    condition: of token `position` of the generated image.  times, path: the solver path from noise to that token.
    raw, token: its end, before and after projection.  radius: of the sphere, or None.
    drawn: the generated image.
    """

    image: Float[Tensor, "3 size size"]
    reconstruction: Float[Tensor, "3 size size"]
    tokens: Float[Tensor, "tokens dim"]
    position: int
    condition: Float[Tensor, " width"]
    times: Float[Tensor, " points"]
    path: Float[Tensor, "points dim"]
    raw: Float[Tensor, " dim"]
    token: Float[Tensor, " dim"]
    radius: float | None
    drawn: Float[Tensor, "3 size size"]


@torch.no_grad()
def overview(
    pipeline: Pipeline,
    image: Float[Tensor, "3 size size"],
    label: int,
    position: int,
    steps: int = 40,
    seed: int = 0,
) -> Overview:
    """Encode and decode `image`; draw one of the same label, unguided, by Euler steps; trace token `position`.

    A head without a velocity: TypeError. A position beyond the last token: ValueError.
    """
    ar, vae, head = pipeline.ar, pipeline.vae, _velocity_head(pipeline, position)
    tokens = vae.encode(image[None]).mode
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=steps)
    drawn = trace(pipeline.steps([label], settings, seed))
    condition = ar(drawn.tokens, torch.tensor([label]))[:, position]  # (1, width), as in the decode
    path = _path(head, condition, seeded_noise([seed])(position, (1, 1, ar.config.latent_dim)), settings)
    return Overview(
        image, vae.decode(tokens)[0], tokens[0], position, condition[0], torch.tensor(settings.times()), path,
        drawn.raw[0, position], drawn.tokens[0, position], vae.bottleneck.radius, pipeline.images(drawn.tokens)[0],
    )  # fmt: skip


def _path(head: VelocityHead, condition: Tensor, noise: Tensor, settings: SamplingSettings) -> Tensor:
    """The solver path from noise to token: (points, dim)."""
    times = settings.times()
    embedded_times = dict(zip(times, head.embed_time(torch.tensor(times, dtype=head.state_dtype)), strict=True))
    embedded = head.embed_condition(condition)
    return record(lambda x, t: head.velocity(x, embedded_times[t], embedded), noise, settings.method, times)[:, 0]
