"""Configs as frozen dataclasses that convert to JSON and back and refuse values of the wrong type."""

import dataclasses
import types
from collections.abc import Hashable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from spherear.registry import Table, load_parts, needed_modules, reading

ConfigT = TypeVar("ConfigT", bound="Config")
LARGEST, MOST_LAYERS = 2**24, 2**12
"""Sizes beyond these are mistakes, and would take long to fail."""


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` if the condition is false."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """ValueError if `value` is not among the `known` names; the message lists them, the most similar first.

    A name that a `Table` lacks is looked for in modules of one's own first, see `registry.load_parts`.
    """
    if isinstance(known, Table) and value not in known:
        load_parts()
    names = sorted(known)
    nearest = get_close_matches(str(value), names, n=1)
    listed = ", ".join(map(repr, [*nearest, *(name for name in names if name not in nearest)]))
    require(value in names, f"{name} is {value!r}; expected one of {listed}")


def _fits(value: object, annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if origin is Literal:  # names from a table, or functions in their place; `check` validates them
        return isinstance(value, str) or callable(value)
    if origin is tuple:
        item = get_args(annotation)[0]
        return isinstance(value, tuple) and all(_fits(v, item) for v in value)
    if annotation is float:
        return isinstance(value, float) or _fits(value, int)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, annotation)


def _plain(value: Any) -> Any:
    """A field's value for JSON; a config in it converts itself."""
    if isinstance(value, Config):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@cache
def _types(kind: Hashable) -> dict[str, Any]:
    """The type of every field. Names from tables are annotated by text, so that a command offers new rows too."""
    return get_type_hints(kind)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every config. TypeError or ValueError, at construction, for fields that do not fit.

    tables: of the fields that name a row of a table, that table.
    """

    tables: ClassVar[Mapping[str, Table[Any]]] = {}

    def __post_init__(self) -> None:
        kind: Any = type(self)
        types = _types(kind)
        for field in dataclasses.fields(self):
            value, expects = getattr(self, field.name), types[field.name]
            if not _fits(value, expects):
                expected = getattr(expects, "__name__", expects)
                raise TypeError(f"{type(self).__name__}.{field.name} is {value!r}; expected {expected}")
        self.check()

    def check(self) -> None:
        """Raise ValueError if a field, or a combination of fields, is invalid."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, ready for JSON; `modules`: those of one's own that they need, if any."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        modules = self.needed_modules()
        return values | {"modules": modules} if modules else values

    def needed_modules(self) -> list[str]:
        """The modules of one's own whose rows the fields name."""
        return needed_modules((table, getattr(self, name)) for name, table in self.tables.items())

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """The inverse of `to_dict`. Missing fields take their defaults; without one, or unknown ones: ValueError.

        So is the name of a row that nobody has registered; the message names the module that did, if `values` do.
        """
        values = dict(values)
        modules = values.pop("modules", [])
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, f"{cls.__name__} has no field {unknown}; its fields are {sorted(known)}")
        needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        missing = sorted(needed - set(values))
        require(not missing, f"{cls.__name__} lacks {missing}; expected all of {sorted(needed)}")
        with reading(modules):
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
