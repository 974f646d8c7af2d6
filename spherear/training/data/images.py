"""Photographs in files: read, cropped, and stood in for where they are broken.

Knows: how bytes become an image of the right size.  Does not know: which files there are (`data`, `tar`, `hub`).

Nothing is unpacked: archives are read in place, so none can write anywhere.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from spherear.models.config import require
from spherear.training.augment import Augmentation
from spherear.training.data.dataset import ImageData

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 200_000_000  # more in one image is a mistake, or meant to fill the memory


class Photographs(ImageData):
    """Images that are read when they are asked for; a subclass says what image `i` is called and holds.

    A broken image is noted in `broken` and stood in for by the next one that is whole, so that batches keep
    their size: which one depends on the data alone.
    """

    augmented = True

    def __init__(self, spec: str, classes: Sequence[str], labels: Tensor, image_size: int) -> None:
        require(len(labels) > 0, f"{spec} has no images; expected some ({', '.join(SUFFIXES)})")
        self.spec, self.classes, self.image_size = spec, tuple(classes), image_size
        self.labels = labels
        self.broken: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """What an image is called, in messages."""
        raise TypeError(f"{type(self).__name__} does not say how its images are called")

    def open(self, index: int) -> Image.Image:
        """An image as it is stored; an OSError or ValueError where it cannot be read."""
        raise TypeError(f"{type(self).__name__} does not say how its images are read")

    def _read(self, indices: Tensor, look: Augmentation) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for index in indices.tolist():
            image, found = self._whole(index, look)
            images.append(image)
            labels.append(found)
        return torch.stack(images), self.labels[torch.tensor(labels)]

    def _whole(self, index: int, look: Augmentation) -> tuple[Float[Tensor, "3 size size"], int]:
        """Image `index`, or the next that is whole -> the image, and its index."""
        for place in (*range(index, len(self)), *range(index)):
            name = self.name_of(place)
            if name in self.broken:
                continue
            try:
                picture = self.open(place)
                return as_tensor(seen(picture, look, place, self.image_size)), place
            except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
                self.broken[name] = str(error) or type(error).__name__
        raise ValueError(f"not one of the {len(self)} images of {self.spec} can be read; expected some")


def decode_image(content: bytes) -> Image.Image:
    """Bytes -> a picture in RGB: grey, CMYK, palettes and transparency included. OSError where it is cut short."""
    picture = Image.open(io.BytesIO(content))
    pixels = picture.width * picture.height
    require(pixels <= MAX_PIXELS, f"it has {pixels} pixels; expected at most {MAX_PIXELS}")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def seen(picture: Image.Image, look: Augmentation, index: int, size: int) -> Image.Image:
    """The square that `look` shows, at `size` pixels."""
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    box, mirrored = look.view(index, picture.width, picture.height)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def as_tensor(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """Bytes 0 to 255 -> x / 127.5 - 1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


class Folder(Photographs):
    """A folder with one folder of images a class, classes and images in the order of their names."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        require(path.is_dir(), f"{path} is not a folder; expected one with a folder of images for each class")
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        require(bool(classes), f"{path} has no folders; expected one with images for each class")
        self.files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            mine = sorted(p for p in (path / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            self.files += mine
            labels += [label] * len(mine)
        self.root = path
        super().__init__(spec, classes, torch.tensor(labels, dtype=torch.int64), image_size)

    def name_of(self, index: int) -> str:
        return str(self.files[index].relative_to(self.root))

    def open(self, index: int) -> Image.Image:
        return decode_image(self.files[index].read_bytes())
