"""Held-out images and the classifier to evaluate generated images with, and scores of a set of samples."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.console import import_library
from spherear.evaluation.classifier import Classifier, load_classifier
from spherear.evaluation.judge import JudgedImages, JudgeScores, compare_images
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.evaluation.samples import balanced_labels
from spherear.evaluation.scores import Pictures, inception_scores, offline_scores, reconstruction_frechet
from spherear.models.config import one_of, require
from spherear.models.presets import preset
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import to_uint8
from spherear.study.design import HALVES
from spherear.training.data import load_data
from spherear.training.data.catalog import Digits, Shapes
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import check_broken
from spherear.training.data.images import AllPictures
from spherear.training.recipes import recipes
from spherear.training.run import keyed_generator

CHECKED = 64  # pictures of a reference that are read before anything is drawn
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


def checked_reference(reference: str, image_size: int) -> tuple[str | Pictures, str]:
    """What Inception scores compare with, and a sentence on it. Checked here, before anything is drawn.

    reference: a folder of pictures, read as training data are: cropped to the middle, resized; a file of images as the
    ADM evaluation suite has them (`arr_0`, bytes, (n, height, width, 3)); or a data set that torch-fidelity knows.
    Anything else, pictures that cannot be read, and a file of statistics alone (made by another network): ValueError.
    """
    path = Path(reference).expanduser()
    if path.suffix == ".npz":
        return _adm_images(path)
    if path.is_dir():
        data = AllPictures(path, image_size)
        data.batch(torch.linspace(0, len(data) - 1, min(len(data), CHECKED)).long())
        check_broken(data, 0.0)

        def read(index: int) -> np.ndarray:
            return to_uint8(data.batch(torch.tensor([index]))[0])[0].numpy()

        return Pictures(len(data), read), f"{len(data)} pictures of {path}, cropped to the middle, {image_size} px"
    known = import_library("torch_fidelity.registry", "eval", "FID needs it").DATASETS_REGISTRY
    require(
        reference in known,
        f"reference is {reference!r}; expected a folder of pictures, an .npz of images, or one of {sorted(known)}",
    )
    return reference, f"torch-fidelity's data set {reference}, at its own size"


def _adm_images(path: Path) -> tuple[Pictures, str]:
    """The images of a file of the ADM evaluation suite."""
    require(path.is_file(), f"{path} is not a file; expected an .npz of images")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names, images = file.files, file["arr_0"] if "arr_0" in file.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); expected an .npz of images") from error
    if images is None:
        raise ValueError(
            f"{path} holds {names}, statistics by another network than the one here; expected images (arr_0). "
            "The ADM evaluation suite itself compares such statistics with samples.npz"
        )
    require(
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3 and len(images) > 1,
        f"arr_0 of {path} is {images.dtype} {images.shape}; expected bytes (n, height, width, 3)",
    )
    size = f"{images.shape[2]} x {images.shape[1]} px"
    return Pictures(len(images), images.__getitem__), f"{len(images)} images of {path}, {size}"


@dataclass(frozen=True)
class Against:
    """What a set of samples is scored against, found before anything is drawn.

    judge: the data set whose held-out images and classifier are used, or empty.  inception: real images, or the name
    of a data set of torch-fidelity, or None.  texts: score -> a sentence on its real images and its features.
    """

    judge: str
    inception: str | Pictures | None
    texts: dict[str, str]

    @classmethod
    def of(cls, pipeline: Pipeline, data: str, reference: str | None) -> "Against":
        """data: a row of JUDGE_INPUTS, or auto: the one with the model's image size and class names.

        reference: see `checked_reference`. Neither: ValueError.
        """
        size, texts = pipeline.vae.config.image_size, {}
        judge = judge_of(pipeline) if data == "auto" else data
        require(
            judge in JUDGE_INPUTS or reference is not None,
            f"data is {data!r}; expected one of {', '.join(JUDGE_INPUTS)}, or a reference for Inception: no judge is "
            f"known for {size} px and the classes {', '.join(pipeline.ar.config.classes[:4])}",
        )
        inception: str | Pictures | None = None
        if reference is not None:
            inception, text = checked_reference(reference, size)
            texts["Inception (FID, IS) and VGG16 (precision, recall)"] = text
        if judge:
            one_of("data", judge, JUDGE_INPUTS)
            texts["the judge of " + judge] = f"held-out images of {judge}, {size} px"
        return cls(judge, inception, texts)


def score_samples(images: np.ndarray, pipeline: Pipeline, against: Against, seed: int) -> dict[str, float]:
    """Inception scores, and scores of the offline classifier of a data set, as `against` says."""
    scores: dict[str, float] = {}
    if against.inception is not None:
        scores |= inception_scores(images, against.inception)
    if against.judge:
        real = Reference.load(against.judge, pipeline.vae.config.image_size)
        labels = balanced_labels(len(images), pipeline.ar.config.num_classes)
        scores |= offline_scores(images, labels, real.images, real.classifier)
        generator = keyed_generator(seed, 0, pipeline.vae.quant_proj.weight.device)
        scores["reconstruction_frechet"] = reconstruction_frechet(pipeline.vae, real.images, real.classifier, generator)
    return scores
