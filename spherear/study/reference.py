"""Held-out images and the classifier to evaluate generated images with, and scores of a set of samples."""

import copy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from spherear.console import import_library
from spherear.evaluation.adm import ADMReference, read_adm
from spherear.evaluation.classifier import JudgeNetwork
from spherear.evaluation.held_out import HeldOut, held_out_loss, reconstruction_scores
from spherear.evaluation.inception import (
    FEWEST,
    FEWEST_REAL,
    NEED,
    Real,
    adm_scores,
    check_networks,
    picture_scores,
    torch_fidelity,
)
from spherear.evaluation.judge import JudgedImages, JudgeScores, compare_images
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.evaluation.samples import balanced_labels
from spherear.evaluation.scores import Scores, offline_scores, reconstruction_frechet
from spherear.models.config import one_of, require
from spherear.models.files import read_json, user_path
from spherear.models.presets import preset
from spherear.models.pretrained import shipped
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import to_uint8
from spherear.study.design import HALVES
from spherear.study.judges import AUTO, Judge, find_judge
from spherear.training.adversarial import perceptual_network
from spherear.training.data import load_data
from spherear.training.data.catalog import LOADERS, SOURCES, Digits, Shapes, held_out_spec
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import check_broken
from spherear.training.data.images import AllPictures
from spherear.training.recipes import recipes
from spherear.training.run import keyed_generator
from spherear.training.run_file import RUN_FILE
from spherear.validation import REPEATS, features_of, held_out_images

CHECKED = 64  # pictures of a reference read at a time
MAX_IMAGES = 2000  # held-out images, unless a half is asked for
MOST_HELD_OUT = 50_000  # images of a data set given for held-out scores
HALF = 10_000  # images in a half of an unlimited data set
JUDGED: dict[str, type[ImageData]] = {"digits": Digits, "mnist": Digits, "shapes": Shapes}
"""Data sets with a judge, and the class that holds the names of their classes."""


def held_out(data: str, image_size: int, half: str = "") -> tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]:
    """Real images and labels to compare generated ones with: up to 2,000 of the test split, or a half.

    half: `a` or `b`, two sets without common images, so that what is chosen on one is reported on the other: 10,000
    images of the test split of an unlimited data set; otherwise every other image of the whole data set, training
    images included, as is the custom for Frechet distances.
    """
    rows, indices = _rows(data, image_size, half)
    return rows.batch(indices)


def _rows(spec: str, image_size: int, half: str) -> tuple[ImageData, Int[Tensor, " n"]]:
    """A data set and the indices of its held-out images. ValueError for one without a held-out part, or such a half."""
    one_of("half", half, HALVES)
    test = held_out_spec(spec)
    require(
        bool(test),
        f"{spec} has no held-out part to compare with; expected folder:PATH#train or tar:PATH#train, which leave every "
        "fifth picture out, or data with a split `test`",
    )
    data = load_data(test, image_size)
    if not half:
        return data, torch.arange(min(MAX_IMAGES, len(data)))
    second = half == "b"
    if data.unlimited:
        return data, torch.arange(HALF) + HALF * second
    require(spec in JUDGED, f"half is {half!r} of {spec}; expected none, or one of {', '.join(JUDGED)}")
    data = load_data(f"{spec}:all", image_size)
    return data, torch.arange(int(second), len(data), 2)


@dataclass(frozen=True)
class Reference:
    """Real images, and the classifier on `device` that generated images are evaluated with."""

    images: Float[Tensor, "n 3 size size"]
    labels: Int[Tensor, " n"]
    classifier: JudgeNetwork
    device: str = "cpu"

    def on(self, device: torch.device | str) -> "Reference":
        """The same, judging on another device. A judge of one's own that is no torch module stays where it is."""
        if not isinstance(self.classifier, nn.Module):
            return self
        return replace(self, classifier=copy.deepcopy(self.classifier).to(device), device=str(device))

    @classmethod
    def load(
        cls, data: str, image_size: int, half: str = "", judge: str = AUTO, folder: Path | None = None
    ) -> "Reference":
        """The real images of a data set (see `held_out`) and its judge (see `find_judge`)."""
        return cls(*held_out(data, image_size, half), find_judge(judge, data, image_size, folder).network)

    @classmethod
    def of(cls, preset_name: str, half: str = "") -> "Reference":
        """The reference of the data set of a preset, at the image size of that preset."""
        return cls.load(recipes(preset_name).data, preset(preset_name).vae.image_size, half)

    @cached_property
    def side(self) -> JudgedImages:
        """What judging needs of the real images, computed once."""
        return JudgedImages.of(self.images, self.labels, self.classifier, self.device)

    def judge(self, images: Float[Tensor, "n 3 size size"], labels: Int[Tensor, " n"]) -> JudgeScores:
        """Scores of images generated for `labels`, compared with these real images."""
        return compare_images(JudgedImages.of(images, labels, self.classifier, self.device), self.side)


