"""Held-out images and the classifier to evaluate generated images with, and scores of a set of samples."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier, load_classifier
from spherear.evaluation.judge import Judgement, judge
from spherear.evaluation.samples import balanced_labels
from spherear.evaluation.scores import inception_scores, offline_scores, reconstruction_frechet
from spherear.evaluation.views import VIEWS
from spherear.models.config import require
from spherear.models.presets import preset
from spherear.sampling.pipeline import Pipeline
from spherear.training.data import load_data
from spherear.training.recipes import course
from spherear.training.run import keyed_generator

MAX_IMAGES = 2000  # maximum number of held-out images
BY_SIZE = {16: "digits", 32: "shapes"}


def held_out(name: str, image_size: int) -> tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]:
    """Up to `MAX_IMAGES` images and labels of the test split of a data set. No model is trained on it."""
    data = load_data(f"{name}:test", image_size)
    return data.batch(torch.arange(min(MAX_IMAGES, len(data))))


@dataclass(frozen=True)
class Reference:
    """Held-out images and the classifier that generated images are evaluated with."""

    images: Float[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classifier: Classifier

    @classmethod
    def load(cls, name: str, image_size: int) -> "Reference":
        """The held-out images and the classifier of a data set."""
        return cls(*held_out(name, image_size), load_classifier(name))

    @classmethod
    def of(cls, preset_name: str) -> "Reference":
        """The reference of the data set of a preset, at the image size of that preset."""
        return cls.load(course(preset_name).data, preset(preset_name).vae.image_size)

    def judge(self, images: Float[Tensor, "n 3 size size"], labels: Int[Tensor, " n"]) -> Judgement:
        """Scores of images generated for `labels`, compared with these held-out images."""
        return judge(images, labels, self.images, self.labels, self.classifier)


def score_samples(
    images: np.ndarray, pipeline: Pipeline, data: str, reference: str | None, seed: int
) -> dict[str, float]:
    """Inception scores if `reference` is given, and scores of the offline classifier of `digits` or `shapes`.

    data: digits, shapes, or auto: chosen by image size, no offline scores for other sizes. No scores: ValueError.
    """
    scores: dict[str, float] = {}
    if reference is not None:
        scores |= inception_scores(images, reference)
    size = pipeline.vae.config.image_size
    name = BY_SIZE.get(size, "") if data == "auto" else data
    require(name in VIEWS or bool(scores), f"data is {data!r}; expected digits or shapes, or a reference for Inception")
    if name in VIEWS:
        real = Reference.load(name, size)
        labels = balanced_labels(len(images), pipeline.ar.config.num_classes)
        scores |= offline_scores(images, labels, real.images, real.classifier)
        generator = keyed_generator(seed, 0, pipeline.vae.quant_proj.weight.device)
        scores["reconstruction_frechet"] = reconstruction_frechet(pipeline.vae, real.images, real.classifier, generator)
    return scores
