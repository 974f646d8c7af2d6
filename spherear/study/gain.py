"""The gain of the concentration: how far a VAE on the sphere comes in as many steps.

    python -m spherear.study.gain runs/gain.jsonl 1 20 50

trains the VAE of S in `length64` (colour, 64 tokens of four numbers) with each gain and seed, and writes one line of
JSON for each; an existing file is resumed. `concentration_gain` of `models.sizes` says what a gain is.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spherear.console import markdown_table
from spherear.models.config import Config, require
from spherear.models.vae import VAE
from spherear.study.cell import loss_slope, measure_vae, recipes_of, sizes_of
from spherear.study.claims import by_seed, spread
from spherear.study.design import GRIDS, Grid, Variant
from spherear.study.records import RESULTS, provenance, read_measurements, select, shipped_records, write_records
from spherear.study.reference import Reference
from spherear.train import train_vae
from spherear.training.data import load_data

SHIPPED = RESULTS / "gain.jsonl"
GRID, VARIANT, GAUSSIAN, SEEDS = "length64", "S-02", "N-02", (0, 1)
METRICS = {
    "kl": "nats per token",
    "concentration": "concentration, median",
    "reconstruction_l1": "error of a pixel",
    "reconstruction_frechet": "Frechet distance of reconstructions",
    "vae_slope": "slope of the loss at the end",
}
"""What is measured, and how it is called. The slope is that of `study.cell.loss_slope`."""


@dataclass(frozen=True)
class GainRecord(Config):
    """One number of a VAE that was trained with a gain."""

    gain: float
    seed: int
    steps: int
    batch_size: int
    metric: str
    value: float
    command: str
    commit: str
    hardware: str


def trained(grid: Grid, gain: float, seed: int, folder: Path) -> VAE:
    """The VAE of VARIANT in `grid` with this gain, resumed from `folder`."""
    variant = Variant.named(VARIANT)
    config = replace(sizes_of(grid, variant).vae, concentration_gain=gain)
    for _ in train_vae(
        config, load_data(grid.data_spec, config.image_size), recipes_of(grid, variant, seed)[0], folder
    ):
        pass
    return VAE.from_pretrained(folder)


def measure(vae: VAE, real: Reference, seed: int, folder: Path) -> dict[str, float]:
    """The values of METRICS. folder: of the run."""
    with torch.no_grad():
        concentration = vae.encode(real.images[:500]).spread
    values = {**measure_vae(vae, real, seed), "vae_slope": loss_slope(folder)}
    return {name: float(concentration.median()) if name == "concentration" else values[name] for name in METRICS}


def compare_gains(
    gains: Sequence[float], folder: Path, command: str, done: set[tuple[float, int]], grid: Grid = GRIDS[GRID]
) -> Iterator[list[GainRecord]]:
    """Yields the records of each gain and seed that is not in `done`; runs are in `folder`."""
    image_size = sizes_of(grid, Variant.named(VARIANT)).vae.image_size
    real, origin = Reference.load(grid.data_spec, image_size), provenance()
    for seed in SEEDS:
        for gain in gains:
            if (gain, seed) in done:
                continue
            run = folder / f"gain-{gain:g}" / f"seed-{seed}"
            values = measure(trained(grid, gain, seed, run), real, seed, run)
            place = gain, seed, grid.vae_steps, grid.batch_size
            source = command, origin["commit"], origin["hardware"]
            yield [GainRecord(*place, name, value, *source) for name, value in values.items()]


def shipped_gains() -> list[GainRecord]:
    """The records in `spherear/study/results`."""
    return read_measurements(SHIPPED, GainRecord)


def values_of(records: Sequence[GainRecord], metric: str) -> dict[float, dict[int, float]]:
    """gain -> seed -> value."""
    own = sorted((r for r in records if r.metric == metric), key=lambda r: (r.gain, r.seed))
    found: dict[float, dict[int, float]] = {}
    for r in own:
        found.setdefault(r.gain, {})[r.seed] = r.value
    return found


def table(records: Sequence[GainRecord], gaussian: Mapping[str, Mapping[int, float]] | None = None) -> str:
    """One row per gain, mean and standard deviation over seeds. gaussian: of N, metric -> seed -> value; a last row."""
    found = {metric: values_of(records, metric) for metric in METRICS}
    lines = [[f"{gain:g}", *(spread(values[gain]) for values in found.values())] for gain in found["kl"]]
    if gaussian:
        lines.append([GAUSSIAN, *(spread(gaussian[m]) if m in gaussian else "" for m in METRICS)])
    return markdown_table(("gain", *METRICS.values()), lines) + "\n"


def gaussian_of(grid: str = GRID) -> dict[str, dict[int, float]]:
    """Of the normalised Gaussian, which has no concentration: metric -> seed -> value, from the records of `grid`."""
    own = select(shipped_records(grid), variant=GAUSSIAN)
    found = {metric: dict(by_seed(select(own, metric=metric))) for metric in METRICS}
    return {metric: values for metric, values in found.items() if values}


def main(out: str, *gains: str) -> None:
    """Train and measure what `out` lacks, and print the table."""
    require(len(gains) > 0, "there are no gains; expected some, such as 1 20 50")
    numbers = [float(gain) for gain in gains]
    path = Path(out)
    records = read_measurements(path, GainRecord) if path.exists() else []
    command = " ".join(["python -m spherear.study.gain", out, *gains])
    done = {(r.gain, r.seed) for r in records}
    for block in compare_gains(numbers, path.with_suffix(""), command, done):
        records += block
        write_records(path, records)
        print(f"gain {block[0].gain:g}, seed {block[0].seed}: {block[0].value:.1f} nats per token")
    print(table(records, gaussian_of()))


if __name__ == "__main__":
    main(*sys.argv[1:])
