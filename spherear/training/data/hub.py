"""Data sets of the hub, or folders in its formats: `hub:owner/name@revision#split`, `?stream` to download none.

Knows: columns of images and labels.  Does not know: how an image is cropped.  Needs the extra `train`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from spherear.models.config import require
from spherear.training.data.images import Photographs, decode_image


def load_hub(rest: str, spec: str, image_size: int) -> Photographs:
    """`owner/name[@revision][#split][?stream]` -> its images. Split: `train` by default.

    Nothing of the repository is run. Without `datasets`: ModuleNotFoundError.
    """
    try:
        import datasets
    except ImportError as error:
        raise ModuleNotFoundError(
            'datasets is not installed; hub data need it: pip install "spherear[train]"'
        ) from error
    rest, _, how = rest.partition("?")
    require(how in ("", "stream"), f"data is {spec!r}; expected ?stream or nothing after the split, not {how!r}")
    rest, _, split = rest.partition("#")
    name, _, revision = rest.partition("@")
    source = datasets.load_dataset(name, split=split or "train", revision=revision or None, streaming=how == "stream")
    image, label = _columns(source.features, spec)
    source = source.cast_column(image, datasets.Image(decode=False))
    classes = source.features[label].names
    if how == "stream":
        count = source.info.splits[split or "train"].num_examples if source.info.splits else 0
        return Stream(source, count, image, label, classes, spec, image_size)
    labels = torch.tensor(source.with_format(None).select_columns([label])[label], dtype=torch.int64)
    return Hub(source, image, labels, classes, spec, image_size)


def _columns(features: Any, spec: str) -> tuple[str, str]:
    """The first column of images and the first of class labels."""
    kinds = {name: type(feature).__name__ for name, feature in (features or {}).items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    require(bool(images and labels), f"{spec} has columns {kinds}; expected an Image and a ClassLabel")
    return images[0], labels[0]


def _decoded(stored: dict[str, Any]) -> Image.Image:
    """A stored image, bytes or the path of a file -> a picture."""
    return decode_image(stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes())


class Hub(Photographs):
    """A data set on this machine, read by index."""

    def __init__(
        self, source: Any, image: str, labels: torch.Tensor, classes: list[str], spec: str, image_size: int
    ) -> None:
        self.source, self.image = source, image
        super().__init__(spec, classes, labels, image_size)

    def name_of(self, index: int) -> str:
        return f"row {index}"

    def open(self, index: int) -> Image.Image:
        return _decoded(self.source[index][self.image])


class Stream(Photographs):
    """A data set that is read as it comes: in its own order, forwards; who asks for an earlier row begins again.

    Labels become known with their rows.
    """

    def __init__(
        self, source: Any, count: int, image: str, label: str, classes: list[str], spec: str, image_size: int
    ) -> None:
        require(count > 0, f"{spec} does not say how many images it has; expected a data set that does, or no ?stream")
        self.source, self.image, self.label = source, image, label
        self._rows: Iterator[Any] = iter(())
        self._next = count  # the row that `_rows` gives next
        super().__init__(spec, classes, torch.zeros(count, dtype=torch.int64), image_size)

    def name_of(self, index: int) -> str:
        return f"row {index}"

    def open(self, index: int) -> Image.Image:
        if index < self._next:
            self._rows, self._next = iter(self.source), 0
        while True:
            row, self._next = next(self._rows), self._next + 1
            if self._next > index:
                self.labels[index] = row[self.label]
                return _decoded(row[self.image])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_rows": None, "_next": len(self)}
