"""Spaces that a flow lives in, with the same four operations each: flat space and the sphere.

A head names its space, and solvers and objectives are written once for all of them. On the sphere of radius R every
operation is an equation of great circles, so a state keeps length R without a projection afterwards: what `move`
divides by is the rounding of its own result. (Chen & Lipman, Flow Matching on General
Geometries, ICLR 2024, sections 3 and 4.)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.sphere.geometry import inner, project

SAME = 1e-30  # squared lengths below which a direction is not defined


class Flat:
    """Euclidean space: straight lines."""

    curved = False

    def start(self, noise: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The state at t = 0: the noise itself."""
        return noise

    def path(
        self, noise: Float[Tensor, "*batch dim"], target: Float[Tensor, "*batch dim"], t: Float[Tensor, "*batch 1"]
    ) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim"]]:
        """x_t = (1 - t) noise + t target, and its velocity target - noise."""
        return (1 - t) * noise + t * target, target - noise

    def move(self, x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """x + step."""
        return x + step

    def step(self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The step from x to y: y - x."""
        return y - x

    def carry(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """A vector at x, seen from `move(x, step)`: the same."""
        return v

    def carry_back(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """A vector at `move(x, step)`, seen from x: the same."""
        return v

    def tangent(self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The part of v that is a velocity at x: all of it."""
        return v

    def pulled(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """How the step to a fixed end point shrinks per time while x moves with velocity v: v."""
        return v


@dataclass(frozen=True)
class Sphere:
    """The sphere of radius `radius`: great circles, and tangent vectors x · v = 0."""

    radius: float

    curved = True

    def start(self, noise: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The state at t = 0: R noise/|noise|, uniform on the sphere for normal noise."""
        return project(noise, self.radius)

    def path(
        self, noise: Float[Tensor, "*batch dim"], target: Float[Tensor, "*batch dim"], t: Float[Tensor, "*batch 1"]
    ) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim"]]:
        """x_t on the great circle from R noise/|noise| to R target/|target|, and its velocity, of constant length.

        x_t = R (a cos tθ + e sin tθ) and v = R θ (e cos tθ - a sin tθ): no division by 1 - t or by sin θ. For opposite
        points, which have no shortest way, one of them is taken.
        """
        a, end = self.start(noise) / self.radius, project(target, self.radius) / self.radius
        e, theta = self._way(a, end)
        along, across = (t * theta).cos(), (t * theta).sin()
        x = self.radius * (a * along + e * across)
        return self._on(x), self.radius * theta * (e * along - a * across)

    def move(self, x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """exp_x(step) = x cos(|step|/R) + R sin(|step|/R) step/|step|; whatever of `step` is along x does not count.

        Steps longer than π R go round the sphere. Only the rounding of the result is divided away.
        """
        step = self.tangent(step, x)
        angle, direction = self._polar(step)
        return self._on(x * angle.cos() + self.radius * direction * angle.sin())

    def step(self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """log_x(y): the shortest step from x to y, of length R angle(x, y); for y = -x, one of them."""
        e, theta = self._way(x / self.radius, y / self.radius)
        return self.radius * theta * e

    def carry(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Parallel transport of v from x along `step`: what points along the way turns with it, the rest stays."""
        angle, direction = self._polar(self.tangent(step, x))
        turned = direction * (angle.cos() - 1) - x / self.radius * angle.sin()
        return v + inner(v, direction)[..., None] * turned

    def carry_back(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """The inverse of `carry`: parallel transport from `move(x, step)` back to x."""
        angle, direction = self._polar(self.tangent(step, x))
        there = direction * angle.cos() - x / self.radius * angle.sin()
        return v + inner(v, there)[..., None] * (direction - there)

    def tangent(self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """v - (x · v) x/R^2: the part of v that is perpendicular to x."""
        return v - inner(x, v)[..., None] * x / self.radius**2

    def pulled(
        self, v: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch dim"], step: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """How the step to a fixed end point shrinks per time while x moves with velocity v.

        v along the step, and θ cot θ v across it (θ its angle): -D(log_x y) by Jacobi fields. Near the opposite point
        θ cot θ has no bound; there it is limited to -π.
        """
        angle, direction = self._polar(self.tangent(step, x))
        straight = inner(v, direction)[..., None] * direction
        factor = torch.where(angle < 1e-3, 1 - angle**2 / 3, angle * angle.cos() / angle.sin().clamp(min=1e-6))
        return straight + factor.clamp(min=-math.pi) * (v - straight)

    def _on(self, x: Tensor) -> Tensor:
        """x without the rounding of its length, which would add up over many steps."""
        return x * (self.radius / torch.linalg.vector_norm(x, dim=-1, keepdim=True))

    def _polar(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Angle (..., 1) and direction of a tangent vector; the direction is 0 where there is none."""
        square = inner(step, step)[..., None]
        some = square > SAME
        length = torch.where(some, square, 1.0).sqrt()
        return torch.where(some, length, 0.0) / self.radius, torch.where(some, step / length, 0.0)

    def _way(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Unit tangent at a towards b, and the angle (..., 1); for unit vectors. Accurate at both ends."""
        difference, total = b - a, a + b
        gap = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
        theta = 2 * torch.atan2(gap, torch.linalg.vector_norm(total, dim=-1, keepdim=True))
        near = torch.where(gap < 1, difference, total)  # the shorter of the two, without cancellation
        across = near - inner(near, a)[..., None] * a
        square = inner(across, across)[..., None]
        lost = (square <= SAME) & (theta > 1)  # opposite points
        across = torch.where(lost, self._any_tangent(a), across)
        length = torch.where(lost, inner(across, across)[..., None], square).clamp(min=SAME).sqrt()
        return across / length, theta

    def _any_tangent(self, a: Tensor) -> Tensor:
        """A vector perpendicular to a: the unit vector of a's smallest entry, without its part along a."""
        axis = torch.zeros_like(a).scatter_(-1, a.abs().argmin(-1, keepdim=True), 1.0)
        return axis - inner(axis, a)[..., None] * a


Space = Flat | Sphere
"""What the state of a flow lives in. Solvers and objectives call its methods."""
