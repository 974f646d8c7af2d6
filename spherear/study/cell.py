"""One cell of a study: a variant of the latents, trained with one seed and measured.

    python -m spherear.study.cell FOLDER VARIANT SEED THREADS DEVICE DTYPE ENGINE [compiled]

runs one cell of the study at FOLDER; `spherear study` starts these. All cells have the same backbone, budget, labels
and real images; every cell has sampling seeds of its own, so that cells are independent.
"""

import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.analysis.diagnostics import compare_norms, effective_rank, prediction_error, radial_share, variance_ratio
from spherear.analysis.latents import real_latents
from spherear.models.files import read_json, write_json
from spherear.models.presets import Preset, check_pair, with_vae
from spherear.models.vae import VAE
from spherear.processes import exit_with_parent
from spherear.sampling.decode import trace
from spherear.sampling.noise import consecutive_noise
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import Placement
from spherear.study.design import Grid, Point, Variant
from spherear.study.judges import AUTO
from spherear.study.records import Record, provenance, write_records
from spherear.study.reference import Reference, real_samples
from spherear.train import distill, pick_device, train_pipeline
from spherear.training.data import load_data
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.jobs import starting_point
from spherear.training.recipes import ARRecipe, VAERecipe
from spherear.training.run import METRICS_FILE, keyed_generator
from spherear.training.run_file import is_result

GRID_FILE = "grid.json"
CELL_FILE = "records.jsonl"
JUDGE_FOLDER = "judge"
CHUNK = 500  # images drawn or encoded at a time on a CPU
CUDA_CHUNK = 2500
TRAINED_FILE = "trained.json"  # commit and hardware when the training began


def cell_folder(folder: Path, variant: str, seed: int) -> Path:
    """The folder of the models and records of a cell."""
    return folder / variant / f"seed-{seed}"


def sizes_of(grid: Grid, variant: Variant) -> Preset:
    """The preset of the grid, or the sizes proposed for its data, with the variant's bottleneck, latent_dim and head.

    ValueError for a head that does not fit the family.
    """
    base = starting_point(grid.preset, grid.data).sizes
    row = with_vae(base, replace(base.vae, bottleneck=variant.family))
    options = {name: getattr(variant, name) for name in ("noise_scale", "codes") if getattr(variant, name)}
    options["latent_dim"] = grid.latent_dim or row.vae.latent_dim
    row = with_vae(row, replace(row.vae, **options))
    row = replace(row, ar=replace(row.ar, head=variant.head))
    check_pair(row.vae, row.ar)
    return row


def reference_of(grid: Grid, folder: Path) -> Reference:
    """The real images and the judge of a study in `folder`; a judge that does not ship is trained there, once."""
    size = sizes_of(grid, Variant.named(grid.variants[0])).vae.image_size
    return Reference.load(grid.data_spec, size, grid.half, grid.judge or AUTO, folder / JUDGE_FOLDER)


def run_cell(
    grid: Grid, variant: Variant, seed: int, folder: Path, device: torch.device | str, compiled: bool = False
) -> Pipeline:
    """Train the VAE and the AR model of a cell in `folder`, resuming from the checkpoints there.

    Models that another cell has trained equally are taken from it, see `take_models`.
    """
    sizes = sizes_of(grid, variant)
    data = load_data(grid.data_spec, sizes.vae.image_size)
    take_models(grid, variant, seed, folder)
    if not (folder / TRAINED_FILE).exists():
        write_json(folder / TRAINED_FILE, provenance())
    if source := grid.teacher_of(variant):
        teacher = run_cell(grid, source, seed, cell_folder(folder.parent.parent, source.name, seed), device, compiled)
        scale = max(grid.scales + grid.constant_scales)  # what the head is drawn with, it must have learnt
        recipe = DistillRecipe(steps=grid.distill_steps, seed=seed, largest_scale=scale)
        for _ in distill(teacher.vae, teacher.ar, data, recipe, folder, device):
            pass
        return Pipeline.from_pretrained(folder, device=device, dtype="float32", engine="eager")
    sizes = replace(sizes, ar=replace(sizes.ar, num_classes=data.num_classes))
    pipeline = train_pipeline(sizes, data, recipes_of(grid, variant, seed), folder, device, compiled=compiled)
    assert pipeline is not None
    return pipeline


