"""The demonstration: real digits to tokens on the sphere to new digits, trained from nothing and judged.

Knows: the order of the story.  Does not know: how any chapter is done, or what a terminal is.
Needs matplotlib.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.judge import Judgement, judge
from spherear.lab.plots import sheets_figure
from spherear.models.files import atomic_path, write_json
from spherear.models.presets import preset
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.train import train_ar, train_vae
from spherear.training.data import load_data
from spherear.training.recipes import course
from spherear.training.run import TrainState

PER_CLASS = 10
LABELS = torch.arange(10).repeat_interleave(PER_CLASS)
Watch = Callable[[Generator[TrainState, None, None], str, int], bool]


@dataclass(frozen=True)
class Sheet:
    """One guidance scale of the demonstration: its images, ten a class, and what the judge says of them."""

    scale: float
    images: Tensor
    judgement: Judgement


def train_pipeline(
    folder: Path,
    watch: Watch,
    seed: int,
    bottleneck: str,
    steps: tuple[int | None, int | None],
    device: torch.device,
) -> Pipeline | None:
    """Train VAE and AR model in `folder`, going on from what is there; None when `watch` was stopped.

    steps: of the VAE and of the AR model; None for the recipe's.
    """
    sizes, plan = preset("digits", bottleneck), course("digits")
    data = load_data(plan.data, sizes.vae.image_size)
    vae_recipe = replace(plan.vae, seed=seed, steps=steps[0] or plan.vae.steps)
    ar_recipe = replace(plan.ar, seed=seed, steps=steps[1] or plan.ar.steps)
    states = train_vae(sizes.vae, data, vae_recipe, folder / "vae", device)
    if not watch(states, "1/3 VAE: digits to tokens and back", vae_recipe.steps):
        return None
    vae = VAE.from_pretrained(folder / "vae", device=device)
    states = train_ar(sizes.ar, vae, data, ar_recipe, folder / "ar", device)
    if not watch(states, "2/3 AR model: the next token", ar_recipe.steps):
        return None
    return Pipeline.from_pretrained(folder, device=device)


def sample_and_judge(pipeline: Pipeline, scales: tuple[float, ...], seed: int) -> Iterator[Sheet]:
    """Ten digits a class at every guidance scale, from the same seeds, each sheet with its judgement.

    The judge compares with held-out digits, which no model here was trained on.
    """
    real, real_labels = held_out(pipeline.vae.config.image_size)
    classifier = load_classifier("digits")
    for scale in scales:
        settings = SamplingSettings(guidance_scale=scale)
        images = pipeline.sample(LABELS, settings, seeds=seed).cpu()
        yield Sheet(scale, images, judge(images, LABELS, real, real_labels, classifier))


def held_out(image_size: int) -> tuple[Tensor, Tensor]:
    """The digits that no model was trained on, and their labels."""
    data = load_data("digits:test", image_size)
    return data.batch(torch.arange(len(data)))


def save_results(folder: Path, sheets: list[Sheet], command: str) -> None:
    """Write `results.json`, and `samples.png`: real held-out digits beside the drawn ones."""
    results = [{"guidance_scale": sheet.scale, **asdict(sheet.judgement)} for sheet in sheets]
    write_json(folder / "results.json", {"command": command, "images": len(LABELS), "results": results})
    real, real_labels = held_out(sheets[0].images.shape[-1])
    rows = [real[real_labels == digit][:PER_CLASS] for digit in range(10)]
    panels, captions = {"real": torch.cat(rows)}, {"real": "held out of all training"}
    for sheet in sheets:
        name, judgement = f"guidance {sheet.scale:g}", sheet.judgement
        panels[name] = sheet.images
        captions[name] = f"recognised {judgement.accuracy:.0%}, diversity {judgement.diversity:.2f}"
    figure = sheets_figure(panels, captions, PER_CLASS, [str(digit) for digit in range(10)])
    with atomic_path(folder / "samples.png") as part:
        figure.savefig(part, format="png", dpi=120)
