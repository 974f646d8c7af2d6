"""Tables of named parts, and the modules of one's own that add rows to them. Does not import torch.

Families, heads, solvers, schedules, spacings, data sets, judges and grids are rows of a `Table`. A module of any
package adds its own with `TABLE.register`. Such modules are imported on request (`--import my_module`), by the
environment variable SPHEREAR_IMPORT, which child processes inherit, and by the entry points of the group `spherear`.
Nothing that a file names is ever imported: files say which module they need, and people decide.
"""

import importlib
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

RowT = TypeVar("RowT")
PartT = TypeVar("PartT")
GROUP, VARIABLE, OPTION = "spherear", "SPHEREAR_IMPORT", "--import"
PASSED = ("spherear.", "jaxtyping.", "beartype.")  # this package, and the checks of its tests
_plugins: list[str] = []  # entry points that were looked for; one mark is enough


class Table(dict[str, RowT]):
    """Named rows. User code adds its own: `TABLE.register(part)`, or the same as a decorator, with or without options.

    row: makes a row of a part and of the options of `register`; TypeError or ValueError for what cannot be one.
    modules: of the rows that user code added, the name of the module that did.
    """

    def __init__(self, rows: Mapping[str, RowT], row: Callable[..., RowT]) -> None:
        super().__init__(rows)
        self.row, self.own = row, frozenset(rows)
        self.modules: dict[str, str] = {}
        self.watchers: list[weakref.WeakMethod[Any]] = []

    def __missing__(self, name: str) -> RowT:
        load_parts()
        if name in self:
            return self[name]
        raise KeyError(name)

    def register(self, part: Any = None, name: str | None = None, **options: Any) -> Any:
        """Add `part` under `name`, or under its own name; returns it. Without a part: the decorator that does so.

        The same name again, from the same module, replaces the row. ValueError for the name of a row that ships or that
        another module has registered, and for a part without a name; for what else see `row`.
        """
        if part is None:
            return partial(self.register, name=name, **options)
        name = name or str(getattr(part, "name", None) or getattr(part, "__name__", ""))
        if not name.isidentifier():
            raise ValueError(f"the name is {name!r}; expected one that can stand in code")
        if name in self.own:
            raise ValueError(f"the name {name!r} is taken by a row that ships; expected another")
        module = _module_of(part)
        if name in self and self.modules.get(name, module) != module:
            raise ValueError(f"the name {name!r} is taken by the module {self.modules[name]}; expected another")
        self[name] = self.row(part, **options)
        self.modules[name] = module
        for watcher in list(self.watchers):
            if (method := watcher()) is None:
                self.watchers.remove(watcher)
            else:
                method(name)
        return part

    def watch(self, method: Callable[[str], Any]) -> None:
        """Call `method(name)`, a method of some object, after every `register`, as long as the object lives."""
        self.watchers.append(weakref.WeakMethod(method))


def _module_of(part: Any) -> str:
    """The module that defines a part, or that registers it if it is an instance of a class of this package."""
    name = str(getattr(part, "__module__", None) or PASSED[0])
    depth = 2
    while name.startswith(PASSED):
        name = str(sys._getframe(depth).f_globals.get("__name__", "__main__"))
        depth += 1
    return name


def needed_modules(choices: Iterable[tuple[Table[Any], object]]) -> list[str]:
    """The modules of one's own that registered what was chosen from tables, sorted."""
    return sorted(
        {table.modules[value] for table, value in choices if isinstance(value, str) and value in table.modules}
    )


@contextmanager
def reading(modules: object) -> Iterator[None]:
    """What a file needed when it was written: a ValueError inside says which of these modules are not imported."""
    try:
        yield
    except ValueError as error:
        names = [str(name) for name in modules] if isinstance(modules, list | tuple) else []
        missing = [name for name in names if name not in sys.modules or name == "__main__"]
        if not missing:
            raise
        raise ValueError(f"{error}. It was registered by {', '.join(map(_described, missing))}") from error


def _described(module: str) -> str:
    if module == "__main__":
        return "a script or notebook: run that first, or move it to a module"
    return f"the module {module}, which is not imported: `import {module}`, or {OPTION} {module} on the command line"


def import_part(name: str) -> None:
    """Import a module of one's own by name, or by the path of its .py file. The working directory counts.

    ImportError that names the module, if it is not there or raises.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise ImportError(f"{name} is not a file; expected a Python module")
        name = path.stem
    folder = str(path.resolve().parent) if path.suffix == ".py" else str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        importlib.import_module(name)
    except Exception as error:  # a module of one's own raises whatever it raises
        raise ImportError(
            f"the module {name!r} cannot be imported ({type(error).__name__}: {error}); expected one that is here or "
            "installed, and registers its parts"
        ) from error


def load_parts() -> None:
    """Import what SPHEREAR_IMPORT names and, once, the entry points of the group `spherear`; a broken one is a warning.

    ImportError for a module of SPHEREAR_IMPORT that cannot be imported.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        if Path(name).stem not in sys.modules and name not in sys.modules:
            import_part(name)
    if _plugins:
        return
    _plugins.append(GROUP)
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # somebody else's package must not stop this one
            warnings.warn(f"the entry point {point.name} ({point.value}) cannot be loaded: {error}", stacklevel=2)


def take_imports(args: Sequence[str]) -> list[str]:
    """Import what every `--import MODULE` of a command line names, for child processes too; returns the other words.

    ImportError for a module that cannot be imported, ValueError for the option without one.
    """
    left, names, words = list[str](), list[str](), iter(args)
    for word in words:
        if word == OPTION or word.startswith(f"{OPTION}="):
            name = word.partition("=")[2] or next(words, "")
            if not name or name.startswith("-"):
                raise ValueError(f"{OPTION} is followed by {name!r}; expected a module or a .py file")
            names.append(str(Path(name).expanduser().resolve()) if name.endswith(".py") else name)
        else:
            left.append(word)
    for name in names:
        import_part(name)
    if names:
        given = [name for name in os.environ.get(VARIABLE, "").split(",") if name and name not in names]
        os.environ[VARIABLE] = ",".join([*given, *names])
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if str(Path.cwd()) not in paths:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, str(Path.cwd())]))
    load_parts()
    return left
