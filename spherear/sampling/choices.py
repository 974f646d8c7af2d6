"""Choices: a row of a table by name, or a function of one's own, called by the names of its parameters.

A schedule that names `index` and `tokens` gets these two; one that also names `t` gets the solver's time too. So a
function says by its parameters what it depends on. Does not import torch.
"""

import inspect
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

from spherear.models.config import one_of, require
from spherear.registry import Table

RowT = TypeVar("RowT")


def parameters(field: str, function: Callable[..., Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the `known` names that `function` takes. TypeError if it needs any other."""
    expected = f"expected a function of some of {', '.join(known)}, by these names"
    try:
        taken, others = _sorted_parameters(function, known)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{field} is {function!r}; {expected}") from error
    if others:
        raise TypeError(f"{field} takes {', '.join(others)}; {expected}")
    return taken


def _sorted_parameters(function: Callable[..., Any], known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The known names that a function takes, and the others that it needs. Asked at every token and solver time."""
    if isinstance(function, Hashable):
        return _kept(function, known)
    return _inspected(function, known)


def _inspected(function: Callable[..., Any], known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return known, ()
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in found if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    taken = tuple(name for name in known if name in named)
    return taken, tuple(name for name in needed if name not in taken)


_kept = lru_cache(maxsize=64)(_inspected)


def check_choice(field: str, value: object, table: Table[Any]) -> None:
    """ValueError for a name that the table lacks, TypeError for a function that cannot be a row."""
    if isinstance(value, str):
        one_of(field, value, table)
    else:
        table.row(value)


def chosen(value: Any, table: Table[RowT]) -> RowT:
    """The row of that name, or the row that a function makes."""
    return table[value] if isinstance(value, str) else table.row(value)


def name_of(field: str, value: Any, table: Table[Any]) -> str:
    """The name under which a choice is saved. ValueError for a function that is not a row of the table."""
    if isinstance(value, str):
        return value
    names = [name for name, row in table.items() if row == table.row(value)]
    require(
        len(names) > 0,
        f"{field} is the function {getattr(value, '__name__', value)!r}, which has no name to save it under; "
        "expected one that is registered in the table",
    )
    return names[0]
