"""A judgement of generated images: recognised as their class, close to real images, and as varied?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier
from spherear.evaluation.metrics import frechet_distance, pairwise_diversity, precision_recall


@dataclass(frozen=True)
class Judgement:
    """accuracy: share recognised as the requested class.  frechet, precision, recall: against real images,
    in the classifier's features.  diversity: mean pairwise pixel distance within a class, over that of real images."""

    accuracy: float
    frechet: float
    precision: float
    recall: float
    diversity: float


@torch.no_grad()
def judge(
    images: Float[Tensor, "n 3 size size"],
    labels: Int[Tensor, " n"],
    real_images: Float[Tensor, "m 3 size size"],
    real_labels: Int[Tensor, " m"],
    classifier: Classifier,
) -> Judgement:
    """Judge images generated for `labels` against real ones. The classifier was trained on real images only."""
    images, labels = images.cpu(), labels.cpu()
    recognised = classifier(images).argmax(dim=1) == labels
    generated, real = classifier.features(images), classifier.features(real_images)
    fidelity = precision_recall(real, generated)
    return Judgement(
        accuracy=float(recognised.double().mean()),
        frechet=frechet_distance(real, generated),
        precision=fidelity.precision,
        recall=fidelity.recall,
        diversity=pairwise_diversity(images.flatten(1), labels)
        / pairwise_diversity(real_images.flatten(1), real_labels),
    )
