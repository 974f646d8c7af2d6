"""Cached posteriors: a data set encoded once, from which tokens are sampled afresh at every step.

The cache holds a VAE's features, the direction and concentration (or mean and deviation) of every token, from
which any family of latents samples. With the same generator the tokens equal those of encoding at every step.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.config import require
from spherear.models.files import atomic_path, read_json, write_json
from spherear.models.vae import VAE
from spherear.training.augment import PLAIN_VIEW, Augmentation
from spherear.training.data.dataset import ImageData
from spherear.training.data.tar import locked
from spherear.training.run_file import differences

CHUNK = 128  # images encoded at a time
DTYPES = {"torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16}


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
        rows = indices % len(self.labels)
        return self.features[rows], self.labels[rows]


def encode_all(
    vae: VAE,
    data: ImageData,
    copies: int = 1,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    augmentation_at: Callable[[int], Augmentation] = lambda epoch: PLAIN_VIEW,
) -> Posteriors:
    """Encode `copies` epochs of a data set, once -> `Posteriors`, in the precision of the encoder.

    augmentation_at: epoch -> its augmentation; copy c is encoded with that of epoch c.

    folder: where to store them, memory-mapped; None: in memory. A folder with the same `facts` is reused, one
    with other facts is a ValueError.
    """
    require(copies >= 1, f"copies is {copies}; expected at least 1")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = (copies * len(data), vae.config.tokens, vae.bottleneck.channels)
    if folder is None:
        features = torch.empty(shape, dtype=dtype)
        return Posteriors(data, features, _fill(features, vae, data, copies, device, augmentation_at))
    facts = {**(facts or {}), "shape": list(shape), "dtype": str(dtype), "data": data.facts()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # one process encodes, others wait
        if not (folder / "posteriors.json").exists():
            _write(folder, facts, vae, data, copies, device, augmentation_at)
    stored = read_json(folder / "posteriors.json")
    differ = differences(stored, facts)
    require(not differ, f"{folder} holds other posteriors ({differ}); expected the same, or an empty folder")
    features = _mapped(folder / "features.bin", shape, dtype)
    return Posteriors(data, features, _mapped(folder / "labels.bin", shape[:1], torch.int64))


def _write(
    folder: Path,
    facts: Mapping[str, Any],
    vae: VAE,
    data: ImageData,
    copies: int,
    device: torch.device | str,
    augmentation_at: Callable[[int], Augmentation],
) -> None:
    """Write features and labels, each atomically; the file that describes them comes last.

    No name holds the mapped features: Windows does not rename a mapped file.
    """
    shape, dtype = facts["shape"], DTYPES[facts["dtype"]]
    with atomic_path(folder / "features.bin") as part:
        labels = _fill(_mapped(part, shape, dtype, create=True), vae, data, copies, device, augmentation_at)
    with atomic_path(folder / "labels.bin") as part:
        part.write_bytes(labels.numpy().tobytes())
    write_json(folder / "posteriors.json", facts)


def _mapped(path: Path, shape: tuple[int, ...] | list[int], dtype: torch.dtype, create: bool = False) -> Tensor:
    """A file as a memory-mapped tensor. A file of another size: ValueError."""
    count = math.prod(shape)
    if not create:
        nbytes = os.path.getsize(path)
        require(nbytes == count * dtype.itemsize, f"{path} has {nbytes} bytes; expected {count * dtype.itemsize}")
    return torch.from_file(str(path), shared=create, size=count, dtype=dtype).view(*shape)


@torch.no_grad()
def _fill(
    features: Tensor,
    vae: VAE,
    data: ImageData,
    copies: int,
    device: torch.device | str,
    augmentation_at: Callable[[int], Augmentation],
) -> Int[Tensor, " n"]:
    """Write the features of all images, copy by copy -> their labels."""
    labels = []
    kind = torch.device(device).type
    for copy in range(copies):
        for indices in torch.arange(len(data)).split(CHUNK):
            images, kinds = data.batch(indices + copy * len(data) if data.unlimited else indices, augmentation_at(copy))
            with torch.autocast(kind, torch.bfloat16, enabled=features.dtype == torch.bfloat16):
                features[copy * len(data) + indices] = vae.features(images.to(device)).to("cpu", features.dtype)
            labels.append(kinds)
    return torch.cat(labels)
