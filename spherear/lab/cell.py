"""One cell of a study: a variant of the latents, trained with one seed and measured in every way asked for.

    python -m spherear.lab.cell FOLDER VARIANT SEED THREADS

runs one in the study at FOLDER; `spherear study` starts these. Every cell gets the same backbone, budget,
labels, sampling seeds and reference images.

Knows: how a cell is trained, what is measured of it, and where that is filed.
Does not know: which cells there are, or when they run.
"""

import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier, load_classifier
from spherear.evaluation.judge import Judgement, judge
from spherear.evaluation.metrics import inception_score
from spherear.lab.diagnostics import compare_norms, effective_rank, prediction_error, radial_share, variance_ratio
from spherear.lab.grids import Grid, Point, Variant
from spherear.lab.jobs import end_with_parent
from spherear.lab.records import Record, write_records
from spherear.models.files import read_json
from spherear.models.presets import Preset, preset, with_vae
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.train import pick_device, train_ar, train_vae
from spherear.training.data import load_data
from spherear.training.dataset import ImageData
from spherear.training.recipes import course
from spherear.training.run import keyed_generator

GRID_FILE = "grid.json"
CELL_FILE = "records.jsonl"


def cell_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where a cell keeps its models and its records."""
    return folder / variant / f"seed-{seed}"


@dataclass(frozen=True)
class Reference:
    """Held-out images and their judge: what every cell is measured against."""

    images: Float[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classifier: Classifier

    @classmethod
    def of(cls, grid: Grid) -> "Reference":
        """That of the preset's data set, at its size."""
        return cls.named(course(grid.preset).data, preset(grid.preset).vae.image_size)

    @classmethod
    def named(cls, name: str, image_size: int) -> "Reference":
        """The test split of a data set, up to 2,000 images, and the classifier of that data set."""
        data = load_data(f"{name}:test", image_size)
        return cls(*data.batch(torch.arange(min(2000, len(data)))), load_classifier(name))

    def judge(self, images: Float[Tensor, "n 3 size size"], labels: Int[Tensor, " n"]) -> Judgement:
        """Images asked for as `labels`, against these."""
        return judge(images, labels, self.images, self.labels, self.classifier)


def sizes_of(grid: Grid, variant: Variant) -> Preset:
    """The preset with the variant's bottleneck."""
    row = preset(grid.preset, variant.family)
    options = {name: getattr(variant, name) for name in ("noise_scale", "codes") if getattr(variant, name)}
    return with_vae(row, replace(row.vae, **options))


def run_cell(grid: Grid, variant: Variant, seed: int, folder: Path, device: torch.device | str) -> Pipeline:
    """Train the cell's VAE and AR model in `folder`, going on from what is there."""
    sizes, plan = sizes_of(grid, variant), course(grid.preset)
    data = load_data(plan.data, sizes.vae.image_size)
    vae_recipe = replace(plan.vae, steps=grid.vae_steps, kl_weight=variant.kl_weight, seed=seed)
    ar_recipe = replace(plan.ar, steps=grid.ar_steps, seed=seed)
    for _ in train_vae(sizes.vae, data, vae_recipe, folder / "vae", device):
        pass
    vae = VAE.from_pretrained(folder / "vae", device=device)
    for _ in train_ar(sizes.ar, vae, data, ar_recipe, folder / "ar", device):
        pass
    return Pipeline.from_pretrained(folder, device=device)


def measure_cell(grid: Grid, variant: Variant, seed: int, pipeline: Pipeline, command: str) -> list[Record]:
    """All records of a trained cell."""
    real = Reference.of(grid)
    data = load_data(course(grid.preset).data, pipeline.vae.config.image_size)
    latents, labels = real_latents(pipeline.vae, data, seed=seed)
    blank = Record(
        variant.name, variant.family, variant.kl_weight, variant.noise_scale, seed, 1.0, "linear", True, True,
        metric="", value=0.0, images=grid.images, data=data.spec, command=command, **provenance(),
        vae_steps=grid.vae_steps, ar_steps=grid.ar_steps,
    )  # fmt: skip

    def filed(values: Mapping[str, float], **where: Any) -> list[Record]:
        return [replace(blank, **where, metric=name, value=value) for name, value in values.items()]

    records = filed(measure_vae(pipeline.vae, real, seed), images=len(real.images))
    records += filed(measure_prediction(pipeline, latents, labels, seed), images=len(latents))
    for point in grid.points(pipeline.vae.bottleneck.radius is not None):
        records += filed(measure_point(grid, pipeline, point, real, latents), **asdict(point))
    return records