def real_samples(spec: str, size: int, half: str, count: int, seed: int) -> tuple[Tensor, Int[Tensor, " n"]]:
    """`count` real images (or all there are) that are not in the half: judged, they give the floor of every score.

    They come from the other half, or without halves from the training split, in an order that depends on the seed.
    """
    if half:
        data, indices = _rows(spec, size, "b" if half == "a" else "a")
    else:
        data = load_data(spec, size)
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


class PictureBytes(Dataset[Tensor]):
    """Images of a data set as bytes, channels first, as a model is trained on them, without augmentation.

    One that cannot be read any more: ValueError.
    """

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        images, _ = self.data.batch(torch.tensor([index]))
        check_broken(self.data, 0.0)
        return to_uint8(images)[0].permute(2, 0, 1)


def checked_reference(reference: str, image_size: int) -> tuple[Real | ADMReference, str]:
    """What Inception scores compare with, and a sentence on it. Checked here, before anything is drawn.

    reference: a folder of pictures, read as training data are: cropped to the middle, resized; a file of the ADM
    evaluation suite (see `read_adm`); or a data set that torch-fidelity knows. Anything else, pictures that cannot be
    read, and fewer than precision and recall need: ValueError. No torch-fidelity that fits: ImportError.
    """
    torch_fidelity()
    path = user_path(reference)
    if path.suffix == ".npz":
        adm = read_adm(path)
        _enough(len(adm.images) if adm.images is not None else FEWEST_REAL, str(path))
        return adm, ""
    if path.is_dir():
        data = AllPictures(path, image_size)
        _enough(len(data), str(path))
        for indices in tqdm(
            torch.arange(len(data)).split(CHECKED), f"reading {path}", unit="batch", leave=False, disable=None
        ):
            data.batch(indices)
        check_broken(data, 0.0)
        return PictureBytes(data), f"{len(data)} pictures of {path}, cropped to the middle, {image_size} px"
    known = import_library("torch_fidelity.registry", "eval", NEED).DATASETS_REGISTRY
    require(
        reference in known,
        f"reference is {reference!r}; expected a folder of pictures, an .npz of the ADM suite, or one of "
        f"{sorted(known)}",
    )
    return reference, f"torch-fidelity's data set {reference}, at its own size"


def _enough(count: int, name: str) -> None:
    require(count >= FEWEST_REAL, f"{name} has {count} images; expected at least {FEWEST_REAL} to compare with")


def trained_data(run: str) -> tuple[str, Path | None]:
    """The data set that a run was trained on, and the folder of its own judge; empty for a model without its run."""
    folder = user_path(run)
    file = folder / "ar" / RUN_FILE
    return (str(read_json(file).get("data", "")), folder / "judge") if file.is_file() else ("", None)


def data_of(name: str, pipeline: Pipeline) -> str:
    """The data set that a run was trained on, or a shipped model was made for; ValueError if nothing says which."""
    preset_name = name.partition("-")[0]
    made_for = recipes(preset_name).data if name in shipped() else judge_of(pipeline)
    spec = trained_data(name)[0] or made_for
    require(bool(spec), f"data is empty, and {name} does not say what it was trained on; expected a data set")
    return spec


@dataclass(frozen=True)
class Against:
    """What a set of samples is scored against, found before anything is drawn.

    data: the data set whose held-out images are compared with, or empty.  judge: what sees them.  inception: real
    images, or the name of a data set of torch-fidelity, or a file of the ADM suite, or None.  text: on these.
    held_out: images for the AR model's loss and the VAE's reconstructions, or None, and their name.
    """

    data: str
    judge: Judge | None = None
    inception: Real | ADMReference | None = None
    text: str = ""
    held_out: tuple[str, HeldOut] | None = None

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        data: str,
        reference: str | None,
        count: int,
        judge: str = AUTO,
        folder: Path | None = None,
        trained_on: str = "",
        held_out: str = "",
    ) -> "Against":
        """data: a data set with a held-out part; auto: what the model was `trained_on` if that has one, or else the row
        of JUDGE_INPUTS with the model's image size and class names.

        reference: see `checked_reference`.  count: of the images to draw.  judge, folder: see `find_judge`.
        held_out: a data set with the model's classes, or empty.
        None of data, reference and held_out, a judge of other images, or too few images to score: ValueError.
        """
        size, config = pipeline.vae.config.image_size, pipeline.ar.config
        own = trained_on if held_out_spec(trained_on) else ""
        spec = (own or judge_of(pipeline)) if data == AUTO else data
        fewest = FEWEST if reference is not None else FEWEST_REAL
        require(count >= fewest, f"count is {count}; expected at least {fewest} images to score")
        if data != AUTO and spec.partition(":")[0] not in (*LOADERS, *SOURCES):
            spec = ""
        require(
            bool(spec) or (data == AUTO and (reference is not None or held_out != "")),
            f"data is {data!r}; expected one of {', '.join(JUDGE_INPUTS)}, a data set with a held-out part such as "
            f"folder:PATH#train, or a reference for Inception: no judge is known for {size} px and the classes "
            f"{', '.join(config.classes[:4])}",
        )
        if spec:
            _check_data(spec, size, config.num_classes)
        images = None
        if held_out:
            found = held_out_images(held_out, size, config.classes, config.num_classes, MOST_HELD_OUT)
            images = (held_out, found)
        real, text = checked_reference(reference, size) if reference is not None else (None, "")
        if reference is not None:
            check_networks(pictures=not isinstance(real, ADMReference))
        network = find_judge(judge, spec, size, folder) if spec else None  # last: it may have to be trained
        return cls(spec, network, real, text, images)


