"""Scores of a set of images against real ones, in the features of the offline judge; images are read in chunks.

For scores in Inception's features see `inception`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.evaluation.classifier import JudgeNetwork
from spherear.evaluation.judge import as_saved, features_of
from spherear.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from spherear.models.config import require
from spherear.models.vae import VAE
from spherear.sampling.pixels import from_uint8

CHUNK = 256  # images held at a time


@dataclass(frozen=True)
class Scores:
    """values: by name.  against: what each is computed against, and in which features.

    absent: scores that are not computed, and why.
    """

    values: dict[str, float] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __or__(self, other: "Scores") -> "Scores":
        """Both; a name in both: ValueError, so that none replaces another."""
        twice = sorted(self.values.keys() & other.values.keys())
        require(not twice, f"{twice} are computed twice; expected different names")
        return Scores(self.values | other.values, self.against | other.against, self.absent | other.absent)

    def rows(self) -> Iterator[str]:
        """A line for every score, with what it is computed against, and for every absent one."""
        for name, value in self.values.items():
            yield f"{name:26} {value:10.4f}  against {self.against[name]}"
        for name, reason in self.absent.items():
            yield f"{name:26} {'none':>10}  {reason}"


def chunks(images: np.ndarray) -> Iterator[Float[Tensor, "n 3 size size"]]:
    """Bytes (n, height, width, 3) -> images in [-1, 1], in chunks: the inverse of `to_uint8`, to half a byte."""
    for start in range(0, len(images), CHUNK):
        yield from_uint8(torch.from_numpy(np.array(images[start : start + CHUNK])))


@torch.no_grad()
def offline_scores(
    images: np.ndarray, labels: Int[Tensor, " n"], real: Float[Tensor, "m 3 size size"], classifier: JudgeNetwork
) -> dict[str, float]:
    """The scores of `judge.JudgeScores` that need no pixels of real images; generated images are read in chunks."""
    features = torch.cat([classifier.features(chunk) for chunk in chunks(images)])
    probabilities = classifier.classify(features).softmax(dim=1)
    real_features = features_of(as_saved(real), classifier)
    fidelity = precision_recall(real_features, features)
    return {
        "frechet": frechet_distance(real_features, features),
        "kernel": kernel_distance(real_features, features),
        "inception_score": inception_score(probabilities),
        "precision": fidelity.precision,
        "recall": fidelity.recall,
        "accuracy": float((probabilities.argmax(dim=1) == labels).double().mean()),
    }


@torch.no_grad()
def reconstruction_frechet(
    vae: VAE, real: Float[Tensor, "m 3 size size"], classifier: JudgeNetwork, generator: torch.Generator
) -> float:
    """Frechet distance between real images and their reconstructions by the VAE, in the judge's features.

    generator: of the CPU, for the same number on any machine.
    """
    device = vae.quant_proj.weight.device
    reconstructed = []
    for chunk in real.split(CHUNK):
        tokens = vae.encode(chunk.to(device), generator).sample.to(device)
        reconstructed.append(as_saved(vae.decode(tokens).float()))
    real_features, features = (features_of(x, classifier) for x in (as_saved(real), torch.cat(reconstructed)))
    return frechet_distance(real_features, features)