def recipes_of(grid: Grid, variant: Variant, seed: int) -> tuple[VAERecipe, ARRecipe]:
    """How the models of a cell are trained, unless its head is taught."""
    plan = starting_point(grid.preset, grid.data).recipes
    common: dict[str, Any] = {"seed": seed} | ({"batch_size": grid.batch_size} if grid.batch_size else {})
    vae = replace(plan.vae, steps=grid.vae_steps, kl_weight=variant.kl_weight, **common)
    return vae, replace(plan.ar, steps=grid.ar_steps, **common)


def take_models(grid: Grid, variant: Variant, seed: int, folder: Path) -> None:
    """Copy into a cell's folder what it lacks and another cell has trained by the same recipes: its own models from
    the study `grid.models`, and else the VAE of the same latents and seed. A head that is taught has its teacher's.
    """
    if grid.teacher_of(variant):
        return
    study, recipes = folder.parents[1], dict(zip(("vae", "ar"), recipes_of(grid, variant, seed), strict=True))
    own, latent = variant.name, variant.latent
    places: list[tuple[Path, str, tuple[str, ...]]] = [(study, latent, ("vae",))]
    if grid.models:
        other = study.parent / grid.models
        places = [(other, own, ("vae", "ar")), *places, (other, latent, ("vae",))]
    for where, name, parts in places:
        source = cell_folder(where, name, seed)
        if all(is_result(source / part, recipes[part]) for part in parts):
            for part in (*((TRAINED_FILE,) if "ar" in parts else ()), *parts):
                _copy(source / part, folder / part)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder that is not there, whole or not at all."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        copied = Path(partial) / target.name
        shutil.copytree(source, copied) if source.is_dir() else shutil.copy(source, copied)
        copied.rename(target)


def measure_cell(
    grid: Grid,
    variant: Variant,
    seed: int,
    pipeline: Pipeline,
    command: str,
    folder: Path,
    place: Placement | None = None,
) -> list[Record]:
    """All records of a trained cell; `folder` holds its runs.  place: how images are drawn, and nothing else."""
    device = pipeline.vae.quant_proj.weight.device
    real = reference_of(grid, folder.parent.parent).on(device)
    data = load_data(grid.data_spec, pipeline.vae.config.image_size)
    latents, labels = real_latents(pipeline.vae, data, seed=seed)
    template = Record(
        variant.name, variant.family, variant.kl_weight, variant.noise_scale, seed, 1.0, "linear", True, True,
        metric="", value=0.0, images=grid.images, data=data.spec, command=command, **provenance(),
        trained=read_json(folder / TRAINED_FILE)["commit"], vae_steps=grid.vae_steps, ar_steps=grid.ar_steps,
        steps=0, head=variant.head, batch_size=grid.batch_size,
    )  # fmt: skip

    def records_of(values: Mapping[str, float], **fields: Any) -> list[Record]:
        return [replace(template, **fields, metric=name, value=value) for name, value in values.items()]

    records = records_of(measure_vae(pipeline.vae, real, seed), images=len(real.images))
    floor = real.judge(*real_samples(grid.data_spec, data.image_size, grid.half, grid.images, seed))
    records += records_of({"floor_frechet": floor.frechet, "floor_kernel": floor.kernel})
    vae_cell = cell_folder(folder.parent.parent, (grid.teacher_of(variant) or variant).name, seed)
    records += records_of({"vae_slope": loss_slope(vae_cell / "vae")})
    records += records_of(measure_prediction(pipeline, latents, labels, seed), images=len(latents))
    seeds = sampling_seed(variant.name, seed)
    pipeline.place(place)  # only now: what is measured without drawing stays in float32
    for point in grid.points(pipeline.vae.bottleneck.radius is not None, variant.head_kind):
        records += records_of(measure_point(grid, pipeline, point, real, latents, seeds), **asdict(point))
    return records


def sampling_seed(variant: str, seed: int) -> int:
    """The first sampling seed of a cell; the next million belong to it too."""
    return 1_000_000 * zlib.crc32(f"{variant} seed {seed}".encode())


