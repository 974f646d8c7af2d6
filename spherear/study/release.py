"""The shipped models: copied from finished studies in half precision, with their logs, and measured again.

    python -m spherear.study.release runs/study/full

The records of a study that others are drawn from (`RECORDED`) are copied too, also those of an unfinished one, which
`spherear study NAME --recorded` then continues.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spherear.analysis.latents import real_latents
from spherear.models.config import require
from spherear.models.files import read_json, write_text
from spherear.models.pretrained import SHIPPED
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN
from spherear.study.cell import GRID_FILE, cell_folder, measure_prediction, measure_vae
from spherear.study.claims import default_sampling
from spherear.study.design import GRIDS, Grid, Variant
from spherear.study.records import RECORDED, Record, read_records, results_file, write_records
from spherear.study.reference import Reference
from spherear.study.runner import RESULTS_FILE
from spherear.training.data import load_data
from spherear.training.run import METRICS_FILE, RUN_FILE

SHIPPED_VARIANTS: dict[str, tuple[str, ...]] = dict.fromkeys(RECORDED, ()) | {
    "full": ("S-04", "G-04", "F-02", "N-04", "VQ-64"),
    "laws": ("S-04", "G-04", "VQ-3"),
    "report": ("S-02", "N-02", "G-04", "F-04"),
}
"""The variants that ship of a study; none: its records alone."""
LINES = 8  # kept per training log


def name_of(grid: Grid, variant: str) -> str:
    """The name of the shipped model, e.g. digits-power_spherical or digits3-vq."""
    return f"{grid.preset}-{Variant.named(variant).family}"


def release(study: Path, out: Path = SHIPPED) -> list[Path]:
    """Write the models of a finished study below `out`; returns their folders. An unknown study: ValueError."""
    saved = read_json(study / GRID_FILE)
    grid = Grid.from_dict(saved["grid"])
    require(grid.name in SHIPPED_VARIANTS, f"the study is {grid.name!r}; expected one of {sorted(SHIPPED_VARIANTS)}")
    return [_release(study, grid, variant, saved["command"], out) for variant in SHIPPED_VARIANTS[grid.name]]


def _release(study: Path, grid: Grid, variant: str, command: str, out: Path) -> Path:
    seed = grid.seeds[0]
    source, target = cell_folder(study, variant, seed), out / name_of(grid, variant)
    Pipeline.from_pretrained(source, **AS_WRITTEN.to_dict()).save_pretrained(target, torch.float16)
    for part in ("vae", "ar"):
        write_text(target / part / "model.log", _log(source / part, f"{command}  # cell {variant}, seed {seed}"))
    return target


def _log(run: Path, command: str) -> str:
    """The command, the recipe, and about `LINES` lines of metrics at equal distances, including the last."""
    lines = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    stride = max(1, len(lines) // LINES)
    recipe = json.dumps(read_json(run / RUN_FILE)["recipe"])
    return "\n".join([f"command: {command}", f"recipe: {recipe}", *lines[::-stride][::-1]]) + "\n"


@dataclass(frozen=True)
class Remeasured:
    """One metric of a shipped model, measured again, and its value in the records of the study."""

    family: str
    metric: str
    now: float
    recorded: float

    @property
    def difference(self) -> float:
        """Relative difference; only half-precision rounding if the shipped model is the recorded one."""
        return abs(self.now / self.recorded - 1)


def remeasure(pipeline: Pipeline, family: str, records: Sequence[Record], study: str = "full") -> list[Remeasured]:
    """Measure the VAE and the predictions of a model again, as its study did for the one of that family that ships."""
    return against(measured_again(pipeline, study), family, records, study)


def measured_again(pipeline: Pipeline, study: str = "full") -> dict[str, float]:
    """Metrics of the VAE and the predictions of a model, as the study measures its first seed."""
    grid = GRIDS[study]
    seed = grid.seeds[0]
    data = load_data(grid.data_spec, pipeline.vae.config.image_size)
    latents, labels = real_latents(pipeline.vae, data, seed)
    now = measure_vae(pipeline.vae, Reference.of(grid.preset, grid.half), seed)
    return now | measure_prediction(pipeline, latents, labels, seed)


def against(now: Mapping[str, float], family: str, records: Sequence[Record], study: str = "full") -> list[Remeasured]:
    """What was measured again beside the records of the model of that family that ships."""
    (variant,) = (v for v in SHIPPED_VARIANTS[study] if Variant.named(v).family == family)
    seed = GRIDS[study].seeds[0]
    recorded = {r.metric: r.value for r in default_sampling(records, variant=variant, seed=seed, guidance_scale=1.0)}
    names = [name for name in ("kl", "reconstruction_l1", "radial_share") if name in now]
    return [Remeasured(family, name, now[name], recorded[name]) for name in names]


def main(study: str) -> None:
    """Copy the models of a study, and its records if they ship."""
    for folder in release(Path(study)):
        print(folder)
    name = Grid.from_dict(read_json(Path(study) / GRID_FILE)["grid"]).name
    if name in RECORDED:
        write_records(results_file(name), read_records(Path(study) / RESULTS_FILE))


if __name__ == "__main__":
    main(*sys.argv[1:])
