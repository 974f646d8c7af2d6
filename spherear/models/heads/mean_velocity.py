"""Heads of few evaluations: the average velocity of a whole step, with the guidance scale as an input.

How one is distilled from a velocity head is in `training.distillation`; here it learns from data alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherear.models.config import require
from spherear.models.heads.geodesic import GeodesicHead
from spherear.models.heads.velocity import (
    TimeEmbedding,
    VelocityHead,
    check_shape,
    repeated,
)
from spherear.sphere.spaces import Space

LARGEST_SCALE = 8.0  # guidance scale up to which a head learns unless asked otherwise
SHORT = 1e-3  # spans below this count as none: the target is then the velocity itself
DRAWS = {"times", "noise", "ends", "scales"}
INSTANT = 0.5  # share of rows that learn the velocity itself
PLAIN = 0.5  # share of rows at the smallest scale, of a head that learns from itself; see `loss`

Average = Callable[[Tensor, Tensor, Tensor], Tensor]
"""average(x, t, end): the average velocity from t to end of the flow that is at x at time t; (rows, dim)."""


class MeanVelocityHead(VelocityHead):
    """u(x, t, end | condition, scale): the average velocity between two times, so x + (end - t) u is the flow at `end`.

    One evaluation draws a token (t = 0, end = 1), more evaluations follow the flow in shorter steps. `scale` is the
    guidance scale of that flow, from `scales[0]` to `scales[1]`: guidance costs no second branch. With end = t and
    scale 1 it is the velocity itself, so `forward` without them is that of a velocity head.
    (Geng et al., Mean Flows for One-step Generative Modeling, 2025; Frans et al., One Step Diffusion via Shortcut
    Models, ICLR 2025; Meng et al., On Distillation of Guided Diffusion Models, CVPR 2023.)
    """

    takes_scale = True
    scales: Tensor

    def __init__(self, latent_dim: int, condition_width: int, width: int, depth: int, groups: int) -> None:
        super().__init__(latent_dim, condition_width, width, depth, groups)
        self.span_embed = TimeEmbedding(width)
        self.scale_embed = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        for last in (self.span_embed.mlp[-1], self.scale_embed[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.register_buffer("scales", torch.tensor([1.0, LARGEST_SCALE]))

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        t: Float[Tensor, "*batch"],
        condition: Float[Tensor, "*batch condition_width"],
        end: Float[Tensor, "*batch"] | None = None,
        scale: Float[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*batch dim"]:
        """Average velocity from t to `end` (t itself if None) at a guidance scale (1 if None)."""
        time = self.embed_span(t, t if end is None else end)
        guided = self.embed_condition(condition) + self.embed_scale(torch.ones_like(t) if scale is None else scale)
        return self.velocity(x, time, guided)

    def embed_span(self, t: Float[Tensor, "*shape"], end: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The part that depends only on the two times."""
        return self.time_embed(t) + self.span_embed(end - t)

    def embed_scale(self, scale: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        """The part that depends only on the guidance scale, through its logarithm."""
        return self.scale_embed(scale.log()[..., None].to(self.dtype))

    def draws(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        repeats: int,
        generator: torch.Generator | None = None,
        plain: float = PLAIN,
    ) -> dict[str, Tensor]:
        """As for a velocity head, and `ends` (the time itself for half of the rows) and `scales` of the guidance:
        the smallest for a share `plain` of the rows, and uniform for the others.
        """
        found = super().draws(tokens, repeats, generator)
        uniform = torch.rand((3, len(found["times"])), generator=generator, device=tokens.device)
        low, high = self.scales.float().to(tokens.device).unbind()
        times, other = found["times"], torch.where(uniform[0] < INSTANT, found["times"], uniform[1])
        spans = {"times": torch.minimum(times, other), "ends": torch.maximum(times, other)}
        return found | spans | {"scales": low + (high - low) * ((uniform[2] - plain) / (1 - plain)).clamp(min=0)}

    def loss(  # type: ignore[override]  # it needs the conditions without a label too
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        condition: Float[Tensor, "batch tokens width"],
        *,
        null: Float[Tensor, "batch tokens width"],
        repeats: int = 4,
        generator: torch.Generator | None = None,
        **given: Tensor | None,
    ) -> Float[Tensor, ""]:
        """`shortcut_loss` from data: the velocity is that of the path from noise to token, guided by the head itself.

        What the head adds, (s - 1) (u(condition) - u(null)) at scale 1, it learns for all s that it cannot yet tell
        apart. With rows weighted by 1 / s and s uniform from 1 to 8, it would thereby multiply the difference by 2.4
        at every step and diverge; with PLAIN of the rows at scale 1 by 0.5.

        null: the conditions of the same tokens without a label.  given: all of `draws`, or none to draw them here;
        ValueError for some of them, because a span has both of its times.
        """
        given = {name: value for name, value in given.items() if value is not None}
        drawn: dict[str, Any] = given or self.draws(tokens, repeats, generator)
        require(drawn.keys() == DRAWS, f"the draws given are {sorted(given)}; expected all of {sorted(DRAWS)}, or none")
        target, condition, null = repeated(tokens, repeats), repeated(condition, repeats), repeated(null, repeats)
        times, ends, scales, noise = (drawn[name] for name in ("times", "ends", "scales", "noise"))
        check_shape("times have", times, target.shape[:1])
        check_shape("noise has", noise, target.shape)
        x, velocity = self.space.path(noise, target, times[:, None])
        with torch.no_grad():
            away = self(x, times, condition) - self(x, times, null)
        velocity = velocity + (scales[:, None] - 1) * away
        return shortcut_loss(self.space, self.average(condition, scales), x, times, ends, velocity, 1 / scales)

    def average(self, condition: Float[Tensor, "rows width"], scale: Float[Tensor, " rows"]) -> Average:
        """The average velocity as a function of state and times alone."""
        return lambda x, t, end: self(x, t, condition, end, scale)


class GeodesicMeanHead(GeodesicHead, MeanVelocityHead):
    """The average velocity on the sphere: exp_x((end - t) u(x, t, end)) is the flow at `end`; x · u = 0.

    The step (end - t) u is the logarithm of the end point at x, so a draw keeps length sqrt(latent_dim) throughout.
    """


def shortcut_loss(
    space: Space, average: Average, x: Tensor, t: Tensor, end: Tensor, velocity: Tensor, weight: Tensor
) -> Float[Tensor, ""]:
    """Two half steps give the target of a whole one: u(x, t, end) = step(x, after both halves) / (end - t).

    Where end = t the target is the velocity. Targets have no gradient. Needs no derivative of the head. weight: of
    every row's squared error.
    """
    with torch.no_grad():
        half = (end - t) / 2
        middle = space.move(x, half[:, None] * average(x, t, t + half))
        there = space.move(middle, half[:, None] * average(middle, t + half, end))
        whole = space.step(x, there) / (end - t).clamp(min=SHORT)[:, None]
        target = torch.where((end - t < SHORT)[:, None], velocity, whole)
    return weighted(average(x, t, end) - target, weight)


def mean_flow_loss(
    space: Space, average: Average, x: Tensor, t: Tensor, end: Tensor, velocity: Tensor, weight: Tensor
) -> Float[Tensor, ""]:
    """The identity of MeanFlow: (end - t) u shrinks as t moves along the flow, u = v + (end - t) du/dt.

    du/dt is the derivative along the flow (velocity, 1, 0), by `torch.func.jvp`. On the sphere the part of v across the
    step counts θ cot θ (`Sphere.pulled`), and du/dt loses its part along x. Targets have no gradient.
    """
    flow = velocity, torch.ones_like(t), torch.zeros_like(end)
    u, change = torch.func.jvp(average, (x, t, end), flow)[:2]
    span = (end - t)[:, None]
    target = space.pulled(velocity, x, span * u.detach()) + span * space.tangent(change.detach(), x)
    return weighted(u - target, weight)


def weighted(error: Float[Tensor, "rows dim"], weight: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Mean of weight * error^2 over all entries."""
    return (weight[:, None] * error.square()).mean()
