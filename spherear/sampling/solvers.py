"""Solvers and their time grids: integrate dx/dt = velocity(x, t) from noise at t = 0 to data at t = 1.

Grids always hold float32 values, whatever the dtype of x: a time is multiplied by 1000 before it is embedded, so
even a difference in its last digit would change the tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # only arithmetic here: the command line lists solvers without loading torch

Velocity = Callable[[Tensor, float], Tensor]
"""velocity(x, t): at x, (batch, dim), and a time of the solver's grid."""


def euler(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float]
) -> Float[Tensor, "batch dim"]:
    """x += v dt: first order, one evaluation per step, starting at noise[0]."""
    x = noise[0]
    for t, end in pairwise(times):
        x = x + velocity(x, t) * (end - t)
    return x


def heun(velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float]) -> Float[Tensor, "batch dim"]:
    """x += (v(x, t) + v(x + v dt, t + dt)) dt / 2: second order, two evaluations per step."""
    x = noise[0]
    for t, end in pairwise(times):
        dt = end - t
        slope = velocity(x, t)
        x = x + (slope + velocity(x + slope * dt, end)) * (dt / 2)
    return x


def adams_bashforth(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float]
) -> Float[Tensor, "batch dim"]:
    """x += (v + (v - v_previous) r / 2) dt with r = dt / dt_previous: second order, one evaluation per step.

    Two-step Adams-Bashforth with variable step size; the first step is an Euler step.
    """
    x, previous_slope, previous_dt = noise[0], None, 0.0
    for t, end in pairwise(times):
        dt, slope = end - t, velocity(x, t)
        step = slope if previous_slope is None else slope + (slope - previous_slope) * (dt / previous_dt / 2)
        x, previous_slope, previous_dt = x + step * dt, slope, dt
    return x


def euler_maruyama(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float]
) -> Float[Tensor, "batch dim"]:
    """x += (v + (1 - t) score) dt + sqrt(2 (1 - t) dt) noise, with a noise-free Euler step at the end.

    score = (t v - x) / (1 - t), so the drift is (1 + t) v - x. noise[0] is the start, noise[i + 1] is used in step i.
    """
    x = noise[0]
    for i, (t, end) in enumerate(pairwise(times[:-1])):
        dt = end - t
        drift = (1 + t) * velocity(x, t) - x
        x = x + drift * dt + math.sqrt(2 * (1 - t) * dt) * noise[i + 1]
    return x + velocity(x, times[-2]) * (times[-1] - times[-2])


def even(u: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """u: steps of equal length."""
    return u


def early(u: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """u^2: short steps near the noise, where guidance has most effect."""
    return u**2


def late(u: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """1 - (1 - u)^2: short steps near the data."""
    return 1 - (1 - u) ** 2


def ends(u: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """(1 - cos pi u) / 2: short steps at both ends."""
    return (1 - (math.pi * u).cos()) / 2


SPACINGS: dict[str, Callable[[Tensor], Tensor]] = {"even": even, "early": early, "late": late, "ends": ends}


def plain_grid(steps: int, last_step: float, spacing: str = "even") -> list[float]:
    """Times of `steps` steps from 0 to 1; `last_step` is not used."""
    import torch

    return SPACINGS[spacing](torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float32)).tolist()


def stochastic_grid(steps: int, last_step: float, spacing: str = "even") -> list[float]:
    """Times of `steps` steps from 0 to 1 - last_step, and of one step of length `last_step` to 1."""
    import torch

    if spacing == "even":
        return [*torch.linspace(0.0, 1.0 - last_step, steps + 1, dtype=torch.float32).tolist(), 1.0]
    return [*((1.0 - last_step) * torch.tensor(plain_grid(steps, last_step, spacing))).tolist(), 1.0]


@dataclass(frozen=True)
class Solver:
    """integrate: the solver.  grid(steps, last_step, spacing): its times.  evaluations: of the velocity, per step.

    noisy: whether it adds noise at every step and ends with one noise-free step.
    """

    integrate: Callable[[Velocity, Tensor, list[float]], Tensor]
    grid: Callable[[int, float, str], list[float]]
    evaluations: int = 1
    noisy: bool = False

    def draws(self, steps: int) -> int:
        """Rows of noise per token."""
        return steps + 1 if self.noisy else 1


SOLVERS = {
    "euler": Solver(euler, plain_grid),
    "heun": Solver(heun, plain_grid, evaluations=2),
    "adams_bashforth": Solver(adams_bashforth, plain_grid),
    "euler_maruyama": Solver(euler_maruyama, stochastic_grid, noisy=True),
}
