"""Lazy exports: names of a package that are imported on first use, so that importing the package stays fast."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def export_lazily(namespace: dict[str, Any], homes: Mapping[str, Sequence[str]]) -> None:
    """Let a package (`namespace`: its `globals()`) export names from modules that are imported on first use."""
    module_of = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        namespace[name] = getattr(import_module(module_of[name]), name)
        return namespace[name]

    namespace |= {"__getattr__": __getattr__, "__dir__": lambda: [*namespace, *module_of], "__all__": sorted(module_of)}
