"""Whether the lessons would notice: a copy of the library is broken on purpose, and the notebooks must fail.

A copy that is whole must pass in the same place, or any trouble with copies would look like a lesson that notices.
"""

import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
GEOMETRY = Path("sphere", "geometry.py")
CHECK = '    if not radius > 0:\n        raise ValueError(f"radius must be positive, got {radius}")\n'
INI = "[pytest]\nmarkers =\n    slow: slow\nfilterwarnings = error\n"

pytestmark = pytest.mark.slow


def whole(package):
    """Nothing is broken."""


def no_projection(package):
    """N_R(z) = z."""
    source = (package / GEOMETRY).read_text()
    assert source.count(CHECK) == 1
    (package / GEOMETRY).write_text(source.replace(CHECK, CHECK + "    return z\n"))


def swapped_weights(package):
    """Those of the Gaussian family in the files of the normalised one, and the other way round."""
    one, other = (package / "models" / "shipped" / f"digits-{name}" for name in ("gaussian", "normalized_gaussian"))
    for part in ("vae", "ar"):
        first, second = (folder / part / "model.safetensors" for folder in (one, other))
        first.rename(first.with_suffix(".aside"))
        second.rename(first)
        first.with_suffix(".aside").rename(second)


def failed_cells(folder, lesson):
    """Numbers of the cells of `lesson` that fail with the library in `folder`; some others must pass."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q", "--color=no", "-rf"]
    (notebook,) = (folder / "notebooks").glob(f"{lesson}_*.ipynb")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, "-c", str(folder / "pytest.ini"), str(notebook)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-3000:]
    return [int(number) for number in re.findall(r"^FAILED \S+::Cell (\d+)", done.stdout, re.MULTILINE)]


@pytest.mark.parametrize(
    ("mutate", "lesson"),
    [*product((whole, no_projection), ("01", "04", "05")), (swapped_weights, "04")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_lessons_fail_with_a_broken_library_alone(mutate, lesson, tmp_path):
    shutil.copytree(REPOSITORY / "spherear", tmp_path / "spherear", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    (tmp_path / "pytest.ini").write_text(INI)
    mutate(tmp_path / "spherear")
    cells = failed_cells(tmp_path, lesson)
    print(f"{mutate.__name__}: lesson {lesson} fails in cells {cells}")
    assert bool(cells) == (mutate is not whole)
    assert 0 not in cells  # its imports work
