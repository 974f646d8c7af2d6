"""Images in a tar file, or in tar files inside it (like ILSVRC), read in place through an index.

The first process builds the index, once, while others wait. It is a safetensors file beside the tar, or in the
cache folder if the tar's folder is not writable.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from spherear.models.config import require
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.training.data.images import SUFFIXES, Photographs, decode_image

SUFFIX = ".index.safetensors"


@dataclass(frozen=True)
class Index:
    """offsets, sizes (in bytes), labels, names: of every image.  classes: names of the labels, some perhaps unused."""

    offsets: Tensor
    sizes: Tensor
    labels: Tensor
    names: list[str]
    classes: list[str]


def read_index(path: Path) -> Index:
    """The index of a tar file, built if there is none or if the tar has changed since.

    Not a tar, or a truncated one: ValueError.
    """
    require(path.is_file(), f"{path} is not a file; expected a tar of images, or of tars of images")
    status = path.stat()
    identity = f"{status.st_size} {status.st_mtime_ns}"
    index_path = _index_path(path)
    with locked(index_path):
        index = _stored(index_path, identity)
        if index is None:
            index = build_index(path)
            write_tensors(index_path, _packed(index), {"of": identity})
    return index


def _stored(path: Path, identity: str) -> Index | None:
    """The index in a file, if it is that of this tar; copied, because Windows does not replace a mapped file."""
    if path.is_file():
        tensors, metadata = read_tensors(path)
        if metadata.get("of") == identity:
            return _unpacked({name: tensor.clone() for name, tensor in tensors.items()})
    return None


def build_index(path: Path) -> Index:
    """Scan a tar and the tars in it. Classes are the inner tars, or the images' folders, sorted by name."""
    entries: list[tuple[str, str, int, int]] = []  # class, name, offset, size
    classes: set[str] = set()
    try:
        with tarfile.open(path, "r:") as outer:
            for member in outer:
                if not member.isfile():
                    continue
                if member.name.lower().endswith(".tar"):
                    name = Path(member.name).stem
                    classes.add(name)
                    inner = outer.extractfile(member)
                    assert inner is not None
                    entries += ((name, *image) for image in _images(inner, member.offset_data))
                elif member.name.lower().endswith(SUFFIXES):
                    name = Path(member.name).parent.name
                    classes.add(name)
                    entries.append((name, Path(member.name).name, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a complete tar file ({error}); expected one that is not compressed") from error
    labels = {name: label for label, name in enumerate(sorted(classes))}
    entries.sort()
    return Index(
        torch.tensor([offset for *_, offset, _ in entries], dtype=torch.int64),
        torch.tensor([size for *_, size in entries], dtype=torch.int64),
        torch.tensor([labels[name] for name, *_ in entries], dtype=torch.int64),
        [f"{kind}/{name}" for kind, name, *_ in entries],
        sorted(classes),
    )


def _images(inner: Any, start: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the outer file, and size of each image of an inner tar."""
    with tarfile.open(fileobj=inner, mode="r:") as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith(SUFFIXES):
                yield Path(member.name).name, start + member.offset_data, member.size


class Tar(Photographs):
    """The images of a tar file, which is opened for each: threads and processes share no position in it."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        index = read_index(path)
        self.path, self.index = path, index
        super().__init__(spec, index.classes, index.labels, image_size)

    def name_of(self, index: int) -> str:
        return self.index.names[index]

    def open(self, index: int) -> Image.Image:
        offset, size = int(self.index.offsets[index]), int(self.index.sizes[index])
        with self.path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        require(len(content) == size, f"{len(content)} bytes could be read; expected {size}")
        return decode_image(content)


def _index_path(path: Path) -> Path:
    """The path of a tar's index."""
    beside = path.with_name(path.name + SUFFIX)
    if beside.is_file() or os.access(path.parent, os.W_OK):
        return beside
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spherear"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / (key + SUFFIX)


def locked(place: Path) -> FileLock:
    """A lock on `place` for one process at a time; it ends with the process."""
    return FileLock(place.with_name(place.name + ".lock"))


def _text(lines: list[str]) -> Tensor:
    return torch.from_numpy(np.frombuffer("\n".join(lines).encode(), dtype=np.uint8).copy())


def _lines(text: Tensor) -> list[str]:
    return text.numpy().tobytes().decode().split("\n") if len(text) else []


def _packed(index: Index) -> dict[str, Tensor]:
    numbers = {"offsets": index.offsets, "sizes": index.sizes, "labels": index.labels}
    return numbers | {"names": _text(index.names), "classes": _text(index.classes)}


def _unpacked(tensors: dict[str, Tensor]) -> Index:
    names, classes = _lines(tensors["names"]), _lines(tensors["classes"])
    return Index(tensors["offsets"], tensors["sizes"], tensors["labels"], names, classes)
