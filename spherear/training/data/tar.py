"""Images in a tar file, read in place through an index. There are three layouts:

- tars inside it, one per class (like ILSVRC);
- a file `x.cls` with the class beside every `x.jpg` (a WebDataset);
- a folder per class, as in a folder of images. A folder around all images does not count.

The first process builds the index, once, while others wait. It is a safetensors file beside the tar, or in the
cache folder if the tar's folder is not writable.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from spherear.models.config import require
from spherear.models.files import user_path
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.training.data.dataset import hashed
from spherear.training.data.images import Photographs, all_with_images
from spherear.training.data.pixels import is_hidden, is_picture

SUFFIX = ".index.safetensors"
FORMAT = "layouts, hashed"  # of an index; one of another format is built again
LABEL, LONGEST_LABEL = ".cls", 1000  # bytes
TEXTS = ("names", "classes", "others")


@dataclass(frozen=True)
class Index:
    """offsets, sizes (in bytes), labels, names: of every image.  classes: names of the labels.

    others: names of visible files that are no images, or belong to no class.
    """

    offsets: Tensor
    sizes: Tensor
    labels: Tensor
    names: list[str]
    classes: list[str]
    others: list[str]


def read_index(path: Path) -> Index:
    """The index of a tar file, built if there is none that is whole or if the tar has changed since.

    Not a tar, a truncated one, two layouts at once, or a class without an image: ValueError.
    """
    require(path.is_file(), f"{path} is not a file; expected a tar of images, or of tars of images")
    status = path.stat()
    identity = f"{FORMAT} {status.st_size} {status.st_mtime_ns}"
    for place in (_beside(path), _in_cache(path)):
        if place.is_file() and (index := _stored(place, identity)) is not None:
            return index  # without a lock: the folder may be read-only
    index_path = _index_path(path)
    with locked(index_path):
        index = _stored(index_path, identity)
        if index is None:
            index = build_index(path)
            packed = _packed(index)
            write_tensors(index_path, packed, _facts(identity, packed))
    return index


def _stored(path: Path, identity: str) -> Index | None:
    """The index in a file, if it is unchanged and that of this tar; copied, as Windows does not replace a mapped file.

    A file of another format: ValueError.
    """
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}; expected the index of a tar: without that file it is made again") from error
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return _unpacked(tensors) if metadata == _facts(identity, tensors) else None


def _facts(identity: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What an index says of itself: of which tar it is, and a hash of its tensors."""
    parts = (part for name in sorted(tensors) for part in (name, tensors[name].numpy().tobytes()))
    return {"of": identity, "content": hashed(parts)}


