"""Images in a tar file, or in tar files inside it (like ILSVRC), read in place through an index.

The first process builds the index, once, while others wait. It is a safetensors file beside the tar, or in the
cache folder if the tar's folder is not writable.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
        if index_path.is_file():
            tensors, metadata = read_tensors(index_path)
            if metadata.get("of") == identity:
                return _unpacked(tensors)
        index = build_index(path)
        write_tensors(index_path, _packed(index), {"of": identity})
    return index


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
    """The images of a tar file; every process opens its own file descriptor."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        index = read_index(path)
        self.path, self.index = path, index
        self._handle: tuple[int, int] | None = None  # process id, file descriptor
        super().__init__(spec, index.classes, index.labels, image_size)

    def name_of(self, index: int) -> str:
        return self.index.names[index]

    def open(self, index: int) -> Image.Image:
        offset, size = int(self.index.offsets[index]), int(self.index.sizes[index])
        content = os.pread(self._file(), size, offset)
        require(len(content) == size, f"{len(content)} bytes could be read; expected {size}")
        return decode_image(content)

    def _file(self) -> int:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = os.getpid(), os.open(self.path, os.O_RDONLY)
        return self._handle[1]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handle": None}

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None and handle[0] == os.getpid():
            os.close(handle[1])


def _index_path(path: Path) -> Path:
    """The path of a tar's index."""
    beside = path.with_name(path.name + SUFFIX)
    if beside.is_file() or os.access(path.parent, os.W_OK):
        return beside
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spherear"
    cache.mkdir(parents=True, exist_ok=True)
    return cache / (key + SUFFIX)


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Lock the file `place` for one process at a time; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows; each process then builds the index itself, and writes are atomic
        yield
        return
    with place.with_name(place.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
