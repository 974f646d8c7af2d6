"""Run a study: each cell in its own process, records collected in one file, resumable.

A study's folder holds `grid.json` (grid and command), a folder per cell (`<variant>/seed-<k>`: vae/, ar/, log.txt,
records.jsonl) and `results.jsonl`, the records of all cells together.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from spherear.analysis.latents import real_latents
from spherear.models.config import require
from spherear.models.files import read_json, write_json
from spherear.sampling.placement import Placement
from spherear.study.cell import CELL_FILE, GRID_FILE, cell_folder, measure_point, reference_of, run_cell
from spherear.study.design import MIN_IMAGES, Grid, Point, Variant
from spherear.study.records import Record, read_records, select, write_records
from spherear.train import pick_device
from spherear.training.data import load_data

RESULTS_FILE = "results.jsonl"
MARGIN = 0.8  # share of the budget to plan for
PROBE = 10  # timed steps per training run
PAUSE = 0.2  # seconds between polls of the processes


@dataclass(frozen=True)
class Job:
    """A command to run. log: the file for its output."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class JobResult:
    """A finished job. status: exit status.  last_line: of its log.  seconds: duration."""

    job: Job
    status: int
    last_line: str
    seconds: float


def run_jobs(jobs: Sequence[Job], at_once: int) -> Generator[JobResult, None, None]:
    """Run the jobs in order, `at_once` at a time, and yield each when it ends; closing the generator kills the rest.

    Each job must first call `spherear.processes.exit_with_parent`, so that it cannot outlive this process.
    """
    waiting, running = list(jobs)[::-1], dict[subprocess.Popen, tuple[Job, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop()
                running[_start(job)] = (job, time.monotonic())
            for process in [p for p in running if p.poll() is not None]:
                job, start = running.pop(process)
                _close(process)
                yield JobResult(job, process.returncode, _last_line(job.log), time.monotonic() - start)
            time.sleep(PAUSE)
    finally:
        for process in running:
            process.kill()
            _close(process)


def _start(job: Job) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(job.command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


def _close(process: subprocess.Popen) -> None:
    """Wait for a process that has ended or was killed, and close its pipe."""
    with process:
        pass


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def open_study(grid: Grid, folder: Path, command: str) -> Grid:
    """The grid stored in `folder`, or `grid` after storing it there. A folder of another study: ValueError."""
    path = folder / GRID_FILE
    if not path.exists():
        write_json(path, {"command": command, "grid": grid.to_dict()})
        return grid
    values = read_json(path).get("grid")
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds the grid {values!r}; expected a JSON object")
    stored = Grid.from_dict(values)
    for name in ("name", "data", "judge"):
        there, asked = getattr(stored, name), getattr(grid, name)
        word = "study" if name == "name" else f"study with the {name}"
        require(there == asked, f"{folder} holds the {word} {there!r}; expected {asked!r}")
    return stored


def waiting_cells(grid: Grid, folder: Path) -> list[tuple[str, int]]:
    """The cells without a records file."""
    return [cell for cell in grid.cells if not (cell_folder(folder, *cell) / CELL_FILE).exists()]


def restore(grid: Grid, folder: Path, records: Sequence[Record]) -> list[tuple[str, int]]:
    """Take cells that wait from `records`, if those hold all points with this grid's steps and images; returns them."""
    budget = {name: getattr(grid, name) for name in ("vae_steps", "ar_steps", "batch_size")} | {"data": grid.data_spec}
    finished = []
    for variant, seed in waiting_cells(grid, folder):
        cell = select(records, variant=variant, seed=seed, **budget)
        drawn = select(cell, metric="frechet", images=grid.images)
        if all(select(drawn, **asdict(point)) for point in grid.points(False, Variant.named(variant).head_kind)):
            write_records(cell_folder(folder, variant, seed) / CELL_FILE, cell)
            finished.append((variant, seed))
    return finished


def run_study(
    grid: Grid, folder: Path, at_once: int, threads: int, compiled: bool = False, place: Placement | None = None
) -> Iterator[JobResult]:
    """Run the unfinished cells, each in its own process; update `results.jsonl` after each.

    A second call on the same folder continues: finished cells are skipped, others resume from their checkpoints.
    compiled: compile the models' steps while training.  place: how images are drawn.
    """
    wish = place or Placement()
    gather(grid, folder)
    waiting = waiting_cells(grid, folder)
    for cells in grid.rounds:  # what others take is trained once, and before
        jobs = [_job(folder, *cell, threads, compiled, wish) for cell in cells if cell in waiting]
        with closing(run_jobs(jobs, at_once)) as ended:
            for job in ended:
                gather(grid, folder)
                yield job


def _job(folder: Path, variant: str, seed: int, threads: int, compiled: bool, place: Placement) -> Job:
    command = [sys.executable, "-m", "spherear.study.cell", str(folder), variant, str(seed), str(threads)]
    command += [place.device, place.dtype, place.engine, *(["compiled"] if compiled else [])]
    return Job(f"{variant} seed {seed}", command, cell_folder(folder, variant, seed) / "log.txt")


def gather(grid: Grid, folder: Path) -> list[Record]:
    """The records of all finished cells, also written to `results.jsonl`."""
    files = [cell_folder(folder, *cell) / CELL_FILE for cell in grid.cells]
    records = [record for file in files if file.exists() for record in read_records(file)]
    write_records(folder / RESULTS_FILE, records)
    return records


def within_budget(grid: Grid, minutes: float, at_once: int, threads: int, place: Placement | None = None) -> Grid:
    """The grid, with training and images scaled down by one factor if it would exceed the budget. Approximate."""
    require(minutes > 0, f"budget is {minutes} minutes; expected more than 0")
    factor = MARGIN * minutes / estimate_minutes(grid, at_once, threads, place)
    return grid if factor >= 1 else grid.scaled(factor)


def estimate_minutes(grid: Grid, at_once: int, threads: int, place: Placement | None = None) -> float:
    """Estimated run time on this machine, from a few training steps of the first variant and a few images."""
    probe = replace(grid, vae_steps=PROBE, ar_steps=PROBE, images=MIN_IMAGES)
    variant, threads_before = Variant.named(grid.variants[0]), torch.get_num_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        real = reference_of(probe, Path(folder))
        start = time.monotonic()
        pipeline = run_cell(probe, variant, 0, Path(folder), pick_device(place.device if place else "auto"))
    trained = time.monotonic()
    data = load_data(grid.data_spec, pipeline.vae.config.image_size)
    latents, _ = real_latents(pipeline.vae, data, 0, limit=100)
    measure_point(probe, pipeline.place(place), Point(2.0), real, latents)
    sampled = time.monotonic()
    torch.set_num_threads(threads_before)
    training = (trained - start) * (grid.vae_steps + grid.ar_steps) / (2 * PROBE)
    sampling = (sampled - trained) * grid.images / MIN_IMAGES * len(grid.points(has_projection=True))
    return (training + sampling) * len(grid.cells) / at_once / 60
