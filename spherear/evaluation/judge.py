"""A judgement of generated images: recognised as their class, close to real images, and as varied?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier
from spherear.evaluation.metrics import (
    contrast,
    frechet_distance,
    kernel_distance,
    pairwise_diversity,
    precision_recall,
    saturation,
)
from spherear.sampling.pixels import from_uint8, to_uint8


CHUNK = 256  # images per forward pass


@dataclass(frozen=True)
class Judgement:
    """accuracy: share recognised as the requested class.  frechet, kernel (KID), precision, recall: against real
    images, in the classifier's features.  diversity: mean pairwise pixel distance within a class, over that of real images.
    saturation_shift, contrast_shift: mean saturation and contrast minus those of real images; black to white is 2."""

    accuracy: float
    frechet: float
    kernel: float
    precision: float
    recall: float
    diversity: float
    saturation_shift: float
    contrast_shift: float


@torch.no_grad()
def judge(
    images: Float[Tensor, "n 3 size size"],
    labels: Int[Tensor, " n"],
    real_images: Float[Tensor, "m 3 size size"],
    real_labels: Int[Tensor, " m"],
    classifier: Classifier,
) -> Judgement:
    """Judge images generated for `labels` against real ones. The classifier was trained on real images only.

    All images are judged as they would be saved: clamped and rounded to bytes.
    """
    images, real_images = (from_uint8(to_uint8(x.cpu())) for x in (images, real_images))
    labels = labels.cpu()
    generated, real = (_features(classifier, x) for x in (images, real_images))
    recognised = classifier.classify(generated).argmax(dim=1) == labels
    fidelity = precision_recall(real, generated)
    return Judgement(
        accuracy=float(recognised.double().mean()),
        frechet=frechet_distance(real, generated),
        kernel=kernel_distance(real, generated),
        precision=fidelity.precision,
        recall=fidelity.recall,
        diversity=pairwise_diversity(images.flatten(1), labels)
        / pairwise_diversity(real_images.flatten(1), real_labels),
        saturation_shift=saturation(images) - saturation(real_images),
        contrast_shift=contrast(images) - contrast(real_images),
    )


def _features(classifier: Classifier, images: Tensor) -> Float[Tensor, "n 64"]:
    return torch.cat([classifier.features(chunk) for chunk in images.split(CHUNK)])
