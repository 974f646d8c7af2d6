"""Whether the lessons would notice: a copy of the library is broken on purpose, and the notebooks must fail.

A copy that is whole must pass in the same place, and a lesson must fail by one of its checks: trouble with copies is
not a lesson that notices.
"""

import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from tests.live.test_notebooks import FOLDER, run_pytest

GEOMETRY = Path("sphere", "geometry.py")
CHECK = '    if not radius > 0:\n        raise ValueError(f"radius must be positive, got {radius}")\n'

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


@pytest.mark.parametrize(
    ("mutate", "lesson"),
    [(whole, "01"), *product((no_projection,), ("01", "04", "05")), (swapped_weights, "04")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_lessons_fail_with_a_broken_library_alone(mutate, lesson, tmp_path):
    library, folder = tmp_path / "library", tmp_path / "notebooks"
    shutil.copytree(FOLDER.parent / "spherear", library / "spherear", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir()
    (notebook,) = FOLDER.glob(f"{lesson}_*.ipynb")
    shutil.copy(notebook, folder)
    mutate(library / "spherear")
    done = run_pytest(folder, library, *(() if mutate is whole else ("-x",)))  # one cell that notices is enough
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-3000:]
    cells = [int(number) for number in re.findall(r"^FAILED \S+::Cell (\d+)", done.stdout, re.MULTILINE)]
    print(f"{mutate.__name__}: lesson {lesson} fails in cells {cells}")
    assert bool(cells) == (mutate is not whole)
    assert 0 not in cells  # its imports work
    if cells:
        noticed, other = r"AssertionError|Cell outputs differ", r"(?:FileNotFound|ModuleNotFound|Import|Attribute)Error"
        assert re.search(noticed, done.stdout), done.stdout[-3000:]
        assert not re.search(other, done.stdout), done.stdout[-3000:]
