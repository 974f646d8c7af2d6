"""Names of a package that are imported when they are first asked for, so that importing the package stays fast."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def export_lazily(namespace: dict[str, Any], homes: Mapping[str, Sequence[str]]) -> None:
    """Let a package (its `globals()`) export the names that each module holds, without importing any module yet."""
    home = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        namespace[name] = getattr(import_module(home[name]), name)
        return namespace[name]

    namespace |= {"__getattr__": __getattr__, "__dir__": lambda: [*namespace, *home], "__all__": sorted(home)}
