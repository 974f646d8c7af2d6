"""The interface of data sets: labelled images, read by index."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.training.augment import PLAIN_VIEW, Augmentation

TEST_START = 1_000_000_000  # index of the first held-out image of an unlimited data set
LISTED = 5  # names in a description


def hashed(parts: Iterable[str | bytes]) -> str:
    """A hash of a sequence of parts: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def _listed(names: Sequence[str]) -> str:
    """The first names, and the last."""
    return ", ".join(names if len(names) <= LISTED else (*names[: LISTED - 1], "...", names[-1]))


def as_float(images: Tensor) -> Tensor:
    """Bytes from 0 to 255 -> x / 127.5 - 1; floats are returned unchanged."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


class ImageData:
    """Labelled images: `len(data)` of them, read by `batch`.

    spec: the string that names the data set.  classes: names of the labels.  image_size: in pixels.
    unlimited: there are images beyond the first `len(data)`, which are one epoch.
    window: images are shuffled among so many consecutive ones, for data that are read forwards; 0: among all.
    augmented: photographs, which `augmentation` crops and flips.
    broken: name -> reason, of images that could not be read and were replaced.
    others: names of what lies with the images and is not read as one.
    """

    spec: str
    classes: tuple[str, ...]
    image_size: int
    unlimited = False
    window = 0
    augmented = False
    broken: dict[str, str] = {}  # noqa: RUF012 (never written to; file data sets set their own)
    others: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} does not implement __len__")

    def facts(self) -> dict[str, Any]:
        """What a run of these data depends on, as JSON: class names, number of images, and a fingerprint of them."""
        return {"classes": list(self.classes), "images": len(self), "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """A hash of the data, 16 hexadecimal digits; of the name alone for data that come with the library."""
        return hashed([self.spec])

    def spread(self, count: int) -> Int[Tensor, " n"]:
        """Up to `count` indices at equal distances; of data that are read forwards, the first ones."""
        count = min(len(self), count)
        return torch.arange(count) if self.window else torch.linspace(0, len(self) - 1, count).long()

    def describe(self) -> str:
        """One line: how many images, of which classes, and what was left out."""
        names = f"{len(self.classes)} classes, {_listed(self.classes)}"
        return f"{self.spec}: {len(self)} images of {names}" + (
            f"; not read: {len(self.others)} others, {_listed(self.others)}" if self.others else ""
        )

    def on(self, device: torch.device | str) -> "ImageData":
        """The same data for training on `device`, where images that are computed are computed there; files are read."""
        return self

    def batch(
        self, indices: Int[Tensor, " n"], augmentation: Augmentation = PLAIN_VIEW
    ) -> tuple[Float[Tensor, "n 3 size size"], Int[Tensor, " n"]]:
        """Images in [-1, 1], float32, and their labels. Indices out of range: ValueError.

        augmentation: crop and flip of photographs; drawings (digits, mnist, shapes) ignore it.
        """
        images, labels = self.raw(indices, augmentation)
        return as_float(images), labels

    def raw(self, indices: Int[Tensor, " n"], augmentation: Augmentation = PLAIN_VIEW) -> tuple[Tensor, Tensor]:
        """As `batch`, but photographs as bytes, a quarter of the size: `as_float` makes images of them."""
        length = TEST_START if self.unlimited else len(self)
        bad = (indices < 0) | (indices >= length)
        if bad.any():
            raise ValueError(f"index {int(indices[bad][0])} is out of range; expected 0 to {length - 1}")
        return self._read(indices, augmentation)

    def _read(self, indices: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__name__} does not implement _read")
