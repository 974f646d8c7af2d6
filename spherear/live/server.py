"""JupyterLab on a copy of the notebooks that never overwrites edits, and Voila on the guidance panel alone."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spherear.models.config import require
from spherear.models.files import atomic_path, write_json

PACKAGE = Path(__file__).parents[1]
SETTINGS = Path(__file__).parent / "jupyter"
SUFFIXES = (".ipynb", ".png")
PAGE = """from IPython.display import Javascript, display
from spherear.live import GuidanceExplorer
panel = GuidanceExplorer(folder=FOLDER)
panel.runner.wait(60)
display(panel)
display(Javascript("for (const after of [1, 3, 9]) setTimeout(() => dispatchEvent(new Event('resize')), 1000 * after)"))
"""


@dataclass(frozen=True)
class Copied:
    """Paths below the folder. new: copied.  same: there already.  edited: there, different, and left as they are."""

    new: list[Path]
    same: list[Path]
    edited: list[Path]

    @property
    def first(self) -> Path:
        """The notebook to begin with."""
        return min(p for p in (*self.new, *self.same, *self.edited) if p.suffix == ".ipynb" and len(p.parts) == 1)


def shipped_notebooks() -> Path:
    """The folder of the notebooks: inside an installed package, or beside it in a checkout."""
    places = PACKAGE / "notebooks", PACKAGE.parent / "notebooks"
    found = [place for place in places if any(place.glob("*.ipynb"))]
    require(len(found) > 0, f"there are no notebooks in {places[0]} or {places[1]}; expected some: install it again")
    return found[0]


def copy_notebooks(folder: Path, source: Path | None = None) -> Copied:
    """Copy notebooks and their figures below `folder`; what is there already stays as it is, whatever it is."""
    source = source or shipped_notebooks()
    require(not folder.is_file(), f"{folder} is a file; expected a folder, or a name for a new one")
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.suffix in SUFFIXES and _wanted(p, source))
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


def _wanted(path: Path, source: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(source).parts)


def lab_command(folder: Path, notebook: Path, *, port: int = 8888, browser: bool = True) -> list[str]:
    """JupyterLab on `folder`, opened at `notebook` below it; this machine alone reaches it, with its token."""
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.ip=localhost",
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={folder.resolve()}",
        f"--LabApp.default_url=/lab/tree/{notebook.as_posix()}",
        *([] if browser else ["--no-browser"]),
        *(["--allow-root"] if os.name == "posix" and os.geteuid() == 0 else []),  # as in most containers
    ]


def page_command(folder: Path, *, port: int = 8866, host: str = "localhost", browser: bool = True) -> list[str]:
    """Voila, with its token, on the guidance panel alone: a notebook of one cell, written to `folder`.

    Pictures are saved where the command is given. The first picture is waited for: what changes while a page fetches
    its controls, it can miss. Figures that are drawn before they have a place fit it once told of a new size.
    """
    notebook = folder / "guidance.ipynb"
    write_notebook(notebook, [PAGE.replace("FOLDER", repr(str(Path.cwd())))])
    address = [f"--Voila.ip={host}", f"--Voila.port={port}", "--Voila.auto_token=True"]
    return [sys.executable, "-m", "voila", str(notebook), *address, *([] if browser else ["--no-browser"])]


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """A notebook of code cells, not yet run."""
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": cell}
        for i, cell in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    write_json(path, {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


def lab_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server: our settings are defaults there, below the user's own.

    Half of the processors are for torch, so that server and browser, which show what it draws, need not wait for it.
    """
    others = environment.get("JUPYTER_CONFIG_PATH")
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))}
    return {
        **threads,
        **environment,
        "JUPYTER_CONFIG_PATH": os.pathsep.join([str(SETTINGS), *([others] if others else [])]),
    }


def run_lab(command: list[str]) -> int:
    """Run the server until it ends; Ctrl-C is its own, and it asks. Returns its exit status."""
    with subprocess.Popen(command, env=lab_environment(os.environ)) as server:
        while True:
            try:
                return server.wait()
            except KeyboardInterrupt:
                continue
