"""Cached posteriors: a data set encoded once, from which tokens are sampled afresh at every step.

The cache holds a VAE's features, the direction and concentration (or mean and deviation) of every token, from
which any family of latents samples. With the same generator the tokens equal those of encoding at every step.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.config import require
from spherear.models.files import atomic_path, read_json, write_json
from spherear.models.vae import VAE
from spherear.training.augment import PLAIN_VIEW, Augmentation
from spherear.training.data.dataset import ImageData, as_float
from spherear.training.data.feed import Key, read_ahead
from spherear.training.data.tar import locked
from spherear.training.run_file import differences
from spherear.world import World

CHUNK = 128  # images encoded at a time
FILES = ("features.bin", "labels.bin")


class Posteriors(ImageData):
    """A data set whose `batch` returns features, (n, tokens, channels), in place of images.

    It holds `copies` epochs as unlimited data: image i of epoch e has index e * len + i and reads copy e modulo
    `copies`. features: (copies * len, tokens, channels).  labels: one per row.
    """

    unlimited = True

    def __init__(self, source: ImageData, features: Tensor, labels: Int[Tensor, " n"]) -> None:
        require(
            len(features) == len(labels) and len(labels) % len(source) == 0,
            f"there are {len(features)} posteriors and {len(labels)} labels; expected a multiple of {len(source)}",
        )
        self.spec, self.classes, self.image_size = source.spec, source.classes, source.image_size
        self.length, self.broken = len(source), source.broken
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return self.length

    def batch(
        self, indices: Int[Tensor, " n"], augmentation: Augmentation = PLAIN_VIEW
    ) -> tuple[Float[Tensor, "n tokens channels"], Int[Tensor, " n"]]:
        """Features and labels; indices wrap around after the last copy."""
        return self.raw(indices, augmentation)

    def raw(self, indices: Int[Tensor, " n"], augmentation: Augmentation = PLAIN_VIEW) -> tuple[Tensor, Tensor]:
        """The same."""
        rows = indices % len(self.labels)
        return self.features[rows], self.labels[rows]


@dataclass(frozen=True)
class Encoding:
    """How a data set is encoded: with which VAE, on which device, and by how many workers and processes.

    augmentation_at: epoch -> its augmentation; copy c is encoded with that of epoch c.
    progress: called with the number of images encoded on all processes together, each time about as many on each.
    """

    vae: VAE
    data: ImageData
    copies: int = 1
    device: torch.device | str = "cpu"
    precision: str = "float32"
    augmentation_at: Callable[[int], Augmentation] = lambda epoch: PLAIN_VIEW
    workers: int = 0
    world: World = field(default_factory=World)
    progress: Callable[[int], object] = int

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored features."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the stored features: (copies * images, tokens, channels)."""
        return self.copies * len(self.data), self.vae.config.tokens, self.vae.bottleneck.channels

    def keys(self) -> list[tuple[int, Key]]:
        """The chunks: index of the first row, and what to read for it."""
        count, found = len(self.data), []
        for copy in range(self.copies):
            for indices in torch.arange(count).split(CHUNK):
                offset = copy * count if self.data.unlimited else 0
                row = copy * count + int(indices[0])
                found.append((row, (self.augmentation_at(copy), [(row, indices + offset)])))
        return found

    def owner(self, chunk: int, chunks: int) -> int:
        """The process that encodes a chunk."""
        return chunk * self.world.size // chunks

    def share(self) -> Iterator[tuple[int, Tensor, Int[Tensor, " n"]]]:
        """This process's chunks: index of the first row, features, labels. It takes 1 / `world.size` of them."""
        keys, kind = self.keys(), torch.device(self.device).type
        own = [key for number, (_, key) in enumerate(keys) if self.owner(number, len(keys)) == self.world.rank]
        for ((row, images, labels),), broken in read_ahead(self.data, own, self.workers, self.device):
            if broken:
                self.data.broken.update(broken)  # which workers found
            with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                features = self.vae.features(as_float(images.to(self.device))).to("cpu", self.dtype)
            yield row, features, labels
            self.progress(len(labels) * self.world.size)


def encode_all(
    vae: VAE,
    data: ImageData,
    copies: int = 1,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Posteriors:
    """Encode `copies` epochs of a data set, once -> `Posteriors`, in the precision of the encoder.

    folder: where to store them, memory-mapped; None: in memory. A folder with the same `facts` is reused, one
    with other facts is a ValueError. A disk without room for them: OSError, before anything is encoded.
    options: of `Encoding`; all processes of its world must call this, and share the work.
    """
    require(copies >= 1, f"copies is {copies}; expected at least 1")
    encoding = Encoding(vae, data, copies, device, precision, **options)
    if folder is None:
        return Posteriors(data, *_in_memory(encoding))
    facts = {**(facts or {}), "shape": list(encoding.shape), "dtype": str(encoding.dtype), "data": data.facts()}
    with ExitStack() as stack:
        if encoding.world.first:  # other runs wait
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        if not encoding.world.gather((folder / "posteriors.json").exists())[0]:
            _write(folder, facts, encoding)
    stored = read_json(folder / "posteriors.json")
    differ = differences(stored, facts)
    require(not differ, f"{folder} holds other posteriors ({differ}); expected the same, or an empty folder")
    features = _mapped(folder / "features.bin", encoding.shape, encoding.dtype)
    return Posteriors(data, features, _mapped(folder / "labels.bin", encoding.shape[:1], torch.int64))


def _in_memory(encoding: Encoding) -> tuple[Tensor, Int[Tensor, " n"]]:
    """Features and labels, of which each process encodes its share and receives the rest."""
    features = torch.empty(encoding.shape, dtype=encoding.dtype)
    labels = torch.empty(encoding.shape[0], dtype=torch.int64)
    for row, part, kinds in encoding.share():
        features[row : row + len(part)] = part
        labels[row : row + len(part)] = kinds
    keys = encoding.keys()
    for number, (row, (_, ((_, indices),))) in enumerate(keys):
        for rows in (features, labels):
            encoding.world.broadcast(rows[row : row + len(indices)], encoding.owner(number, len(keys)))
    return features, labels


def _write(folder: Path, facts: Mapping[str, Any], encoding: Encoding) -> None:
    """Write features and labels, each atomically; the file that describes them comes last."""
    rows, world = encoding.shape[0], encoding.world
    row_bytes = math.prod(encoding.shape[1:]) * encoding.dtype.itemsize
    with ExitStack() as stack:
        begun: list[Path] = []

        def begin() -> None:
            for name, size in zip(FILES, (row_bytes, 8), strict=True):
                begun.append(stack.enter_context(atomic_path(folder / name)))
                _reserve(begun[-1], rows * size)

        world.first_does(begin)
        files = [stack.enter_context(path.open("rb+")) for path in world.gather(begun)[0]]
        for row, features, labels in encoding.share():
            for file, part, size in zip(files, (features, labels), (row_bytes, 8), strict=True):
                file.seek(row * size)
                file.write(part.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for file in files:
            file.close()
        world.wait()
    world.first_does(lambda: write_json(folder / "posteriors.json", facts))


def _reserve(path: Path, count: int) -> None:
    """A file of so many bytes, for which the disk has room: OSError otherwise."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, count)
        file.truncate(count)


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A file as a memory-mapped tensor. A file of another size: ValueError."""
    count = math.prod(shape)
    nbytes = os.path.getsize(path)
    require(nbytes == count * dtype.itemsize, f"{path} has {nbytes} bytes; expected {count * dtype.itemsize}")
    return torch.from_file(str(path), shared=False, size=count, dtype=dtype).view(*shape)
