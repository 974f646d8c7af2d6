"""Sampling settings as data, without torch: guidance, solver, projection, temperature."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from spherear.models.config import Config, one_of, require
from spherear.models.files import parse_object, read_json, write_json
from spherear.models.heads.table import HeadKind
from spherear.registry import Table, needed_modules
from spherear.sampling.choices import check_choice, chosen, name_of, parameters
from spherear.sampling.solvers import PARAMETERS as SPACING_PARAMETERS
from spherear.sampling.solvers import SOLVERS, SPACINGS, Solver, evaluation_times

MOST_STEPS = 100_000  # of a solver for one token; more is a mistake, and would take long to fail
PARAMETERS = ("scale", "index", "tokens", "t")


def linear(scale: float, index: int, tokens: int) -> float:
    """1 + (scale - 1) index / tokens: the first token is unguided."""
    return 1.0 + (scale - 1.0) * index / tokens


def constant(scale: float) -> float:
    """The same scale for every token."""
    return scale


def check_schedule(function: Any) -> Callable[..., float]:
    """The function. TypeError for parameters other than PARAMETERS."""
    parameters("schedule", function, PARAMETERS)
    return function


SCHEDULES = Table[Callable[..., float]]({"linear": linear, "constant": constant}, check_schedule)
"""The guidance scale of a token: functions of some of `scale` (the settings' guidance_scale), `index`, `tokens` and
`t`, the solver's time from 0 to 1."""


@dataclass(frozen=True)
class SamplingSettings(Config):
    """How tokens are drawn; the defaults are the published ones.

    `schedule`, `solver` and `spacing` are names of rows of SCHEDULES, SOLVERS and SPACINGS (annotated by those that the
    command line offers), or functions like these rows. A function is saved by the name it is registered under.
    """

    guidance_scale: float = 4.5
    """s in v = v_null + s (v_cond - v_null); 1 is no guidance."""
    schedule: "Literal[*SCHEDULES]" = "linear"  # type: ignore[valid-type]
    """How s changes over the tokens: linear from 1, or constant."""
    solver: "Literal[*SOLVERS]" = "euler_maruyama"  # type: ignore[valid-type]
    """How a token is drawn from noise."""
    steps: int = 100
    """Solver steps per token."""
    last_step: float = 0.04
    """Length of the noise-free last step of euler_maruyama; the other solvers do not use it."""
    project: bool = True
    """Project every token onto the sphere before it is fed back."""
    temperature: float = 1.0
    """Factor on all noise."""
    spacing: "Literal[*SPACINGS]" = "even"  # type: ignore[valid-type]
    """Where the solver's steps are short: even, early (near the noise), late (near the data) or ends (both); annealed:
    even, and fewer for later tokens."""

    def check(self) -> None:
        for name, table in TABLES.items():
            check_choice(name, getattr(self, name), table)
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
        """The solver."""
        return chosen(self.solver, SOLVERS)

    @property
    def draws(self) -> int:
        """Rows of noise of the first token."""
        return self.method.draws_for(self.times())

    def times(self, index: int = 0, tokens: int = 1) -> list[float]:
        """The solver's time grid for token `index` of `tokens`, from 0 to 1."""
        return self.method.grid(self.steps, self.last_step, self.spacing, index, tokens)

    def fitting(self, head: HeadKind) -> "SamplingSettings":
        """These settings if a head of this kind can honour them; otherwise with the solver and steps of the kind.

        For settings that nobody asked for. ValueError for what even these leave.
        """
        if not _refusal(head, self):
            return self
        fitted = replace(self, solver=head.solver, steps=min(self.steps, head.steps), spacing="even")
        check_settings(head, fitted)
        return fitted

    @property
    def same_times(self) -> bool:
        """Whether all tokens have the same times."""
        return not {"index", "tokens"} & set(parameters("spacing", chosen(self.spacing, SPACINGS), SPACING_PARAMETERS))

    @property
    def evaluations(self) -> int:
        """Velocity evaluations of the first token."""
        return self.evaluations_at(0, 1)

    def evaluations_at(self, index: int, tokens: int) -> int:
        """Velocity evaluations of token `index` of `tokens`."""
        return len(evaluation_times(self.method, tuple(self.times(index, tokens))))

    @property
    def scale_varies_in_time(self) -> bool:
        """Whether the guidance scale of a token depends on the solver's time."""
        return "t" in parameters("schedule", chosen(self.schedule, SCHEDULES), PARAMETERS)

    def scale_at(self, index: int, tokens: int, t: float | None = None) -> float:
        """The guidance scale of token `index` of `tokens` at solver time t; without t, its mean over the time grid.

        ValueError for a schedule that returns anything but a finite number.
        """
        if t is None and self.scale_varies_in_time:
            pieces = pairwise(self.times(index, tokens))
            return sum((end - t) * self.scale_at(index, tokens, t) for t, end in pieces)
        function = chosen(self.schedule, SCHEDULES)
        values = {"scale": self.guidance_scale, "index": index, "tokens": tokens, "t": t}
        found = function(**{name: values[name] for name in parameters("schedule", function, PARAMETERS)})
        try:
            scale = float(found)
        except (TypeError, ValueError):
            scale = math.nan
        at = f"token {index}" if t is None else f"token {index} at time {t:g}"
        require(math.isfinite(scale), f"the guidance scale of {at} is {found!r}; expected a finite number")
        return scale

    def scales_at(self, index: int, tokens: int) -> tuple[float, ...]:
        """The guidance scales of token `index`: one, or one per time of evaluation if it depends on the time."""
        if not self.scale_varies_in_time:
            return (self.scale_at(index, tokens),)
        points = dict.fromkeys(evaluation_times(self.method, tuple(self.times(index, tokens))))
        return tuple(self.scale_at(index, tokens, t) for t in points)

    def guided_at(self, index: int, tokens: int) -> bool:
        """Whether token `index` is guided: its scale is not 1 throughout."""
        return any(scale != 1.0 for scale in self.scales_at(index, tokens))

    @classmethod
    def named(cls, name: str, **changes: Any) -> "SamplingSettings":
        """A row of NAMED_SETTINGS, with changes. Unknown names: ValueError that lists the known ones."""
        one_of("settings", name, NAMED_SETTINGS)
        return replace(NAMED_SETTINGS[name], **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values. ValueError for a function that is not registered."""
        return super().to_dict() | self._names()

    def needed_modules(self) -> list[str]:
        """The modules of one's own that registered the schedule, the solver or the spacing."""
        return needed_modules((TABLES[field], name) for field, name in self._names().items())

    def _names(self) -> dict[str, str]:
        return {name: name_of(name, getattr(self, name), table) for name, table in TABLES.items()}

    def to_json(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "SamplingSettings":
        """The inverse of `to_json`. ValueError for any other text."""
        return cls.from_dict(parse_object(text, f"the text {text!r}"))

    def save(self, path: str | Path) -> None:
        """Write the settings as a JSON file."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "SamplingSettings":
        """Read what `save` wrote."""
        return cls.from_dict(read_json(Path(path)))


def can_honour(head: HeadKind, settings: SamplingSettings) -> bool:
    """Whether a head of this kind can be drawn from with these settings."""
    return not _refusal(head, settings)


def check_settings(head: HeadKind, settings: SamplingSettings) -> None:
    """ValueError for settings that a head of this kind cannot honour."""
    refusal = _refusal(head, settings)
    require(not refusal, refusal)


def _refusal(head: HeadKind, settings: SamplingSettings) -> str:
    """What a head cannot honour of the settings, and what is expected; empty if nothing."""
    solver, known = settings.solver, [name for name, row in SOLVERS.items() if row.curved]
    if (head.discrete or head.takes_scale) and settings.scale_varies_in_time:
        reason = "a categorical head has no solver" if head.discrete else "the head takes one scale per token"
        return f"the guidance schedule depends on t, and {reason}; expected one of index and tokens"
    if head.takes_scale and settings.method != SOLVERS["euler"]:
        return f"solver is {solver!r}; expected 'euler': a head of average velocities takes whole steps"
    if head.curved and not settings.method.curved:
        return f"solver is {solver!r}; expected one of {', '.join(known)}, which follow great circles"
    if head.curved and settings.temperature != 1:
        return f"temperature is {settings.temperature}; expected 1: noise on the sphere has one length"
    return ""


TABLES: dict[str, Table[Any]] = {"schedule": SCHEDULES, "solver": SOLVERS, "spacing": SPACINGS}
NAMED_SETTINGS: dict[str, SamplingSettings] = {
    "reference": SamplingSettings(),
    "balanced": SamplingSettings(solver="adams_bashforth", steps=10),
    "fast": SamplingSettings(solver="adams_bashforth_3", steps=6),
}
"""The published settings (`reference`), and settings with about 1/10 and 1/17 of their evaluations.

Both solve an ordinary differential equation. On digits `balanced` has the smallest error of all compared solvers and
spacings with as many evaluations, and `fast` is within 2 % of the smallest: tokens are 0.048 and 0.133 from the
solution (root mean square, of lengths 1 per dimension), where `early` spacing is 0.109 and 0.246 (`python -m
spherear.study.solver_errors error OUT digits-power_spherical digits-gaussian`). In colour, where sixty-four tokens feed
errors back, they are 0.31 and 0.40 from it, and `annealed` steps of `adams_bashforth_3` come nearer, 0.23 and 0.35
(`shapes-power_spherical shapes-gaussian`).

Images were compared at guidance 2 and 4.5 on all four models, ten blocks of 1,000 (`quality` instead of `error`): as
good is what lies, with its whole 95 % interval, within 10 % of the Frechet distance, 2 % of images recognised and 0.05
of recall. As good as with 20 evaluations is `balanced` in all eight places, and `fast` in seven: on Gaussian latents in
colour at 4.5 it may lose 2.2 % recognised. As good as `reference`, which adds noise at every step, is `balanced` in
five places: not on Gaussian latents in colour, where it may lose 2.5 % recognised, and not on spherical digits at 4.5,
where it may lose 0.052 of recall. `fast` is in three. Ten annealed steps of `adams_bashforth_3` are in all eight.
"""
