"""Photographs stored in files: decoded, cropped, and replaced if broken.

Archives are never unpacked but read in place, so a malicious one cannot write files.
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
MAX_PIXELS = 200_000_000  # a larger image is a mistake or a decompression bomb


class Photographs(ImageData):
    """Images read on demand; a subclass defines the name and the content of image `i`.

    A broken image is recorded in `broken` and replaced by the next intact one, so that batches keep their
    size. The replacement depends on the data alone.
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
        """Name of an image in messages."""
        raise TypeError(f"{type(self).__name__} does not implement name_of")

    def open(self, index: int) -> Image.Image:
        """An image as stored. OSError or ValueError if it cannot be read."""
        raise TypeError(f"{type(self).__name__} does not implement open")

    def _read(self, indices: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
        images, rows = [], []
        for index in indices.tolist():
            image, row = self._read_intact(index, augmentation)
            images.append(image)
            rows.append(row)
        return torch.stack(images), self.labels[torch.tensor(rows)]

    def _read_intact(self, index: int, augmentation: Augmentation) -> tuple[Float[Tensor, "3 size size"], int]:
        """Image `index`, or the next intact one -> the image, and its index."""
        for candidate in (*range(index, len(self)), *range(index)):
            name = self.name_of(candidate)
            if name in self.broken:
                continue
            try:
                picture = self.open(candidate)
                return as_tensor(seen(picture, augmentation, candidate, self.image_size)), candidate
            except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
                self.broken[name] = str(error) or type(error).__name__
        raise ValueError(f"not one of the {len(self)} images of {self.spec} can be read; expected some")


def decode_image(content: bytes) -> Image.Image:
    """Bytes -> an RGB image; grey, CMYK, palette and transparent images are converted. Truncated bytes: OSError."""
    picture = Image.open(io.BytesIO(content))
    pixels = picture.width * picture.height
    require(pixels <= MAX_PIXELS, f"it has {pixels} pixels; expected at most {MAX_PIXELS}")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def seen(picture: Image.Image, augmentation: Augmentation, index: int, size: int) -> Image.Image:
    """The crop of `augmentation`, resized to `size` pixels and flipped if `augmentation` flips it."""
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    box, mirrored = augmentation.view(index, picture.width, picture.height)
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def as_tensor(picture: Image.Image) -> Float[Tensor, "3 height width"]:
    """Pixels from 0 to 255 -> x / 127.5 - 1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


class Folder(Photographs):
    """A folder with one subfolder of images per class; classes and images are sorted by name."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        require(path.is_dir(), f"{path} is not a folder; expected one with a folder of images for each class")
        classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        require(bool(classes), f"{path} has no folders; expected one with images for each class")
        self.files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = sorted(p for p in (path / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            self.files += images
            labels += [label] * len(images)
        self.root = path
        super().__init__(spec, classes, torch.tensor(labels, dtype=torch.int64), image_size)

    def name_of(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def open(self, index: int) -> Image.Image:
        return decode_image(self.files[index].read_bytes())
