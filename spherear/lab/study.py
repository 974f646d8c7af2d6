"""The collapse study: run a grid's cells as independent jobs, gather what they measured, go on where it stopped.

Knows: folders, budgets and jobs.  Does not know: what a cell does, how figures look, or what a terminal is.

A study's folder holds `grid.json` (grid and command), a folder a cell (`<variant>/seed-<k>`: vae/, ar/,
log.txt, records.jsonl) and `results.jsonl`, the cells' records together.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from spherear.lab.cell import CELL_FILE, GRID_FILE, Reference, cell_folder, measure_point, real_latents, run_cell
from spherear.lab.grids import LEAST_IMAGES, Grid, Point, Variant
from spherear.lab.jobs import Ended, Job, run_jobs
from spherear.lab.records import Record, read_records, write_records
from spherear.models.config import require
from spherear.models.files import read_json, write_json
from spherear.train import pick_device
from spherear.training.data import load_data
from spherear.training.recipes import course

RESULTS_FILE = "results.jsonl"
MARGIN = 0.8  # share of a budget that is planned for
PROBE = 10  # steps of each training that are timed


def open_study(grid: Grid, folder: Path, command: str) -> Grid:
    """The grid that `folder` holds, or this one, written there first. Another study's folder: ValueError."""
    path = folder / GRID_FILE
    if not path.exists():
        write_json(path, {"command": command, "grid": grid.to_dict()})
        return grid
    found = Grid.from_dict(read_json(path)["grid"])
    require(found.name == grid.name, f"{folder} holds the study {found.name!r}; expected {grid.name!r}")
    return found


def waiting_cells(grid: Grid, folder: Path) -> list[tuple[str, int]]:
    """The cells whose records are not there yet."""
    return [cell for cell in grid.cells if not (cell_folder(folder, *cell) / CELL_FILE).exists()]


def run_study(grid: Grid, folder: Path, at_once: int, threads: int) -> Iterator[Ended]:
    """Run the waiting cells, each in a process of its own; `results.jsonl` grows as they end.

    Calling it again on the same folder goes on: finished cells are kept, others resume from their checkpoints.
    """
    jobs = [_job(folder, variant, seed, threads) for variant, seed in waiting_cells(grid, folder)]
    gather(grid, folder)
    with closing(run_jobs(jobs, at_once)) as ended:
        for job in ended:
            gather(grid, folder)
            yield job


def _job(folder: Path, variant: str, seed: int, threads: int) -> Job:
    command = (sys.executable, "-m", "spherear.lab.cell", str(folder), variant, str(seed), str(threads))
    return Job(f"{variant} seed {seed}", command, cell_folder(folder, variant, seed) / "log.txt")


def gather(grid: Grid, folder: Path) -> list[Record]:
    """All finished cells' records, written to `results.jsonl` together."""
    files = [cell_folder(folder, *cell) / CELL_FILE for cell in grid.cells]
    records = [record for file in files if file.exists() for record in read_records(file)]
    write_records(folder / RESULTS_FILE, records)
    return records


def within_budget(grid: Grid, minutes: float, at_once: int, threads: int) -> Grid:
    """The grid, its training and images scaled down by one factor where it would take longer here. Rough."""
    require(minutes > 0, f"budget is {minutes} minutes; expected more than 0")
    factor = MARGIN * minutes / estimate_minutes(grid, at_once, threads)
    return grid if factor >= 1 else grid.scaled(factor)


def estimate_minutes(grid: Grid, at_once: int, threads: int) -> float:
    """How long a grid takes here, from a few steps of its first variant and one small sheet of images."""
    tiny = replace(grid, vae_steps=PROBE, ar_steps=PROBE, images=LEAST_IMAGES)
    variant, kept = Variant.named(grid.variants[0]), torch.get_num_threads()
    torch.set_num_threads(threads)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = run_cell(tiny, variant, 0, Path(folder), pick_device("auto"))
    trained = time.monotonic()
    data = load_data(course(grid.preset).data, pipeline.vae.config.image_size)
    measure_point(tiny, pipeline, Point(2.0), Reference.of(tiny), real_latents(pipeline.vae, data, 0, limit=100)[0])
    sampled = time.monotonic()
    torch.set_num_threads(kept)
    training = (trained - began) * (grid.vae_steps + grid.ar_steps) / (2 * PROBE)
    sampling = (sampled - trained) * grid.images / LEAST_IMAGES * len(grid.points(has_projection=True))
    return (training + sampling) * len(grid.cells) / at_once / 60