def _check_data(spec: str, size: int, classes: int) -> None:
    """ValueError unless a data set has these classes, and its judge, if one ships, can see images of this size."""
    native = JUDGE_INPUTS[spec].native if spec in JUDGE_INPUTS else 1
    require(size >= native, f"images have {size} px; expected at least {native} for the judge of {spec}")
    data, _ = _rows(spec, size, "")
    known = data.num_classes
    require(classes == known, f"the model has {classes} classes; expected {known}, as the judge of {spec} has")
    require(
        len(data) >= FEWEST_REAL, f"{spec} has {len(data)} held-out images; expected at least {FEWEST_REAL} to score"
    )


def score_samples(images: np.ndarray, pipeline: Pipeline, against: Against, seed: int) -> Scores:
    """Scores in Inception's features, and by the judge of a data set, as `against` says."""
    scores = Scores()
    if isinstance(against.inception, ADMReference):
        scores |= adm_scores(images, against.inception)
    elif against.inception is not None:
        scores |= picture_scores(images, against.inception, against.text)
    if against.held_out is not None:
        scores |= held_out_scores(pipeline, *against.held_out)
    return scores | (judge_scores(images, pipeline, against.data, against.judge, seed) if against.judge else Scores())


def held_out_scores(pipeline: Pipeline, name: str, images: HeldOut) -> Scores:
    """The AR model's loss on held-out images, and PSNR, LPIPS and Frechet distance of the VAE's reconstructions.

    LPIPS is absent without torchmetrics and torchvision, the distance without features to compute it in.
    """
    size, device = pipeline.vae.config.image_size, pipeline.vae.quant_proj.weight.device
    features, source = features_of(name, size)
    lpips = all(find_spec(library) is not None for library in ("torchmetrics", "torchvision"))
    network = perceptual_network().eval().to(device) if lpips else None
    found = reconstruction_scores(pipeline.vae, images, features, network)
    values = {"held_out_loss": held_out_loss(pipeline.vae, pipeline.ar, images, REPEATS)}
    values |= {f"held_out_{score}": value for score, value in found.items()}
    text = f"{images.count} images of {name}, {size} px"
    against = dict.fromkeys(values, f"{text} (their reconstructions by the VAE)") | {"held_out_loss": text}
    if features is not None:
        against["held_out_frechet"] += f", in features of {source}"
    absent = {} if lpips else {"held_out_lpips": "needs torchmetrics and torchvision"}
    return Scores(values, against, absent | ({} if features is not None else {"held_out_frechet": source}))


def judge_scores(images: np.ndarray, pipeline: Pipeline, name: str, judge: Judge, seed: int) -> Scores:
    """Scores of class-balanced images (n, height, width, 3) by a data set's judge, and of the VAE's reconstructions."""
    size, vae = pipeline.vae.config.image_size, pipeline.vae
    real = Reference(*held_out(name, size), judge.network)
    labels = balanced_labels(len(images), pipeline.ar.config.num_classes)
    values = offline_scores(images, labels, real.images, real.classifier)
    found = reconstruction_frechet(vae, real.images, real.classifier, keyed_generator(seed, 0))
    values["reconstruction_frechet"] = found
    compared, features = f"{len(real.images)} held-out images of {name}, {size} px", f"in features of {judge.title}"
    against = dict.fromkeys(values, f"{compared}, {features}")
    against["accuracy"] = f"the requested labels, by {judge.title}"
    against["inception_score"] = f"the generated images alone, by the classes of {judge.title}"
    against["reconstruction_frechet"] = f"{compared} (their reconstructions by the VAE), {features}"
    return Scores(values, against)
