"""Held-out images and the classifier to evaluate generated images with, and scores of a set of samples."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier, load_classifier
from spherear.evaluation.judge import JudgedImages, JudgeScores, compare_images
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.evaluation.samples import balanced_labels
from spherear.evaluation.scores import inception_scores, offline_scores, reconstruction_frechet
from spherear.models.config import one_of, require
from spherear.models.presets import preset
from spherear.sampling.pipeline import Pipeline
from spherear.study.design import HALVES
from spherear.training.data import load_data
from spherear.training.data.catalog import Digits, Shapes
from spherear.training.data.dataset import ImageData
from spherear.training.recipes import recipes
from spherear.training.run import keyed_generator

MAX_IMAGES = 2000  # held-out images, unless a half is asked for
HALF = 10_000  # images in a half of an unlimited data set
JUDGED: dict[str, type[ImageData]] = {"digits": Digits, "mnist": Digits, "shapes": Shapes}
"""Data sets with a judge, and the class that holds the names of their classes."""


def held_out(name: str, image_size: int, half: str = "") -> tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]:
    """Real images and labels to compare generated ones with: up to 2,000 of the test split, or a half.

    half: `a` or `b`, two sets without common images, so that what is chosen on one is reported on the other: 10,000
    images of the test split of an unlimited data set; otherwise every other image of the whole data set, training
    images included, as is the custom for Frechet distances.
    """
    data, indices = _rows(name, image_size, half)
    return data.batch(indices)


def _rows(name: str, image_size: int, half: str) -> tuple[ImageData, Int[Tensor, " n"]]:
    """A data set and the indices of its held-out images."""
    one_of("half", half, HALVES)
    data = load_data(f"{name}:test", image_size)
    if not half:
        return data, torch.arange(min(MAX_IMAGES, len(data)))
    second = half == "b"
    if data.unlimited:
        return data, torch.arange(HALF) + HALF * second
    data = load_data(f"{name}:all", image_size)
    return data, torch.arange(int(second), len(data), 2)


@dataclass(frozen=True)
class Reference:
    """Real images and the classifier that generated images are evaluated with."""

    images: Float[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classifier: Classifier

    @classmethod
    def load(cls, name: str, image_size: int, half: str = "") -> "Reference":
        """The real images of a data set (see `held_out`) and its classifier."""
        return cls(*held_out(name, image_size, half), load_classifier(name))

    @classmethod
    def of(cls, preset_name: str, half: str = "") -> "Reference":
        """The reference of the data set of a preset, at the image size of that preset."""
        return cls.load(recipes(preset_name).data, preset(preset_name).vae.image_size, half)

    @cached_property
    def side(self) -> JudgedImages:
        """What judging needs of the real images, computed once."""
        return JudgedImages.of(self.images, self.labels, self.classifier)

    def judge(self, images: Float[Tensor, "n 3 size size"], labels: Int[Tensor, " n"]) -> JudgeScores:
        """Scores of images generated for `labels`, compared with these real images."""
        return compare_images(JudgedImages.of(images, labels, self.classifier), self.side)


def real_samples(preset_name: str, half: str, count: int, seed: int) -> tuple[Tensor, Int[Tensor, " n"]]:
    """`count` real images (or all there are) that are not in the half: judged, they give the floor of every score.

    They come from the other half, or without halves from the training split, in an order that depends on the seed.
    """
    name, size = recipes(preset_name).data, preset(preset_name).vae.image_size
    if half:
        data, indices = _rows(name, size, "b" if half == "a" else "a")
    else:
        data = load_data(name, size)
        indices = torch.arange(min(MAX_IMAGES, len(data)))
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return data.batch(indices[order[:count]])


def judge_of(pipeline: Pipeline) -> str:
    """The data set that a model was made for, by its image size and class names; empty if that is none or not clear."""
    size, classes = pipeline.vae.config.image_size, pipeline.ar.config.classes
    fitting = [
        name
        for name, kind in JUDGED.items()
        if JUDGE_INPUTS[name].size == size and classes in ((), tuple(kind.classes))
    ]
    return fitting[0] if len(fitting) == 1 else ""


def score_samples(
    images: np.ndarray, pipeline: Pipeline, data: str, reference: str | None, seed: int
) -> dict[str, float]:
    """Inception scores if `reference` is given, and scores of the offline classifier of a data set.

    data: a row of JUDGE_INPUTS, or auto: the one with the model's image size and class names. No scores: ValueError.
    """
    scores: dict[str, float] = {}
    if reference is not None:
        scores |= inception_scores(images, reference)
    size = pipeline.vae.config.image_size
    name = judge_of(pipeline) if data == "auto" else data
    known = ", ".join(JUDGE_INPUTS)
    require(
        name in JUDGE_INPUTS or bool(scores), f"data is {data!r}; expected one of {known}, or a reference for Inception"
    )
    if name in JUDGE_INPUTS:
        real = Reference.load(name, size)
        labels = balanced_labels(len(images), pipeline.ar.config.num_classes)
        scores |= offline_scores(images, labels, real.images, real.classifier)
        generator = keyed_generator(seed, 0, pipeline.vae.quant_proj.weight.device)
        scores["reconstruction_frechet"] = reconstruction_frechet(pipeline.vae, real.images, real.classifier, generator)
    return scores
