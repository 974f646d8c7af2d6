"""Data loading: the batches of a run, read ahead of the step that needs them."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spherear.models.config import require
from spherear.training.augment import Augmentation
from spherear.training.data.catalog import batches
from spherear.training.data.dataset import ImageData
from spherear.training.recipes import Recipe
from spherear.training.world import World

Key = tuple[Augmentation, list[tuple[int, Tensor]]]  # an epoch's augmentation, and the parts: (number, indices)
Read = tuple[list[tuple[int, Tensor, Tensor]], dict[str, str]]  # parts: (number, images, labels); broken images


@dataclass(frozen=True)
class Part:
    """A share of a batch. number: among the parts of all processes.  inputs, labels: on the device."""

    number: int
    inputs: Tensor
    labels: Tensor


class Feed:
    """Iterates over the batches of a run's remaining steps, each as the list of this process's parts.

    A batch is split into `recipe.parts` equal parts, dealt to the processes in order. The images and random
    numbers of a part do not depend on the number of processes.

    workers: data loader processes; 0: read in this process.  log: a file that lists broken images.
    waited: seconds spent waiting for data.
    Errors: ValueError if `recipe.parts` is not a multiple of the number of processes.
    """

    def __init__(
        self, data: ImageData, recipe: Recipe, steps: range, world: World, device: torch.device | str, workers: int = 0
    ) -> None:
        require(
            recipe.parts % world.size == 0,
            f"parts is {recipe.parts}; expected a multiple of the {world.size} processes",
        )
        self.data, self.recipe, self.steps, self.world = data, recipe, steps, world
        self.device, self.workers = torch.device(device), workers
        self.waited = 0.0
        self.log: Path | None = None
        self._logged: set[str] = set()

    def note(self) -> None:
        """Append newly found broken images to the log, one line of JSON each."""
        new = {name: reason for name, reason in self.data.broken.items() if name not in self._logged}
        self._logged |= new.keys()
        if new and self.log is not None:
            with self.log.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps({"image": name, "reason": reason}) + "\n" for name, reason in new.items())

    def __iter__(self) -> Iterator[list[Part]]:
        reads = self._read_ahead()
        while True:
            start = time.perf_counter()
            read = next(reads, None)
            if read is None:
                return
            parts = [
                Part(number, self._to_device(inputs), self._to_device(labels)) for number, inputs, labels in read[0]
            ]
            self.data.broken.update(read[1])
            self.note()
            check_broken(self.data, self.recipe.max_broken, self.world.size)
            self.waited += time.perf_counter() - start
            yield parts

    def _read_ahead(self) -> Iterator[Read]:
        reader = _Reader(self.data)
        if self.workers == 0:
            return (reader[key] for key in self._keys())
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        loader = DataLoader(
            reader, sampler=_Keys(self), batch_size=None, num_workers=self.workers, multiprocessing_context=method,
            pin_memory=self.device.type == "cuda", prefetch_factor=2,
        )  # fmt: skip
        return iter(loader)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _keys(self) -> Iterator[Key]:
        recipe, world = self.recipe, self.world
        part_size, per_process = recipe.batch_size // recipe.parts, recipe.parts // world.size
        order = batches(self.data, recipe.batch_size, recipe.seed, self.steps)
        for step, indices in zip(self.steps, order, strict=True):
            epoch = step // (len(self.data) // recipe.batch_size)
            numbers = range(world.rank * per_process, (world.rank + 1) * per_process)
            yield (
                recipe.augmentation_at(epoch),
                [(number, indices[number * part_size : (number + 1) * part_size]) for number in numbers],
            )


class _Keys:
    """The keys of a feed, as the sampler of a data loader."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Iterator[Key]:
        return self.feed._keys()

    def __len__(self) -> int:
        return len(self.feed.steps)


class _Reader(Dataset[Read]):
    """Reads the parts of a key; returns them and the broken images found so far."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, key: Key) -> Read:
        augmentation, parts = key
        return [(number, *self.data.batch(indices, augmentation)) for number, indices in parts], dict(self.data.broken)


def check_broken(data: ImageData, share: float, processes: int = 1) -> None:
    """ValueError with a list if broken images, times `processes`, exceed a share of the data set."""
    if data.broken and len(data.broken) * processes > share * len(data):
        listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(data.broken.items())[:20])
        raise ValueError(
            f"{len(data.broken)} of {len(data)} images are broken, more than max_broken, {share:g}, allows: {listed}"
        )
