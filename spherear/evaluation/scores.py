"""Scores of a set of images against real ones, in the features of the offline judge or of Inception.

Images are read in chunks. Inception needs the extra `eval` (torch-fidelity, torchvision).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.console import import_library
from spherear.evaluation.classifier import Classifier
from spherear.evaluation.judge import as_saved, features_of
from spherear.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from spherear.models.config import require
from spherear.models.vae import VAE
from spherear.sampling.pixels import from_uint8

CHUNK = 256  # images held at a time


def chunks(images: np.ndarray) -> Iterator[Float[Tensor, "n 3 size size"]]:
    """Bytes (n, height, width, 3) -> images in [-1, 1], in chunks: the inverse of `to_uint8`, to half a byte."""
    for start in range(0, len(images), CHUNK):
        yield from_uint8(torch.from_numpy(np.array(images[start : start + CHUNK])))


@torch.no_grad()
def offline_scores(
    images: np.ndarray, labels: Int[Tensor, " n"], real: Float[Tensor, "m 3 size size"], classifier: Classifier
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
    vae: VAE, real: Float[Tensor, "m 3 size size"], classifier: Classifier, generator: torch.Generator
) -> float:
    """Frechet distance between real images and their reconstructions by the VAE, in the judge's features."""
    device = vae.quant_proj.weight.device
    reconstructed = []
    for chunk in real.split(CHUNK):
        tokens = vae.encode(chunk.to(device), generator).sample
        reconstructed.append(as_saved(vae.decode(tokens).float()))
    real_features, features = (features_of(x, classifier) for x in (as_saved(real), torch.cat(reconstructed)))
    return frechet_distance(real_features, features)


@dataclass(frozen=True)
class Pictures:
    """Images read one by one: read(index) -> bytes (height, width, 3)."""

    count: int
    read: Callable[[int], np.ndarray]


def inception_scores(images: np.ndarray, reference: str | Pictures) -> dict[str, float]:
    """FID and IS in Inception's features, precision and recall in VGG16's, by torch-fidelity.

    reference: real images, or the name of a data set that torch-fidelity knows.
    Without it: ModuleNotFoundError that says what to install. A score that it does not give: ValueError.
    """
    fidelity = import_library("torch_fidelity", "eval", "FID needs it")
    metrics: dict[str, Any] = fidelity.calculate_metrics(
        input1=_Bytes(Pictures(len(images), images.__getitem__)),
        input2=reference if isinstance(reference, str) else _Bytes(reference),
        fid=True, isc=True, prc=True, verbose=False, cuda=torch.cuda.is_available(),
    )  # fmt: skip
    missing = [name for name in ("frechet_inception_distance", "precision", "recall") if name not in metrics]
    require(not missing, f"torch-fidelity gave {sorted(metrics)}, without {missing}; expected version 0.4 or newer")
    return {name: float(value) for name, value in metrics.items()}


class _Bytes(torch.utils.data.Dataset[Tensor]):
    """Images in torch-fidelity's format: bytes, channels first."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return self.pictures.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.pictures.read(index))).permute(2, 0, 1)
