"""FID, inception score, precision and recall in the features of networks that torch-fidelity holds.

Needs the extra `eval` (torch-fidelity, torchvision). Images are bytes. Against a reference file of the ADM suite,
torch-fidelity gives the features alone, and the scores are computed here.
"""

import re
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from spherear.console import import_library
from spherear.evaluation.adm import WIDTH, ADMReference
from spherear.evaluation.metrics import Moments, frechet_distance, inception_score, precision_recall
from spherear.evaluation.scores import Scores

NEED = "FID needs it"
OLDEST, NEXT = (0, 4), (0, 5)  # torch-fidelity from the first version with precision and recall to one not tested
FEWEST = 10  # generated images: the inception score is a mean over ten parts
FEWEST_REAL = 4  # precision and recall look at three neighbours
FEATURES, LOGITS = str(WIDTH), "logits_unbiased"
PART = 5000  # images per part of ADM's inception score
BATCH = 64  # images per forward pass
VGG16_FEATURES = "fc2_relu"
NAMES = {
    "frechet_inception_distance": "frechet_inception_distance",
    "inception_score_mean": "inception_score_mean",
    "inception_score_std": "inception_score_std",
    "precision": "vgg16_recall",
    "recall": "vgg16_precision",
}
"""torch-fidelity's names -> the names here. The judge's precision and recall have the plain names.

torch-fidelity 0.4 takes its first input for the real images in precision and recall, but for the generated ones in the
inception score (its issue 58). Generated images come first here, so the two numbers are exchanged.
"""
Network = Any
"""A network of torch-fidelity: bytes (n, 3, height, width) -> a tuple of features."""
INCEPTION = "in features of Inception (torch-fidelity's inception-v3-compat)"
VGG16 = "in features of VGG16 (torch-fidelity's vgg16)"
ALONE = "the generated images alone, by Inception's classes"
NO_SFID = "needs spatial features of ADM's TensorFlow network: run its evaluator on this file and samples.npz"


def torch_fidelity() -> Any:
    """The library. Missing, not 0.4, or without a torchvision that fits torch: ImportError, in one sentence."""
    library = import_library("torch_fidelity", "eval", NEED)
    version = str(library.__version__)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers >= NEXT:
        raise ImportError(
            f"torch-fidelity is {version}; expected 0.4: which of its inputs are the real images may have changed"
        )
    if numbers < OLDEST:
        raise ImportError(
            f"torch-fidelity is {version}; expected 0.4 or later, which has precision and recall: "
            'pip install --upgrade "spherear[eval]"'
        )
    return library


class ImageBytes(Dataset[Tensor]):
    """Images (n, height, width, 3) in torch-fidelity's format: bytes, channels first."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)


Real = str | Dataset[Tensor]
"""Real images for torch-fidelity: bytes, channels first, or the name of a data set that it knows."""


def picture_scores(images: np.ndarray, real: Real, text: str) -> Scores:
    """FID and inception score in Inception's features, precision and recall in VGG16's, by torch-fidelity.

    text: on the real images.  A score that torch-fidelity does not return: ImportError.
    """
    found: Mapping[str, Any] = torch_fidelity().calculate_metrics(
        input1=ImageBytes(images), input2=real, fid=True, isc=True, prc=True, verbose=False,
        cuda=torch.cuda.is_available(),
    )  # fmt: skip
    missing = sorted(NAMES.keys() - found.keys())
    if missing:
        raise ImportError(f"torch-fidelity gave {sorted(found)}, without {missing}; expected version 0.4 or newer")
    against = {
        "frechet_inception_distance": f"{text}, {INCEPTION}",
        "inception_score_mean": ALONE,
        "inception_score_std": ALONE,
        "vgg16_precision": f"{text}, {VGG16}",
        "vgg16_recall": f"{text}, {VGG16}",
    }
    return Scores({name: float(found[theirs]) for theirs, name in NAMES.items()}, against)


def adm_scores(images: np.ndarray, reference: ADMReference) -> Scores:
    """FID, inception score, precision and recall as the ADM suite defines them, in Inception's features.

    FID: against the file's statistics, or without them against its images. Precision and recall: against its images,
    absent without them. sFID is absent: it needs features that only the suite's own network gives.
    """
    network = inception_network()
    generated = inception_features(images, network)
    score = fmean(inception_score(part) for part in generated[LOGITS].softmax(dim=1).split(PART))
    scores = Scores({"inception_score_mean": score}, {"inception_score_mean": ALONE}, {"sfid": NO_SFID})
    real = inception_features(reference.images, network)[FEATURES] if reference.images is not None else None
    return scores | _fid(generated[FEATURES], reference, real) | _coverage(generated[FEATURES], reference, real)


def _fid(generated: Tensor, reference: ADMReference, real: Tensor | None) -> Scores:
    moments, text = reference.moments, (
        f"mu and sigma of {reference.path}, by the network of whoever made the file (ADM: TensorFlow's Inception); "
        f"generated images {INCEPTION}, a port of it"
    )  # fmt: skip
    if moments is None:
        assert real is not None
        moments, text = Moments.of(real), f"{reference.describe_images()}, {INCEPTION}"
    distance = frechet_distance(Moments.of(generated), moments)
    return Scores({"frechet_inception_distance": distance}, {"frechet_inception_distance": text})


def _coverage(generated: Tensor, reference: ADMReference, real: Tensor | None) -> Scores:
    """Precision and recall, if there are real images."""
    names = ("inception_precision", "inception_recall")
    if real is None:
        return Scores(absent={", ".join(names): f"need images (arr_0), which {reference.path} has not"})
    fidelity = precision_recall(real, generated)
    values = dict(zip(names, (fidelity.precision, fidelity.recall), strict=True))
    return Scores(values, dict.fromkeys(names, f"{reference.describe_images()}, {INCEPTION}"))


def inception_network() -> Network:
    """torch-fidelity's Inception, on the GPU if there is one. Its weights are downloaded once; ImportError if the
    library is missing or too old, OSError if the weights are not here and cannot be downloaded."""
    return _network("inception-v3-compat", [FEATURES, LOGITS])


def check_networks(pictures: bool) -> None:
    """Load what scores need, before anything is drawn: Inception, and VGG16 for `pictures`. Errors as there."""
    inception_network()
    if pictures:
        _network("vgg16", [VGG16_FEATURES])


def _network(name: str, features: list[str]) -> Network:
    torch_fidelity()
    utils, cuda = import_library("torch_fidelity.utils", "eval", NEED), torch.cuda.is_available()
    return utils.create_feature_extractor(name, features, cuda=cuda, verbose=False)


@torch.no_grad()
def inception_features(images: np.ndarray, network: Network) -> dict[str, Float[Tensor, "n f"]]:
    """`FEATURES` (n, 2048) and `LOGITS` (n, classes) of images (n, height, width, 3), in float64, on the CPU."""
    cuda, parts = torch.cuda.is_available(), []
    with tqdm(total=len(images), desc="Inception's features", unit="image", leave=False, disable=None) as bar:
        for batch in _batches(images):
            parts.append(network.convert_features_tuple_to_dict(network(batch.cuda() if cuda else batch)))
            bar.update(len(batch))
    return {name: torch.cat([part[name].cpu() for part in parts]).double() for name in (FEATURES, LOGITS)}


def _batches(images: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(images), BATCH):
        yield torch.from_numpy(np.array(images[start : start + BATCH])).permute(0, 3, 1, 2)
