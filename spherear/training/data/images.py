"""Photographs stored in files: found, cropped, and replaced if broken. Their pixels: see `pixels`.

Classes are sorted by name, character by character: 10 comes before 2. Hidden files and folders are ignored.
Archives are never unpacked but read in place, so a malicious one cannot write files.
"""

import errno
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from spherear.models.config import require
from spherear.training.augment import Augmentation
from spherear.training.data.dataset import ImageData, as_float, hashed
from spherear.training.data.pixels import Extent, decode_small, is_hidden, is_picture

SAMPLED = 64  # images whose content is part of a fingerprint
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})  # no names of classes
STORAGE = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "EHOSTDOWN", "EREMOTEIO", "EMFILE", "ENOMEM")
    if hasattr(errno, name)
)  # errors of the storage, not of a file
PAUSES = (0.5, 2.0, 8.0)  # seconds before reading again after such an error


class StorageError(Exception):
    """The storage fails; what an image is, is not known."""


class Photographs(ImageData):
    """Images read on demand; a subclass defines the name and the content of image `i`.

    A broken image is recorded in `broken` and replaced by the next intact one, so that batches keep their
    size. The replacement depends on the data alone. No image in a class, or not one that can be read: ValueError.
    others: names of visible files that are no pictures, or lie in no class.
    """

    augmented = True

    def __init__(
        self, spec: str, classes: Sequence[str], labels: Tensor, image_size: int, others: Sequence[str] = ()
    ) -> None:
        found = f"only {', '.join(others[:4])}" if others else "no files"
        require(len(labels) > 0, f"{spec} has no images ({found}); expected pictures in a folder for each class")
        require(
            not SPLITS.issuperset(name.lower() for name in classes),
            f"{spec} has the classes {', '.join(classes)}, names of splits; expected the folder or tar of one",
        )
        self.spec, self.classes, self.image_size = spec, tuple(classes), image_size
        self.labels, self.others = labels, tuple(others)
        self.broken: dict[str, str] = {}
        self.counts = torch.bincount(labels, minlength=len(classes)).tolist()  # images per class, broken ones included
        self._broken_counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """Name of an image in messages."""
        raise TypeError(f"{type(self).__name__} does not implement name_of")

    def content(self, index: int) -> bytes:
        """An image as stored. OSError or ValueError if it cannot be read."""
        raise TypeError(f"{type(self).__name__} does not implement content")

    def size_of(self, index: int) -> int:
        """Length of `content` in bytes, found without reading it; -1 if that fails or costs as much."""
        return -1

    def fingerprint(self) -> str:
        """A hash of all names, labels and sizes, and of the content of up to `SAMPLED` images at equal distances."""
        return hashed(self._identity())

    def _identity(self) -> Iterator[str | bytes]:
        for index, label in enumerate(self.labels.tolist()):
            yield f"{self.name_of(index)} {label} {self.size_of(index)}"
        for index in sorted({i * len(self) // SAMPLED for i in range(SAMPLED)}):
            try:
                yield self.content(index)
            except (OSError, ValueError):
                yield "unreadable"

    def _read(self, indices: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
        images, rows = [], []
        for index in indices.tolist():
            image, row = self._read_intact(index, augmentation)
            images.append(image)
            rows.append(row)
        return torch.stack(images), self.labels[torch.tensor(rows)]

    def _read_intact(self, index: int, augmentation: Augmentation) -> tuple[UInt8[Tensor, "3 size size"], int]:
        """Image `index`, or the next intact one -> the image, and its index. OSError if the storage fails."""
        shorter = 2 * math.ceil(self.image_size * augmentation.crop)  # a crop is at least twice as large as its image
        for candidate in (*range(index, len(self)), *range(index)):
            name = self.name_of(candidate)
            if name in self.broken:
                continue
            try:
                picture, extent = decode_small(self._stored(candidate), shorter)
                return as_bytes(seen(picture, augmentation, candidate, self.image_size, extent)), candidate
            except StorageError as error:
                raise OSError(f"{name} of {self.spec} cannot be read: {error}") from error
            except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
                self.broken[name] = str(error) or type(error).__name__
                self._count_broken(int(self.labels[candidate]))
        raise ValueError(f"not one of the {len(self)} images of {self.spec} can be read; expected some")

    def _stored(self, index: int) -> bytes:
        """The content of an image; StorageError if the storage fails, also when asked again."""
        for pause in (*PAUSES, None):
            try:
                return self.content(index)
            except OSError as error:
                if error.errno not in STORAGE:
                    raise
                if pause is None:
                    raise StorageError(f"the storage fails ({error})") from error
                time.sleep(pause)
        raise AssertionError

    def _count_broken(self, label: int) -> None:
        """ValueError once all images of a class are broken: others would stand in for all of it."""
        self._broken_counts[label] += 1
        if self._broken_counts[label] == self.counts[label]:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(self.broken.items())[-4:])
            raise ValueError(f"no image of the class {self.classes[label]!r} of {self.spec} can be read ({reasons})")


def seen(
    picture: Image.Image,
    augmentation: Augmentation,
    index: int,
    size: int,
    extent: Extent | None = None,
) -> Image.Image:
    """The crop of `augmentation`, resized to `size` pixels and flipped if `augmentation` flips it.

    extent: width and height of the picture if they are not those in pixels (see `decode_small`).
    """
    box, mirrored = augmentation.view(index, *(extent or picture.size))
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def as_tensor(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """Pixels from 0 to 255 -> x / 127.5 - 1."""
    return as_float(as_bytes(picture))


def as_bytes(picture: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """Pixels from 0 to 255, channels first."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def all_with_images(classes: Sequence[str], labels: Sequence[int], where: str) -> None:
    """ValueError that names the classes without an image."""
    present = set(labels)
    empty = [name for label, name in enumerate(classes) if label not in present]
    listed = ", ".join(map(repr, empty[:4])) + (f" and {len(empty) - 4} more" if len(empty) > 4 else "")
    require(not empty, f"{where} has no picture of {listed}; expected some for each of its {len(classes)} classes")


class Folder(Photographs):
    """A folder with one subfolder of images per class; further folders in a class do not count. Links are followed."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        require(path.is_dir(), f"{path} is not a folder; expected one with a folder of images for each class")
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        require(bool(classes), f"{path} has no folders; expected one with images for each class")
        self.root, self.names = path, list[str]()
        others = [entry.name for entry in path.iterdir() if not entry.is_dir() and not is_hidden(entry.name)]
        labels: list[int] = []
        for label, name in enumerate(classes):
            for file in sorted(_visible_files(path / name, name)):
                if is_picture(file):
                    self.names.append(file)
                    labels.append(label)
                else:
                    others.append(file)
        if labels:
            all_with_images(classes, labels, spec)
        super().__init__(spec, classes, torch.tensor(labels, dtype=torch.int64), image_size, sorted(others))

    def name_of(self, index: int) -> str:
        return self.names[index]

    def content(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()

    def size_of(self, index: int) -> int:
        try:
            return (self.root / self.names[index]).stat().st_size
        except OSError:
            return -1


class Part(Photographs):
    """Some of the images of a data set: those of `rows`. A class without one among them: ValueError."""

    def __init__(self, whole: Photographs, spec: str, rows: Tensor) -> None:
        self.whole, self.rows = whole, rows.tolist()
        all_with_images(whole.classes, whole.labels[rows].tolist(), spec)
        super().__init__(spec, whole.classes, whole.labels[rows], whole.image_size, whole.others)

    def name_of(self, index: int) -> str:
        return self.whole.name_of(self.rows[index])

    def content(self, index: int) -> bytes:
        return self.whole.content(self.rows[index])

    def size_of(self, index: int) -> int:
        return self.whole.size_of(self.rows[index])


class AllPictures(Photographs):
    """All pictures of a folder and its folders, as one class."""

    def __init__(self, path: Path, image_size: int) -> None:
        require(path.is_dir(), f"{path} is not a folder; expected one of pictures")
        files = sorted(file.removeprefix("./") for file in _visible_files(path, "."))
        self.root, self.names = path, [file for file in files if is_picture(file)]
        others = [file for file in files if not is_picture(file)]
        super().__init__(
            f"folder:{path}", ("all",), torch.zeros(len(self.names), dtype=torch.int64), image_size, others
        )

    def name_of(self, index: int) -> str:
        return self.names[index]

    def content(self, index: int) -> bytes:
        return (self.root / self.names[index]).read_bytes()


def _visible_files(folder: Path, name: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names of the visible files in a folder and its folders, with `name/` before them. Circles of links end."""
    here = os.path.realpath(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _visible_files(folder / entry.name, f"{name}/{entry.name}", above | {here})
            else:
                yield f"{name}/{entry.name}"