def loss_slope(run: Path) -> float:
    """Relative change of a run's training loss from its last but one tenth to its last: near 0 on a plateau."""
    losses = [json.loads(line)["loss"] for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    tenth = max(1, len(losses) // 10)
    return fmean(losses[-tenth:]) / fmean(losses[-2 * tenth : -tenth] or losses) - 1


@torch.no_grad()
def measure_vae(vae: VAE, real: Reference, seed: int) -> dict[str, float]:
    """Metrics of the VAE's reconstructions of real images: a bound for any AR model on top of it.

    Posteriors are drawn on the CPU, so that any machine measures the same.
    """
    device = vae.quant_proj.weight.device
    images, kl, generator = [], 0.0, keyed_generator(seed, 2)
    for chunk in real.images.split(CHUNK):
        latent = vae.encode(chunk.to(device), generator)
        kl += float(latent.kl.sum())
        images.append(vae.decode(latent.sample.to(device)).float().cpu())
    reconstructed = torch.cat(images)
    scores = real.judge(reconstructed, real.labels)
    return {
        "reconstruction_l1": float((reconstructed - real.images).abs().mean()),
        "reconstruction_frechet": scores.frechet,
        "reconstruction_kernel": scores.kernel,
        "reconstruction_accuracy": scores.accuracy,
        "kl": kl / (len(real.images) * vae.config.tokens),
        "latent_scale": vae.config.latent_scale,
    }


def measure_prediction(
    pipeline: Pipeline, latents: Float[Tensor, "n tokens dim"], labels: Int[Tensor, " n"], seed: int
) -> dict[str, float]:
    """The radial share of a one-step prediction error at t = 1/2; empty for a head without a velocity at a time."""
    if pipeline.ar.config.codes or pipeline.ar.config.head_kind.takes_scale:
        return {}
    noise = torch.randn(latents.shape, generator=keyed_generator(seed, 3))
    device = pipeline.ar.proj_in.weight.device
    error = prediction_error(pipeline.ar, latents.to(device), labels.to(device), 0.5, noise.to(device))
    share = radial_share(error.cpu(), latents)
    return {"radial_share": share.mean, "radial_share_isotropic": share.isotropic}


@torch.no_grad()
def measure_point(
    grid: Grid,
    pipeline: Pipeline,
    point: Point,
    real: Reference,
    latents: Float[Tensor, "n tokens dim"],
    seeds: int = 0,
) -> dict[str, float]:
    """All metrics of the images drawn with one setting; image i has label i modulo the classes and seed seeds + i."""
    labels = torch.arange(grid.images) % pipeline.ar.config.num_classes
    settings = grid.settings(point)
    raws, fed, images = [], [], []
    size = CUDA_CHUNK if pipeline.ar.proj_in.weight.is_cuda else CHUNK
    for start in range(0, grid.images, size):
        rows = labels[start : start + size]
        drawn = trace(pipeline.steps(rows, settings, noise=consecutive_noise(seeds + start, len(rows))))
        raws.append(drawn.raw.cpu())  # (chunk, tokens, dim)
        fed.append(drawn.tokens.cpu())
        decoded = pipeline.vae.project(drawn.raw) if point.project_decoder else drawn.raw
        images += [pipeline.images(chunk).cpu() for chunk in decoded.split(CHUNK)]
    raw, tokens = torch.cat(raws), torch.cat(fed)
    norms = compare_norms(raw, latents)
    return {
        **asdict(real.judge(torch.cat(images), labels)),
        "norm_change_late": norms.late,
        "norm_change_early": norms.early,
        "norm_change": float(norms.relative.mean()),
        "variance_ratio": variance_ratio(tokens, latents).total,
        "raw_variance_ratio": variance_ratio(raw, latents).total,
        "effective_rank": effective_rank(tokens).rank,
    }


def main(
    folder: str, variant: str, seed: str, threads: str, device: str, dtype: str, engine: str, compiled: str = ""
) -> None:
    """Run a cell: train, measure, write records. Resumes from existing checkpoints."""
    exit_with_parent()
    torch.set_num_threads(int(threads))
    grid = Grid.from_dict(read_json(Path(folder) / GRID_FILE)["grid"])
    command = read_json(Path(folder) / GRID_FILE)["command"]
    cell, row = cell_folder(Path(folder), variant, int(seed)), Variant.named(variant)
    place = Placement(device, dtype, engine)
    pipeline = run_cell(grid, row, int(seed), cell, pick_device(device), bool(compiled))
    records = measure_cell(grid, row, int(seed), pipeline, command, cell, place)
    print(f"images were drawn with {pipeline.placement.sentence}")
    write_records(cell / CELL_FILE, records)


if __name__ == "__main__":
    main(*sys.argv[1:])
