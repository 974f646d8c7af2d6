"""Commands for JupyterLab on a copy of the notebooks, and for Voila with only the guidance panel."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from spherear.models.config import require
from spherear.models.files import atomic_path, read_json, write_json
from spherear.processes import run

PACKAGE = Path(__file__).parents[1]
SETTINGS = Path(__file__).parent / "jupyter"
SUFFIXES = (".ipynb", ".png", ".md")
PAGE = """from IPython.display import Javascript, display
from spherear.live import GuidanceExplorer
panel = GuidanceExplorer({arguments})
panel.runner.wait(60)
display(panel)
display(Javascript("for (const after of [1, 3, 9]) setTimeout(() => dispatchEvent(new Event('resize')), 1000 * after)"))
"""


TITLE = "spherear: what guidance does to pictures drawn token by token, with and without a sphere"


@dataclass(frozen=True)
class Copied:
    """Relative paths of notebooks. new: copied.  same: existing, identical.  edited: existing, different, unchanged."""

    new: list[Path]
    same: list[Path]
    edited: list[Path]

    @property
    def first(self) -> Path:
        """The first notebook."""
        return min(p for p in (*self.new, *self.same, *self.edited) if p.suffix == ".ipynb" and len(p.parts) == 1)


def shipped_notebooks() -> Path:
    """The notebook folder: inside an installed package, or next to the package in a checkout."""
    candidates = PACKAGE / "notebooks", PACKAGE.parent / "notebooks"
    folders = [path for path in candidates if any(path.glob("*.ipynb"))]
    message = f"there are no notebooks in {candidates[0]} or {candidates[1]}; expected some: install it again"
    require(len(folders) > 0, message)
    return folders[0]


def copy_notebooks(folder: Path, source: Path | None = None) -> Copied:
    """Copy notebooks, their glossary and figures to `folder`. Existing files are never overwritten.

    `folder` is a file: ValueError.
    """
    source = source or shipped_notebooks()
    require(not folder.is_file(), f"{folder} is a file; expected a folder, or a name for a new one")
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.suffix in SUFFIXES and _is_visible(p, source))
    copied = Copied([], [], [])
    for path in files:
        target, content = folder / path, (source / path).read_bytes()
        if not target.exists():
            with atomic_path(target) as part:
                part.write_bytes(content)
            copied.new.append(path)
        else:
            (copied.same if target.is_file() and target.read_bytes() == content else copied.edited).append(path)
    return copied


def _is_visible(path: Path, source: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(source).parts)


def lab_command(folder: Path, notebook: Path, *, port: int = 8888, browser: bool = True) -> list[str]:
    """Command for JupyterLab on `folder`, opened at `notebook` below it; reachable only from this machine, by token."""
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.ip=localhost",
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={folder.resolve()}",
        f"--LabApp.default_url=/lab/tree/{notebook.as_posix()}",
        *([] if browser else ["--no-browser"]),
        *(["--allow-root"] if os.name == "posix" and os.geteuid() == 0 else []),  # root, as in most containers
    ]


def page_command(
    folder: Path,
    *,
    port: int = 8866,
    host: str = "localhost",
    browser: bool = True,
    visits: int = 4,
    idle: int = 15,
    model: Mapping[str, str] | None = None,
) -> list[str]:
    """Command for Voila, with a token, on a one-cell notebook with the guidance panel, written to `folder`.

    visits: kernels at once.  idle: minutes without use after which the kernel of an open page ends. Either below 1:
    ValueError.  model: the panel's arguments `ar`, `vae`, `device`, `dtype`, `engine`, as far as they are given.

    Pictures are downloads of the visitor's browser. The cell waits for the first picture, because a page can miss
    changes while it loads the controls, and sends resize events, because figures drawn before layout have the wrong
    size.
    """
    require(visits >= 1, f"visits is {visits}; expected at least 1")
    require(idle >= 1, f"idle is {idle} minutes; expected at least 1")
    notebook = folder / "guidance.ipynb"
    cell = PAGE.replace("{arguments}", arguments({**(model or {}), "folder": None}))
    write_notebook(notebook, [cell], TITLE)
    return [
        *(sys.executable, "-m", "voila", str(notebook)),
        *(f"--Voila.ip={host}", f"--Voila.port={port}", "--Voila.auto_token=True"),
        *("--VoilaConfiguration.template=spherear", "--VoilaConfiguration.allow_template_override=NO"),
        "--VoilaConfiguration.multi_kernel_manager_class=spherear.live.jupyter.visits.Visits",
        *(f"--Visits.most={visits}", f"--Visits.cull_idle_timeout={60 * idle}"),
        *("--Visits.cull_connected=True", "--Visits.cull_interval=10"),
        *([] if browser else ["--no-browser"]),
    ]


def arguments(values: Mapping[str, object]) -> str:
    """Keyword arguments as they stand in Python code."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def model_notebook(folder: Path, stem: str, model: Mapping[str, str]) -> Path:
    """A notebook in `folder` with the guidance panel of a model; returns its name there.

    One that begins with the same cell is left as it is, with whatever was added; another one is never overwritten.
    """
    cell = f"from spherear.live import GuidanceExplorer\n\nGuidanceExplorer({arguments(model)})"
    for number in count(1):
        path = folder / (f"{stem}.ipynb" if number == 1 else f"{stem}-{number}.ipynb")
        if not path.exists():
            write_notebook(path, [cell])
        if _first_cell(path) == cell:
            return path.relative_to(folder)
    raise AssertionError  # count does not end


def _first_cell(path: Path) -> str | None:
    """The source of a notebook's first cell; None if the file is no notebook."""
    try:
        source = read_json(path)["cells"][0]["source"]
    except (ValueError, OSError, LookupError, TypeError):
        return None
    return "".join(source)


def write_notebook(path: Path, cells: Sequence[str], title: str = "") -> None:
    """Write a notebook of code cells without outputs. title: of the page that shows it."""
    code_cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": cell}
        for i, cell in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, **({"title": title} if title else {})}
    write_json(path, {"cells": code_cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def check_jupyter_folders() -> None:
    """OSError, which names the variable that moves it, if a folder in which Jupyter keeps its state cannot be written.

    Jupyter itself would say so in a traceback, the page only at the first visit.
    """
    from jupyter_core import paths

    places = {
        "JUPYTER_CONFIG_DIR": paths.jupyter_config_dir(), "JUPYTER_DATA_DIR": paths.jupyter_data_dir(),
        "JUPYTER_RUNTIME_DIR": paths.jupyter_runtime_dir(),
    }  # fmt: skip
    for variable, folder in places.items():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(
                f"{folder} cannot be written ({error.strerror}), and Jupyter keeps its state there; "
                f"expected a folder that can be written: {variable} names another, HOME moves all"
            ) from error


def lab_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server. The settings shipped here are defaults; the user's settings override them.

    torch gets half of the processors, so that the server and the browser can run at the same time.
    """
    paths = {name: environment.get(name) for name in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH")}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    return {
        **threads,
        **environment,
        **{name: os.pathsep.join([str(SETTINGS), *([theirs] if theirs else [])]) for name, theirs in paths.items()},
    }


def run_lab(command: list[str]) -> int:
    """Run the server and return its exit status. It ends with this process (see `spherear.processes.run`)."""
    return run(command, lab_environment(os.environ))
