"""Solvers and their time grids: integrate dx/dt = velocity(x, t) from noise at t = 0 to data at t = 1.

Those with `curved` integrate in any `Space`: in flat space as their docstrings say; on the sphere steps follow great
circles, and velocities of other points are carried to where they are added (parallel transport).

Grids always hold float32 values, whatever the dtype of x: a time is multiplied by 1000 before it is embedded, so
even a difference in its last digit would change the tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from spherear.models.config import require
from spherear.registry import Table
from spherear.sampling.choices import chosen, parameters

if TYPE_CHECKING:
    from torch import Tensor

    from spherear.sphere.spaces import Space
else:
    Tensor, Space = Any, object  # only arithmetic here: the command line lists solvers without loading torch

Velocity = Callable[[Tensor, float], Tensor]
"""velocity(x, t): at x, (batch, dim), and a time from 0 to 1."""


def _flat_unless(space: Space | None) -> Space:
    """The space, or flat space."""
    if space is not None:
        return space
    from spherear.sphere.spaces import Flat

    return Flat()


def euler(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float], space: Space | None = None
) -> Float[Tensor, "batch dim"]:
    """x += v dt: first order, one evaluation per step, starting at noise[0]."""
    x, space = noise[0], _flat_unless(space)
    for t, end in pairwise(times):
        x = space.move(x, velocity(x, t) * (end - t))
    return x


def heun(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float], space: Space | None = None
) -> Float[Tensor, "batch dim"]:
    """x += (v(x, t) + v(x + v dt, t + dt)) dt / 2: second order, two evaluations per step."""
    x, space = noise[0], _flat_unless(space)
    for t, end in pairwise(times):
        dt = end - t
        slope = velocity(x, t)
        step = slope * dt
        after = space.carry_back(velocity(space.move(x, step), end), x, step)
        x = space.move(x, (slope + after) * (dt / 2))
    return x


def midpoint(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float], space: Space | None = None
) -> Float[Tensor, "batch dim"]:
    """x += v(x + v(x, t) dt / 2, t + dt / 2) dt: second order, two evaluations per step, one between two times."""
    x, space = noise[0], _flat_unless(space)
    for t, end in pairwise(times):
        half = (end - t) / 2
        step = velocity(x, t) * half
        between = space.carry_back(velocity(space.move(x, step), t + half), x, step)
        x = space.move(x, between * (end - t))
    return x


def adams_bashforth(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float], space: Space | None = None
) -> Float[Tensor, "batch dim"]:
    """x += (v + (v - v_previous) r / 2) dt with r = dt / dt_previous: second order, one evaluation per step.

    Two-step Adams-Bashforth with variable step size; the first step is an Euler step.
    """
    x, previous_slope, previous_dt, space = noise[0], None, 0.0, _flat_unless(space)
    for t, end in pairwise(times):
        dt, slope = end - t, velocity(x, t)
        step = slope if previous_slope is None else slope + (slope - previous_slope) * (dt / previous_dt / 2)
        previous_slope, previous_dt = space.carry(slope, x, step * dt), dt
        x = space.move(x, step * dt)
    return x


def adams_bashforth_3(
    velocity: Velocity, noise: Float[Tensor, "draws batch dim"], times: list[float]
) -> Float[Tensor, "batch dim"]:
    """x += the integral of the parabola through the newest three velocities: one evaluation per step.

    Three-step Adams-Bashforth with variable step size; the first step is an Euler step, the second has two velocities.
    Third order where the first step is short (spacings early and ends), otherwise second.
    With v' and v'' the divided differences, a step is dt (v + v' dt / 2 + v'' (dt^2 / 3 + dt dt_previous / 2)).
    """
    x, past = noise[0], list[tuple[float, Tensor]]()  # the newest first
    for t, end in pairwise(times):
        dt, slope = end - t, velocity(x, t)
        past = [(t, slope), *past[:2]]
        step, first = slope, [(b - a) / (s - r) for (s, b), (r, a) in pairwise(past)]
        if first:
            step = step + first[0] * (dt / 2)
        if len(first) == 2:
            second = (first[0] - first[1]) / (t - past[2][0])
            step = step + second * (dt * dt / 3 + dt * (t - past[1][0]) / 2)
        x = x + step * dt
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


def annealed(steps: int, index: int, tokens: int) -> Float[Tensor, " points"]:
    """Even steps, fewer for later tokens: from 1.5 x `steps` for the first to 0.5 x for the last, `steps` on average.

    After DiSA (Zhao et al. 2025): the more tokens are drawn, the more they determine the next one.
    """
    import torch

    share = index / (tokens - 1) if tokens > 1 else 0.5
    return torch.linspace(0.0, 1.0, max(1, round((1.5 - share) * steps)) + 1, dtype=torch.float32)


PARAMETERS = ("u", "steps", "index", "tokens")


def check_spacing(function: Any) -> Callable[..., Any]:
    """The function. TypeError for parameters other than PARAMETERS."""
    parameters("spacing", function, PARAMETERS)
    return function


SPACINGS = Table[Callable[..., Any]](
    {"even": even, "early": early, "late": late, "ends": ends, "annealed": annealed}, check_spacing
)
"""Where a token's steps are: functions of some of `u` (the ends of `steps` even steps, from 0 to 1), `steps`, `index`
and `tokens`, that return times rising from 0 to 1. Their number may differ from token to token."""


def spaced(steps: int, spacing: str | Callable[..., Any], index: int, tokens: int) -> Float[Tensor, " points"]:
    """The times of token `index` of `tokens`, float32. ValueError unless they rise from 0 to 1."""
    import torch

    function = chosen(spacing, SPACINGS)
    values = {"u": torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float32), "steps": steps}
    values |= {"index": index, "tokens": tokens}
    found = function(**{name: values[name] for name in parameters("spacing", function, PARAMETERS)})
    times = torch.as_tensor(found, dtype=torch.float32)
    rising = times.ndim == 1 and len(times) > 1 and bool((times.diff() > 0).all())
    require(
        rising and (float(times[0]), float(times[-1])) == (0.0, 1.0),
        f"the times of token {index} are {_short(times.flatten().tolist())}; expected two or more, rising from 0 to 1",
    )
    return times


def _short(values: list[float]) -> str:
    shown = [f"{value:g}" for value in values]
    return ", ".join(shown if len(shown) < 9 else [*shown[:4], "...", *shown[-3:]])


@dataclass(frozen=True)
class Solver:
    """integrate(velocity, noise, times): the solver; it may evaluate velocity(x, t) at any times.

    noisy: whether it adds noise at every step and ends with one noise-free step.
    curved: whether it takes a `Space` as a fourth argument, and so integrates on the sphere too.
    """

    integrate: Callable[..., Tensor]
    noisy: bool = False
    curved: bool = False

    def __call__(
        self, velocity: Velocity, noise: Tensor, times: Sequence[float], space: "Space | None" = None
    ) -> Tensor:
        """`integrate` in a space, flat if None. ValueError for a curved one that the solver does not know."""
        if self.curved:
            return self.integrate(velocity, noise, list(times), space)
        flat = space is None or not space.curved
        require(flat, "the solver adds steps as in flat space; expected one that follows great circles")
        return self.integrate(velocity, noise, list(times))

    def grid(
        self, steps: int, last_step: float, spacing: str | Callable[..., Any] = "even", index: int = 0, tokens: int = 1
    ) -> list[float]:
        """The times of one token: `steps` steps from 0 to 1, spaced by a row of SPACINGS or a function like its rows.

        A noisy solver takes them from 0 to 1 - last_step, and then one step of length `last_step`.
        """
        import torch

        if not self.noisy:
            return spaced(steps, spacing, index, tokens).tolist()
        if spacing == "even":
            return [*torch.linspace(0.0, 1.0 - last_step, steps + 1, dtype=torch.float32).tolist(), 1.0]
        return [*((1.0 - last_step) * spaced(steps, spacing, index, tokens)).tolist(), 1.0]

    def draws(self, steps: int) -> int:
        """Rows of noise for one token, drawn in `steps` steps (and a noise-free one, if the solver is noisy)."""
        return steps + 1 if self.noisy else 1

    def draws_for(self, times: Sequence[float]) -> int:
        """Rows of noise for one token with this time grid."""
        return self.draws(len(times) - 1 - self.noisy)


@lru_cache(maxsize=256)
def evaluation_times(solver: Solver, times: tuple[float, ...]) -> tuple[float, ...]:
    """The times at which the solver evaluates the velocity, in order; found by solving dx/dt = 0."""
    import torch

    found: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        found.append(float(t))
        return torch.zeros_like(x)

    solver(velocity, torch.zeros(solver.draws_for(times), 1, 1), times)
    return tuple(found)


def as_solver(value: Any) -> Solver:
    """A solver, or a function integrate(velocity, noise, times) as one without noise. Anything else: TypeError."""
    if isinstance(value, Solver):
        return value
    if not callable(value):
        raise TypeError(f"solver is {value!r}; expected a name, a Solver, or a function (velocity, noise, times)")
    return Solver(value)


SOLVERS = Table[Solver](
    {
        "euler": Solver(euler, curved=True),
        "heun": Solver(heun, curved=True),
        "midpoint": Solver(midpoint, curved=True),
        "adams_bashforth": Solver(adams_bashforth, curved=True),
        "adams_bashforth_3": Solver(adams_bashforth_3),
        "euler_maruyama": Solver(euler_maruyama, noisy=True),
    },
    as_solver,
)
