"""A judgement of generated images: are they what was asked for, and are they as varied as real ones?

Knows: a classifier and the metrics.  Does not know: what made the images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import Classifier
from spherear.evaluation.metrics import frechet_distance, pairwise_diversity, precision_recall


@dataclass(frozen=True)
class Judgement:
    """accuracy: share recognised as the class asked for.  frechet, precision, recall: against real images,
    in the classifier's features.  diversity: mean pairwise pixel distance within a class, over real's."""

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
    """Judge images asked for as `labels` against real ones; a classifier saw real training images alone."""
    images, labels = images.cpu(), labels.cpu()
    recognised = classifier(images).argmax(dim=1) == labels
    ours, real = classifier.features(images), classifier.features(real_images)
    fidelity = precision_recall(real, ours)
    return Judgement(
        accuracy=float(recognised.double().mean()),
        frechet=frechet_distance(real, ours),
        precision=fidelity.precision,
        recall=fidelity.recall,
        diversity=pairwise_diversity(images.flatten(1), labels)
        / pairwise_diversity(real_images.flatten(1), real_labels),
    )
