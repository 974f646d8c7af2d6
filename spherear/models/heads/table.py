"""The table of heads, one row per kind. Does not import torch: the classes are read when a head is made."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from typing import Any

from spherear.registry import Table
from spherear.sphere.families import SPARE


@dataclass(frozen=True)
class HeadKind:
    """A kind of head. make: (latent_dim, condition_width, width, depth, groups or codes) -> the module.

    letter, title, color, marker: its style in figures and panels.
    solver, steps: what a token is drawn with unless asked otherwise.
    discrete, curved, takes_scale: as the class says, see `contract.Head`.
    """

    letter: str
    title: str
    color: str
    marker: str
    make: Callable[..., Any] = field(compare=False, repr=False)
    solver: str = "euler_maruyama"
    steps: int = 100
    discrete: bool = False
    curved: bool = False
    takes_scale: bool = False

    @property
    def label(self) -> str:
        """Letter and title, such as 'g geodesic velocity'."""
        return f"{self.letter} {self.title}"


def _made(module: str, kind: str, *sizes: int) -> Any:
    return getattr(import_module(f"spherear.models.heads.{module}"), kind)(*sizes)


_ROWS = {
    "velocity": HeadKind("v", "velocity", "#0072B2", "o", partial(_made, "velocity", "VelocityHead")),
    "geodesic": HeadKind(
        "g", "geodesic velocity", "#009E73", "s", partial(_made, "geodesic", "GeodesicHead"), "heun", 50, curved=True
    ),
    "mean_velocity": HeadKind(
        "m", "mean velocity", "#D55E00", "D", partial(_made, "mean_velocity", "MeanVelocityHead"), "euler", 1,
        takes_scale=True,
    ),
    "geodesic_mean": HeadKind(
        "gm", "geodesic mean velocity", "#E69F00", "^", partial(_made, "mean_velocity", "GeodesicMeanHead"), "euler", 1,
        curved=True, takes_scale=True,
    ),
    "categorical": HeadKind(
        "c", "categorical", "#CC79A7", "P", partial(_made, "categorical", "CategoricalHead"), discrete=True
    ),
}  # fmt: skip
FIXED = {"make", "discrete", "curved", "takes_scale"}  # what the class itself says


def head_row(kind: Any, **look: Any) -> HeadKind:
    """The row of a class of one's own: a subclass of `VelocityHead` or `CategoricalHead`. look: fields of `HeadKind`.

    It is constructed as its base is, and drawn from through the methods of its base; solver, steps and marker are by
    default those of the base, letter and colour free ones. TypeError for another class or an unknown field, ValueError
    for a letter that is taken.
    """
    from spherear.models.heads.categorical import CategoricalHead
    from spherear.models.heads.velocity import VelocityHead

    if not (isinstance(kind, type) and issubclass(kind, VelocityHead | CategoricalHead)):
        raise TypeError(f"head is {kind!r}; expected a subclass of VelocityHead or CategoricalHead")
    unknown = sorted(look.keys() - ({field.name for field in fields(HeadKind)} - FIXED))
    if unknown:
        raise TypeError(f"a head has no field {unknown}; expected some of letter, title, color, marker, solver, steps")
    flags = {flag: getattr(kind, flag) for flag in ("discrete", "curved", "takes_scale")}
    alike = (row for row in _ROWS.values() if {flag: getattr(row, flag) for flag in flags} == flags)
    base, name = next(alike, _ROWS["velocity"]), kind.__name__.lower()
    others = [row for row in HEADS.values() if getattr(row.make, "__qualname__", "") != kind.__qualname__]
    taken, used = {row.letter for row in others}, {row.color for row in others}
    letters = (name[:size] for size in range(1, len(name) + 1))
    look.setdefault("letter", next((letter for letter in letters if letter not in taken), name))
    look.setdefault("color", next((color for color, _ in SPARE if color not in used), SPARE[-1][0]))
    defaults = {"title": name, "marker": base.marker, "solver": base.solver, "steps": base.steps}
    if look["letter"] in taken:
        raise ValueError(f"the letter of {name!r} is {look['letter']!r}; expected one that is not taken")
    values: dict[str, Any] = defaults | look | flags
    return HeadKind(make=kind, **values)


HEADS = Table[HeadKind](_ROWS, head_row)
"""Heads of AR models. A class of one's own becomes one by `@HEADS.register`, or `@HEADS.register(letter="q", ...)`."""
