"""The demonstration: real digits to tokens on the sphere to new digits, trained from nothing and judged.

Knows: the order of the story.  Does not know: how any chapter is done, or what a terminal is.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spherear.evaluation.judge import Judgement, judge_digits
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
Watch = Callable[[Generator[TrainState, None, None], str, int], bool]


@dataclass(frozen=True)
class Row:
    """One guidance scale of the demonstration: its images, ten a class, and what the judge says of them."""

    scale: float
    images: Tensor
    judgement: Judgement


def train_pipeline(
    folder: Path, watch: Watch, seed: int, bottleneck: str, steps: tuple[int | None, int | None], device: torch.device
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


def sample_and_judge(pipeline: Pipeline, scales: tuple[float, ...], seed: int) -> Iterator[Row]:
    """Ten digits a class at every guidance scale, from the same seeds, each sheet with its judgement.

    The judge compares with held-out digits, which no model here was trained on.
    """
    labels = torch.arange(10).repeat_interleave(PER_CLASS)
    real = load_data("digits:test", pipeline.vae.config.image_size)
    real_images, real_labels = real.batch(torch.arange(len(real)))
    for scale in scales:
        settings = SamplingSettings(guidance_scale=scale)
        images = pipeline.sample(labels, settings, seeds=seed).cpu()
        yield Row(scale, images, judge_digits(images, labels, real_images, real_labels))


def save_results(folder: Path, rows: list[Row], command: str) -> None:
    """Write `results.json` and, where matplotlib is installed, `samples.png`."""
    results = [{"guidance_scale": row.scale, **row.judgement.to_dict()} for row in rows]
    write_json(folder / "results.json", {"command": command, "images": len(rows[0].images), "results": results})
    from spherear.lab.plots import guidance_figure

    captions = {
        row.scale: f"recognised {row.judgement.accuracy:.0%}, diversity {row.judgement.diversity:.2f}" for row in rows
    }
    figure = guidance_figure(
        {row.scale: row.images for row in rows}, captions, PER_CLASS, "Digits drawn by SphereAR, one row a class",
        [str(digit) for digit in range(10)],
    )  # fmt: skip
    with atomic_path(folder / "samples.png") as part:
        figure.savefig(part, format="png", dpi=120)
