"""Sampling settings as data, without torch: guidance, solver, projection, temperature."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spherear.models.config import Config, one_of, require
from spherear.models.files import read_json, write_json
from spherear.sampling.solvers import SOLVERS, SPACINGS, Solver

MOST_STEPS = 100_000  # of a solver for one token; more is a mistake, and would take long to fail
Schedule = Callable[[float, int, int], float]


def linear(scale: float, index: int, tokens: int) -> float:
    """1 + (scale - 1) index / tokens: the first token is unguided."""
    return 1.0 + (scale - 1.0) * index / tokens


def constant(scale: float, index: int, tokens: int) -> float:
    """The same scale for every token."""
    return scale


SCHEDULES: dict[str, Schedule] = {"linear": linear, "constant": constant}


@dataclass(frozen=True)
class SamplingSettings(Config):
    """How tokens are drawn; the defaults are the published ones."""

    guidance_scale: float = 4.5
    """s in v = v_null + s (v_cond - v_null); 1 is no guidance."""
    schedule: Literal[*SCHEDULES] = "linear"  # type: ignore[valid-type]
    """How s changes over the tokens: linear from 1, or constant."""
    solver: Literal[*SOLVERS] = "euler_maruyama"  # type: ignore[valid-type]
    """How a token is drawn from noise."""
    steps: int = 100
    """Solver steps per token."""
    last_step: float = 0.04
    """Length of the noise-free last step of euler_maruyama; the other solvers do not use it."""
    project: bool = True
    """Project every token onto the sphere before it is fed back."""
    temperature: float = 1.0
    """Factor on all noise."""
    spacing: Literal[*SPACINGS] = "even"  # type: ignore[valid-type]
    """Where the solver's steps are short: even, early (near the noise), late (near the data) or ends (both)."""

    def check(self) -> None:
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("solver", self.solver, SOLVERS)
        one_of("spacing", self.spacing, SPACINGS)
        scale, temperature = self.guidance_scale, self.temperature
        require(0 <= scale < float("inf"), f"guidance_scale is {scale}; expected a finite number, 0 or more")
        require(self.steps >= 1, f"steps is {self.steps}; expected at least 1")
        require(self.steps <= MOST_STEPS, f"steps is {self.steps}; expected at most {MOST_STEPS}")
        require(0 < self.last_step < 1, f"last_step is {self.last_step}; expected a number between 0 and 1")
        require(
            0 <= temperature < float("inf"),
            f"temperature is {temperature}; expected a finite number, 0 or more",
        )

    @property
    def method(self) -> Solver:
        """The solver's row in SOLVERS."""
        return SOLVERS[self.solver]

    @property
    def draws(self) -> int:
        """Rows of noise per token."""
        return self.method.draws(self.steps)

    def times(self) -> list[float]:
        """The solver's time grid, from 0 to 1."""
        return self.method.grid(self.steps, self.last_step, self.spacing)

    @property
    def evaluations(self) -> int:
        """Velocity evaluations per token."""
        return self.method.evaluations * self.steps + self.method.noisy

    def scale_at(self, index: int, tokens: int) -> float:
        """The guidance scale of token `index` of `tokens`."""
        return SCHEDULES[self.schedule](self.guidance_scale, index, tokens)

    @classmethod
    def named(cls, name: str, **changes: Any) -> "SamplingSettings":
        """A row of NAMED_SETTINGS, with changes. Unknown names: ValueError that lists the known ones."""
        one_of("settings", name, NAMED_SETTINGS)
        return replace(NAMED_SETTINGS[name], **changes)

    def to_json(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "SamplingSettings":
        """The inverse of `to_json`. ValueError for any other text."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"settings are {text!r}; expected JSON ({error})") from error
        require(isinstance(values, dict), f"settings are {text!r}; expected a JSON object")
        return cls.from_dict(values)

    def save(self, path: str | Path) -> None:
        """Write the settings as a JSON file."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "SamplingSettings":
        """Read what `save` wrote."""
        return cls.from_dict(read_json(Path(path)))


NAMED_SETTINGS: dict[str, SamplingSettings] = {
    "reference": SamplingSettings(),
    "balanced": SamplingSettings(solver="adams_bashforth", steps=10, spacing="early"),
    "fast": SamplingSettings(solver="adams_bashforth", steps=6, spacing="early"),
}
"""The published settings (`reference`), and settings with about 1/10 and 1/17 of their evaluations.

On the shipped digits models, `balanced` and `fast` match `reference` within its spread over seeds; for the criterion
and the table see sweep.md of `python -m spherear.figures.gallery notebooks/figures sweep`. The weakest case is `fast`
on Gaussian latents at guidance 4.5: its recall is two standard deviations of the reference lower.
"""
