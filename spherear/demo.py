"""The two-minute demo: train on digits from scratch, sample new digits, and score them. Needs matplotlib."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spherear.evaluation.judge import JudgeScores
from spherear.figures.diagnostics import sheets_figure
from spherear.figures.style import save_figure
from spherear.models.files import write_json
from spherear.models.presets import preset
from spherear.models.sources import Outline
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import Placement, choose
from spherear.sampling.settings import SamplingSettings
from spherear.study.reference import Reference
from spherear.train import Watch, train_pipeline
from spherear.training.data import load_data
from spherear.training.recipes import recipes

PRESET = "digits"
PER_CLASS = 10
LABELS = torch.arange(10).repeat_interleave(PER_CLASS)


@dataclass(frozen=True)
class Sheet:
    """Results at one guidance scale: ten images per class, and their scores."""

    scale: float
    images: Tensor
    judgement: JudgeScores


def place_digits(bottleneck: str, wish: Placement) -> Placement:
    """How digits of that family will be drawn. ValueError if they cannot be drawn as `wish` says."""
    sizes = preset(PRESET, bottleneck)
    return choose(Outline(sizes.vae, sizes.ar).parameters()[1], wish)


def train_digits(
    folder: Path,
    watch: Watch,
    seed: int,
    bottleneck: str,
    steps: tuple[int | None, int | None],
    device: torch.device,
) -> Pipeline | None:
    """Train the VAE and the AR model in `folder`, resuming from its checkpoints; None if `watch` was stopped.

    steps: of the VAE and of the AR model; None: as in the recipe.
    """
    sizes, plan = preset(PRESET, bottleneck), recipes(PRESET)
    data = load_data(plan.data, sizes.vae.image_size)
    vae_steps, ar_steps = (
        default if given is None else given
        for given, default in zip(steps, (plan.vae.steps, plan.ar.steps), strict=True)
    )
    vae_recipe = replace(plan.vae, seed=seed, steps=vae_steps)
    ar_recipe = replace(plan.ar, seed=seed, steps=ar_steps)
    return train_pipeline(sizes, data, (vae_recipe, ar_recipe), folder, device, watch)


def sample_and_judge(pipeline: Pipeline, scales: tuple[float, ...], seed: int) -> Iterator[Sheet]:
    """Ten digits per class at every guidance scale, from the same seeds, with their scores.

    The scores compare with held-out digits, which are in no training set.
    """
    real = Reference.of(PRESET)
    for scale in scales:
        images = pipeline.sample(LABELS, SamplingSettings(guidance_scale=scale), seeds=seed).cpu()
        yield Sheet(scale, images, real.judge(images, LABELS))


def save_results(folder: Path, sheets: list[Sheet], command: str) -> None:
    """Write `results.json`, and `samples.png` with real held-out digits next to the generated ones."""
    results = [{"guidance_scale": sheet.scale, **asdict(sheet.judgement)} for sheet in sheets]
    real = Reference.of(PRESET)
    against = f"{len(real.images)} held-out images of {recipes(PRESET).data}, in features of its judge"
    facts = {"command": command, "images": len(LABELS), "against": against}
    write_json(folder / "results.json", {**facts, "results": results})
    rows = [real.images[real.labels == digit][:PER_CLASS] for digit in range(10)]
    panels, captions = {"real": torch.cat(rows)}, {"real": "held out of all training"}
    for sheet in sheets:
        name, judgement = f"guidance {sheet.scale:g}", sheet.judgement
        panels[name] = sheet.images
        captions[name] = f"recognised {judgement.accuracy:.0%}, diversity {judgement.diversity:.2f}"
    figure = sheets_figure(panels, captions, PER_CLASS, [str(digit) for digit in range(10)], "digit")
    save_figure(figure, folder / "samples.png", dpi=120)
