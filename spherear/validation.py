"""What a training job is watched with: curves, previews, and scores on held-out images.

It knows which images a data set holds out, and which network its features come from. The scores are in
`evaluation.held_out`, the observers in `training.observers`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from spherear.console import say
from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.defaults import preset_guidance
from spherear.evaluation.held_out import Features, HeldOut, held_out_loss, reconstruction_scores
from spherear.evaluation.inception import FEATURES, inception_features, inception_network
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.vae import VAE
from spherear.sampling.pixels import from_uint8
from spherear.sampling.settings import SamplingSettings
from spherear.training.adversarial import perceptual_network
from spherear.training.data.catalog import held_out_spec, load_data
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import check_broken
from spherear.training.jobs import ARJob, VAEJob
from spherear.training.observers import (
    COLUMNS,
    Observer,
    Score,
    curves,
    every,
    pictures,
    reconstructions,
    samples,
    tensorboard_logger,
    validation,
    wandb_logger,
)
from spherear.world import World

MOST = 5_000  # held-out images that a run is scored on
REPEATS = 4  # times and noises per token of a held-out loss, as in the published training


def observers_of(job: VAEJob | ARJob, data: ImageData) -> list[Observer]:
    """The observers that a job requests. Missing libraries: ModuleNotFoundError; no held-out images: ValueError."""
    observers: list[Observer] = []
    loggers = [tensorboard_logger(job.run)] if job.execution.tensorboard else []
    loggers += [wandb_logger(job.run, job.execution.wandb)] if job.execution.wandb else []
    if loggers:
        observers.append(every(job.recipe.log_every, curves(loggers)))
    if job.execution.validate_every:
        observers.append(every(job.execution.validate_every, validation(job.run, held_out_score(job, data), loggers)))
    if job.execution.preview_every:
        if isinstance(job, VAEJob):
            draw = reconstructions(data.batch(data.spread(COLUMNS))[0])
        else:
            labels = torch.linspace(0, job.model.num_classes - 1, COLUMNS).long().repeat(2)
            settings = SamplingSettings(preset_guidance(job.model), solver="heun", steps=10)
            settings = settings.fitting(job.model.head_kind)
            draw = samples(VAE.from_pretrained(job.vae_folder), labels, settings)
        observers.append(every(job.execution.preview_every, pictures(job.run, draw)))
    return observers


def held_out_name(data: str, held_out: str) -> str:
    """The data set of held-out images: `held_out`, or else the held-out part of what the run is trained on.

    Neither: ValueError.
    """
    name = held_out or held_out_spec(data)
    require(
        bool(name),
        f"held_out is empty, and {data} has no test split; expected a data set such as folder:imagenet/val, or "
        "folder:PATH#train to train on",
    )
    return name


def held_out_images(name: str, image_size: int, classes: Sequence[str], number: int, most: int) -> HeldOut:
    """Up to `most` images of a data set, at equal distances. Other classes than the model's: ValueError.

    classes: names, or empty if the model has none; then their number alone is compared. Reading raises a ValueError for
    images that are broken.
    """
    data = load_data(name, image_size)
    described = f", {', '.join(classes[:4])} ..." if classes else ""
    require(
        data.num_classes == number and tuple(data.classes) == tuple(classes or data.classes),
        f"the held-out images of {name} have {len(data.classes)} classes, {', '.join(data.classes[:4])} ...; "
        f"expected the {number} that the model was trained on{described}",
    )
    rows = data.spread(most)

    def read(indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = data.batch(rows[indices])
        check_broken(data, 0.0)
        return found

    return HeldOut(read, len(rows))


def features_of(name: str, image_size: int) -> tuple[Features | None, str]:
    """Features for a Frechet distance, and where they come from: the judge of a data set, or Inception.

    None if there is no judge, and no torch-fidelity.
    """
    base = name.partition(":")[0]
    if base in JUDGE_INPUTS and image_size >= JUDGE_INPUTS[base].native:
        classifier = load_classifier(base)
        return (lambda images: classifier.features(from_uint8(torch.from_numpy(images)))), f"the {base} judge"
    if find_spec("torch_fidelity") is None:
        return None, "torch-fidelity is not installed"
    network = inception_network()

    def features(images: np.ndarray) -> torch.Tensor:
        return inception_features(images, network)[FEATURES]

    return features, "Inception (torch-fidelity's inception-v3-compat)"


def held_out_score(job: VAEJob | ARJob, data: ImageData) -> Score:
    """What `--validate-every` computes for a job on `data`. ValueError if there are no held-out images that fit."""
    name, size = held_out_name(job.data, job.execution.held_out), data.image_size
    images = held_out_images(name, size, data.classes, data.num_classes, MOST)
    if isinstance(job, ARJob):
        return partial(_ar_score, VAE.from_pretrained(job.vae_folder), images, job.recipe.repeats)
    features, source = features_of(name, size)
    if features is None:
        say(f"held-out scores have no Frechet distance: {source}")
    return partial(_vae_score, images, features, perceptual_network().eval() if job.recipe.lpips_weight else None)


def _ar_score(vae: VAE, images: HeldOut, repeats: int, model: nn.Module, world: World) -> Mapping[str, float]:
    assert isinstance(model, SphereAR)
    vae.to(model.proj_in.weight.device)
    return {"loss": held_out_loss(vae, model, images, repeats, world)}


def _vae_score(
    images: HeldOut, features: Features | None, perceptual: nn.Module | None, model: nn.Module, world: World
) -> Mapping[str, float]:
    assert isinstance(model, VAE)
    if perceptual is not None:
        perceptual = perceptual.to(model.quant_proj.weight.device)
    return reconstruction_scores(model, images, features, perceptual, world)
