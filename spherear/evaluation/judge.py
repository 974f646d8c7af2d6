"""A judgement of generated images: recognised as their class, close to real images, and as varied?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import JudgeNetwork
from spherear.evaluation.metrics import (
    contrast,
    frechet_distance,
    inception_score,
    kernel_distance,
    pairwise_diversity,
    precision_recall,
    saturation,
)
from spherear.sampling.pixels import from_uint8, to_uint8

CHUNK = 256  # images per forward pass


def as_saved(images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n 3 size size"]:
    """Images as a file would hold them: clamped and rounded to bytes. On the CPU."""
    return from_uint8(to_uint8(images.cpu()))


@torch.no_grad()
def features_of(
    images: Float[Tensor, "n 3 size size"], classifier: JudgeNetwork, device: torch.device | str = "cpu"
) -> Float[Tensor, "n f"]:
    """The classifier's features, computed in chunks on its device."""
    return torch.cat([classifier.features(chunk.to(device)) for chunk in images.split(CHUNK)])


@dataclass(frozen=True)
class JudgeScores:
    """accuracy: share recognised as the requested class.  frechet, kernel (KID), precision, recall: against real
    images, in the classifier's features.  inception_score: of the classifier's guesses.  diversity: mean pairwise
    pixel distance within a class, over that of real images.  saturation_shift, contrast_shift: mean saturation and
    contrast minus those of real images; black to white is 2.
    """

    accuracy: float
    frechet: float
    kernel: float
    inception_score: float
    precision: float
    recall: float
    diversity: float
    saturation_shift: float
    contrast_shift: float


@dataclass(frozen=True)
class JudgedImages:
    """One side of a judgement: a set of images as bytes would hold them, seen by the classifier.

    features: (n, 64).  logits: (n, 10).  diversity, saturation, contrast: of the set.
    """

    labels: Int[Tensor, " n"]
    features: Float[Tensor, "n f"]
    logits: Float[Tensor, "n classes"]
    diversity: float
    saturation: float
    contrast: float

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        images: Float[Tensor, "n 3 size size"],
        labels: Int[Tensor, " n"],
        classifier: JudgeNetwork,
        device: torch.device | str = "cpu",
    ) -> "JudgedImages":
        """See a set of images. They are judged as they would be saved: clamped and rounded to bytes.

        device: of the classifier; the features stay there.
        """
        images, labels = as_saved(images), labels.cpu()
        features = features_of(images, classifier, device)
        spread = pairwise_diversity(images.flatten(1).to(device), labels.to(device))
        return cls(labels, features, classifier.classify(features), spread, saturation(images), contrast(images))


def compare_images(generated: JudgedImages, real: JudgedImages) -> JudgeScores:
    """The scores of one set against another."""
    fidelity = precision_recall(real.features, generated.features)
    return JudgeScores(
        accuracy=float((generated.logits.argmax(dim=1).cpu() == generated.labels).double().mean()),
        frechet=frechet_distance(real.features, generated.features),
        kernel=kernel_distance(real.features, generated.features),
        inception_score=inception_score(generated.logits.softmax(dim=1)),
        precision=fidelity.precision,
        recall=fidelity.recall,
        diversity=generated.diversity / real.diversity,
        saturation_shift=generated.saturation - real.saturation,
        contrast_shift=generated.contrast - real.contrast,
    )


def judge(
    images: Float[Tensor, "n 3 size size"],
    labels: Int[Tensor, " n"],
    real_images: Float[Tensor, "m 3 size size"],
    real_labels: Int[Tensor, " m"],
    classifier: JudgeNetwork,
) -> JudgeScores:
    """Judge images generated for `labels` against real ones. The classifier was trained on real images only."""
    sides = (JudgedImages.of(x, y, classifier) for x, y in ((images, labels), (real_images, real_labels)))
    return compare_images(*sides)
