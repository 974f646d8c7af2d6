"""Configs as frozen dataclasses that convert to JSON and back and refuse values of the wrong type."""

import dataclasses
import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

ConfigT = TypeVar("ConfigT", bound="Config")
LARGEST, MOST_LAYERS = 2**24, 2**12
"""Sizes beyond these are mistakes, and would take long to fail."""


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` if the condition is false."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """ValueError if `value` is not among the `known` names; the message lists them, the most similar first."""
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of every config. TypeError or ValueError, at construction, for fields that do not fit."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type):
                expected = getattr(field.type, "__name__", field.type)
                raise TypeError(f"{type(self).__name__}.{field.name} is {value!r}; expected {expected}")
        self.check()

    def check(self) -> None:
        """Raise ValueError if a field, or a combination of fields, is invalid."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values, ready for JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: dict[str, Any]) -> ConfigT:
        """The inverse of `to_dict`. Missing fields take their defaults; without one, or unknown ones: ValueError."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, f"{cls.__name__} has no field {unknown}; its fields are {sorted(known)}")
        needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        missing = sorted(needed - set(values))
        require(not missing, f"{cls.__name__} lacks {missing}; expected all of {sorted(needed)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
