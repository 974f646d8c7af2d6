"""What can be asked of a decode: guidance, solver, projection, temperature; as data, without torch."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spherear.models.config import Config, one_of, require
from spherear.models.files import read_json, write_json
from spherear.sampling.solvers import SOLVERS, SPACINGS, Solver

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
    """How s grows over the tokens: linear from 1, or constant."""
    solver: Literal[*SOLVERS] = "euler_maruyama"  # type: ignore[valid-type]
    """How a token is drawn from noise."""
    steps: int = 100
    """Solver steps per token."""
    last_step: float = 0.04
    """Length of the noise-free step that ends euler_maruyama; the other solvers have none."""
    project: bool = True
    """Put every token on the sphere before it is handed on."""
    temperature: float = 1.0
    """Factor on all noise."""
    spacing: Literal[*SPACINGS] = "even"  # type: ignore[valid-type]
    """Where the solver's times are dense: even, early (near the noise), late (near the data) or ends (both)."""

    def check(self) -> None:
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("solver", self.solver, SOLVERS)
        one_of("spacing", self.spacing, SPACINGS)
        scale, temperature = self.guidance_scale, self.temperature
        require(0 <= scale < float("inf"), f"guidance_scale is {scale}; expected a finite number, 0 or more")
        require(self.steps >= 1, f"steps is {self.steps}; expected at least 1")
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
        """Rows of noise a token takes."""
        return self.method.draws(self.steps)

    def times(self) -> list[float]:
        """The solver's time grid, from 0 to 1."""
        return self.method.grid(self.steps, self.last_step, self.spacing)

    @property
    def evaluations(self) -> int:
        """How often the velocity of a token is asked for."""
        return self.method.evaluations * self.steps + self.method.noisy

    def scale_at(self, index: int, tokens: int) -> float:
        """The guidance scale of token `index` of `tokens`."""
        return SCHEDULES[self.schedule](self.guidance_scale, index, tokens)

    @classmethod
    def named(cls, name: str, **changes: Any) -> "SamplingSettings":
        """A row of NAMED_SETTINGS, with changes. Unknown names: ValueError with the known."""
        one_of("settings", name, NAMED_SETTINGS)
        return replace(NAMED_SETTINGS[name], **changes)

    def to_json(self) -> str:
        """As a line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "SamplingSettings":
        """The inverse of `to_json`; what is not such JSON is a ValueError."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"settings are {text!r}; expected JSON ({error})") from error
        require(isinstance(values, dict), f"settings are {text!r}; expected a JSON object")
        return cls.from_dict(values)

    def save(self, path: str | Path) -> None:
        """Write as a JSON file."""
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
"""The published settings, and settings with a tenth and a seventeenth of their evaluations.

On the digits models that ship, `balanced` and `fast` are as good as `reference` within its spread over seeds, by the
rule and the table of `python -m spherear.figures.gallery notebooks/figures sweep` (sweep.md there); the weakest is
`fast` on Gaussian latents at guidance 4.5, whose recall is two of the reference's standard deviations lower.
"""
