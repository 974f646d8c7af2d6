"""What ships of a finished study: some of its models, in half precision, each with its log; and `full`'s records.

    python -m spherear.lab.ship runs/study/full
    python -m spherear.lab.ship runs/study/laws

Knows: which cell becomes which name.  Does not know: how cells are trained, or how names are found again.
"""

import json
import sys
from pathlib import Path

import torch

from spherear.lab.cell import GRID_FILE, cell_folder
from spherear.lab.grids import Grid, Variant
from spherear.lab.records import RESULTS, read_records, write_records
from spherear.lab.study import RESULTS_FILE
from spherear.models.config import require
from spherear.models.files import read_json, write_text
from spherear.models.pretrained import SHIPPED
from spherear.sampling.pipeline import Pipeline
from spherear.training.run import METRICS_FILE, RUN_FILE

SHIPS = {
    "full": ("S-04", "G-04", "F-02", "N-04", "VQ-64"),
    "laws": ("S-04", "G-04", "VQ-3"),
}
SEED = 0
LINES = 8  # of a training log


def name_of(grid: Grid, variant: str) -> str:
    """digits-power_spherical, digits3-vq and the like."""
    return f"{grid.preset}-{Variant.named(variant).family}"


def ship(study: Path, out: Path = SHIPPED) -> list[Path]:
    """Write the models of a finished study below `out`; returns their folders. Unknown studies: ValueError."""
    told = read_json(study / GRID_FILE)
    grid = Grid.from_dict(told["grid"])
    require(grid.name in SHIPS, f"the study is {grid.name!r}; expected one of {sorted(SHIPS)}")
    return [_ship(study, grid, variant, told["command"], out) for variant in SHIPS[grid.name]]


def _ship(study: Path, grid: Grid, variant: str, command: str, out: Path) -> Path:
    source, target = cell_folder(study, variant, SEED), out / name_of(grid, variant)
    Pipeline.from_pretrained(source).save_pretrained(target, torch.float16)
    for part in ("vae", "ar"):
        write_text(target / part / "model.log", _log(source / part, f"{command}  # cell {variant}, seed {SEED}"))
    return target


def _log(run: Path, command: str) -> str:
    """What was run, and some lines of its metrics from first to last."""
    lines = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    every = max(1, len(lines) // LINES)
    recipe = json.dumps(read_json(run / RUN_FILE)["recipe"])
    return "\n".join([f"command: {command}", f"recipe: {recipe}", *lines[::-every][::-1]]) + "\n"


def main(study: str) -> None:
    """Ship a study's models, and its records if it is the full one."""
    for folder in ship(Path(study)):
        print(folder)
    if Grid.from_dict(read_json(Path(study) / GRID_FILE)["grid"]).name == "full":
        write_records(RESULTS, read_records(Path(study) / RESULTS_FILE))


if __name__ == "__main__":
    main(*sys.argv[1:])