@torch.no_grad()
def real_latents(
    vae: VAE, data: ImageData, seed: int, limit: int = 2000
) -> tuple[Float[Tensor, "n tokens dim"], Int[Tensor, " n"]]:
    """Posterior samples of the first `limit` training images, and their labels."""
    device = vae.quant_proj.weight.device
    generator = keyed_generator(seed, 1, device)
    images, labels = data.batch(torch.arange(min(limit, len(data))))
    chunks = [vae.posterior(chunk.to(device), generator).sample.cpu() for chunk in images.split(256)]
    return torch.cat(chunks), labels


@torch.no_grad()
def measure_vae(vae: VAE, real: Reference, seed: int) -> dict[str, float]:
    """What the tokeniser alone does to held-out images: the ceiling of all that follows."""
    device = vae.quant_proj.weight.device
    latent = vae.encode(real.images.to(device), keyed_generator(seed, 2, device))
    images = vae.decode(latent.sample).float().cpu()
    judged = real.judge(images, real.labels)
    return {
        "reconstruction_l1": float((images - real.images).abs().mean()),
        "reconstruction_frechet": judged.frechet,
        "reconstruction_accuracy": judged.accuracy,
        "kl": float(latent.kl.mean()),
        "latent_scale": vae.config.latent_scale,
    }


def measure_prediction(
    pipeline: Pipeline, latents: Float[Tensor, "n tokens dim"], labels: Int[Tensor, " n"], seed: int
) -> dict[str, float]:
    """The radial share of a one-step prediction error at t = 1/2; nothing for a head without a velocity."""
    if pipeline.ar.config.codes:
        return {}
    noise = torch.randn(latents.shape, generator=keyed_generator(seed, 3))
    device = pipeline.ar.proj_in.weight.device
    error = prediction_error(pipeline.ar, latents.to(device), labels.to(device), 0.5, noise.to(device))
    share = radial_share(error.cpu(), latents)
    return {"radial_share": share.mean, "radial_share_isotropic": share.isotropic}


@torch.no_grad()
def measure_point(
    grid: Grid, pipeline: Pipeline, point: Point, real: Reference, latents: Float[Tensor, "n tokens dim"]
) -> dict[str, float]:
    """All that is measured of the images drawn in one way; the same labels and seeds in every cell."""
    labels = torch.arange(grid.images) % pipeline.ar.config.num_classes
    settings = SamplingSettings(point.guidance_scale, point.schedule, steps=grid.solver_steps, project=point.project_ar)
    steps = list(pipeline.steps(labels, settings, seeds=0))
    raw = torch.stack([step.raw for step in steps], dim=1)  # (images, tokens, dim)
    tokens = torch.stack([step.token for step in steps], dim=1)
    images = pipeline.images(pipeline.vae.project(raw) if point.project_decoder else raw).cpu()
    judged = real.judge(images, labels)
    norms = compare_norms(raw.cpu(), latents)
    last = math.ceil(len(norms.relative) / 4)
    return {
        **asdict(judged),
        "inception_score": inception_score(real.classifier(images).softmax(dim=-1)),
        "norm_change_late": float(norms.relative[-last:].mean()),
        "norm_change": float(norms.relative.mean()),
        "variance_ratio": variance_ratio(tokens.cpu(), latents).total,
        "raw_variance_ratio": variance_ratio(raw.cpu(), latents).total,
        "effective_rank": effective_rank(tokens.cpu()).rank,
    }


def provenance() -> dict[str, str]:
    """commit and hardware, as far as they can be told."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"commit": _commit(), "hardware": f"{device}, {torch.get_num_threads()} threads"}


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = (git, "rev-parse", "--short", "HEAD")
    asked = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def main(folder: str, variant: str, seed: str, threads: str) -> None:
    """Run a cell to its end: train, measure, file. What is done already is kept."""
    end_with_parent()
    torch.set_num_threads(int(threads))
    grid = Grid.from_dict(read_json(Path(folder) / GRID_FILE)["grid"])
    command = read_json(Path(folder) / GRID_FILE)["command"]
    place, row = cell_folder(Path(folder), variant, int(seed)), Variant.named(variant)
    pipeline = run_cell(grid, row, int(seed), place, pick_device("auto"))
    write_records(place / CELL_FILE, measure_cell(grid, row, int(seed), pipeline, command))


if __name__ == "__main__":
    main(*sys.argv[1:])
