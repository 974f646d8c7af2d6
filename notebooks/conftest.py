"""How pytest tests a notebook: nbval runs every cell in a kernel of its own, under the pinned environment.

One command for all of them needs what nbval's flags cannot say: figure notebooks are compared strictly with their
stored outputs, those that train or hold widgets run with only the cells tagged `nbval-check-output` compared, and
the environment must reach the kernels alone, or it would slow all other tests. So notebooks are collected here,
as nbval's own files, and `--nbval` stays off.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

from spherear.figures.display import PLOTLY
from spherear.live.notebooks import CELL_TIMEOUT, pinned

STRICT = ("01", "04", "06")
SANITIZE = Path(__file__).parent / "sanitize.cfg"
KERNEL_TIMEOUT = 180  # seconds


class PinnedNotebook(IPyNbFile):
    """A notebook whose kernel starts under `pinned`; strict or lax by its number.

    Plotly's numbers are not compared as text: those of their static twins are tested against golden ones.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.compare_outputs = self.path.name.startswith(STRICT)
        self.skip_compare = (*self.skip_compare, PLOTLY)

    def collect(self) -> Iterator[IPyNbCell]:
        for cell in super().collect():
            cell.add_marker("slow")
            yield cell

    def setup(self) -> None:
        option = self.config.option
        option.nbval_current_env = True
        option.nbval_sanitize_with = str(SANITIZE)
        option.nbval_cell_timeout = CELL_TIMEOUT
        option.nbval_kernel_startup_timeout = KERNEL_TIMEOUT
        with pinned(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # nbval leaves /dev/null open
            super().setup()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> PinnedNotebook | None:
    if file_path.suffix != ".ipynb" or ".ipynb_checkpoints" in file_path.parts:
        return None
    return PinnedNotebook.from_parent(parent, path=file_path)