def build_index(path: Path) -> Index:
    """Scan a tar and the tars in it. Errors: ValueError, see `read_index`."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in _members(tar, 0, "", path) if not is_hidden(member.name)]
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a complete tar file ({error}); expected one that is not compressed") from error
    class_of = _by_label_file(path, members) or _by_tar(path, members) or _by_folder(members)
    rows = sorted((class_of[m.name], m.name, m.offset, m.size) for m in members if m.name in class_of)
    classes = sorted({*class_of.values(), *(m.tar for m in members if m.tar)} if class_of else ())
    labels = {name: label for label, name in enumerate(classes)}
    all_with_images(classes, [labels[kind] for kind, *_ in rows], str(path))
    others = sorted(m.name for m in members if m.name not in class_of and m.size and not m.label)
    return Index(
        torch.tensor([offset for *_, offset, _ in rows], dtype=torch.int64),
        torch.tensor([size for *_, size in rows], dtype=torch.int64),
        torch.tensor([labels[kind] for kind, *_ in rows], dtype=torch.int64),
        [name for _, name, *_ in rows],
        classes,
        others,
    )


@dataclass(frozen=True)
class _Member:
    """A file in a tar. name: with that of the inner tar before it.  offset: in the outer file.  tar: the inner tar.

    label: content of a `.cls` file.  size: 0 for the mark of an inner tar.
    """

    name: str
    offset: int
    size: int
    tar: str = ""
    label: str = ""


def _members(tar: tarfile.TarFile, start: int, outer: str, path: Path) -> Iterator[_Member]:
    """The files of a tar, and of the tars in it. A tar without the zeros that end it: ValueError."""
    for member in tar:
        name, content = member.name.removeprefix("./"), tar.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        if name.lower().endswith(".tar") and not outer:
            stem = Path(name).stem
            yield _Member(f"{stem}/", member.offset_data, 0, tar=stem)
            with tarfile.open(fileobj=content, mode="r:") as inner:
                yield from _members(inner, member.offset_data, stem, path)
            continue
        label = content.read(LONGEST_LABEL).decode(errors="replace").strip() if name.lower().endswith(LABEL) else ""
        full_name = f"{outer}/{name}" if outer else name
        yield _Member(full_name, start + member.offset_data, member.size, outer, label)
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)  # of the block that ended it
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    where = f"{path}, in {outer}.tar," if outer else str(path)
    require(
        len(end) == tarfile.BLOCKSIZE and not any(end),
        f"{where} ends without the zeros that end a tar; expected a complete one: this one was cut",
    )


def _by_label_file(path: Path, members: list[_Member]) -> dict[str, str]:
    """Picture -> class in its `.cls` file, as in a WebDataset; empty if there are no such files."""
    labels = {_key(member.name): member.label for member in members if member.label}
    if not labels:
        return {}
    pictures = [member.name for member in members if is_picture(member.name)]
    missing = [name for name in pictures if _key(name) not in labels]
    require(not missing, f"{path} has {LABEL} files, but none for {missing[:4]}; expected one for each picture")
    return {name: labels[_key(name)] for name in pictures}


def _key(name: str) -> str:
    """What the files of one sample of a WebDataset share: the name up to the first dot after its folders."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _by_tar(path: Path, members: list[_Member]) -> dict[str, str]:
    """Picture -> the inner tar it lies in; empty if there are no inner tars."""
    if not any(member.tar for member in members):
        return {}
    loose = [member.name for member in members if is_picture(member.name) and not member.tar]
    require(not loose, f"{path} holds tars, and pictures outside them: {loose[:4]}; expected a tar for each class")
    return {member.name: member.tar for member in members if is_picture(member.name)}


def _by_folder(members: list[_Member]) -> dict[str, str]:
    """Picture -> its first folder, below a folder around all of them if there is one; without those in no folder."""
    folders = {member.name: member.name.split("/")[:-1] for member in members if is_picture(member.name)}
    while len({tuple(parts[:1]) for parts in folders.values()}) == 1 and max(map(len, folders.values())) > 1:
        folders = {name: parts[1:] for name, parts in folders.items()}
    return {name: parts[0] for name, parts in folders.items() if parts}


class Tar(Photographs):
    """The images of a tar file, which is opened for each: threads and processes share no position in it."""

    def __init__(self, path: Path, spec: str, image_size: int) -> None:
        index = read_index(path)
        self.path, self.index = path, index
        super().__init__(spec, index.classes, index.labels, image_size, index.others)

    def name_of(self, index: int) -> str:
        return self.index.names[index]

    def size_of(self, index: int) -> int:
        return int(self.index.sizes[index])

    def content(self, index: int) -> bytes:
        offset, size = int(self.index.offsets[index]), int(self.index.sizes[index])
        with self.path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        require(len(content) == size, f"{len(content)} bytes could be read; expected {size}")
        return content


def _index_path(path: Path) -> Path:
    """Where a tar's index is written."""
    if os.access(path.parent, os.W_OK):
        return _beside(path)
    cache = _in_cache(path).parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"neither {path.parent} nor {cache} can be written ({error}); "
            "expected one of them for the tar's index: XDG_CACHE_HOME names another cache"
        ) from error
    return _in_cache(path)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _in_cache(path: Path) -> Path:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "spherear" / (key + SUFFIX)


def locked(place: Path) -> FileLock:
    """A lock on `place` for one process at a time; it ends with the process."""
    return FileLock(place.with_name(place.name + ".lock"))


def _text(lines: list[str]) -> Tensor:
    return torch.from_numpy(np.frombuffer("\n".join(lines).encode(), dtype=np.uint8).copy())


def _lines(text: Tensor) -> list[str]:
    return text.numpy().tobytes().decode().split("\n") if len(text) else []


def _packed(index: Index) -> dict[str, Tensor]:
    numbers = {"offsets": index.offsets, "sizes": index.sizes, "labels": index.labels}
    return numbers | {name: _text(getattr(index, name)) for name in TEXTS}


def _unpacked(tensors: dict[str, Tensor]) -> Index:
    return Index(tensors["offsets"], tensors["sizes"], tensors["labels"], *(_lines(tensors[name]) for name in TEXTS))
