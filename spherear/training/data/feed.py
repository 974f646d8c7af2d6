"""Batches on their way to the device, read ahead of the step that needs them.

Knows: which part of which batch a process takes, and who reads it.  Does not know: what images show.
"""

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
from spherear.training.team import Team

Key = tuple[Augmentation, list[tuple[int, Tensor]]]  # an epoch's look, and the parts: (number, indices)
Read = tuple[list[tuple[int, Tensor, Tensor]], dict[str, str]]


@dataclass(frozen=True)
class Part:
    """A share of a batch. number: among all shares, of all processes.  inputs, labels: on the device."""

    number: int
    inputs: Tensor
    labels: Tensor


class Feed:
    """Iterates the batches of a run's remaining steps, each as the list of this process's parts.

    A batch is cut in `recipe.parts` equal parts, dealt to the processes in order: what is in a part, and
    which random numbers it takes, is the same however many processes there are.

    workers: processes that read; 0: the loop itself.  log: a file that broken images are named in.
    waited: seconds that the loop has waited for data.
    Errors: ValueError where parts and processes do not go into each other.
    """

    def __init__(
        self, data: ImageData, recipe: Recipe, steps: range, team: Team, device: torch.device | str, workers: int = 0
    ) -> None:
        require(
            recipe.parts % team.size == 0,
            f"parts is {recipe.parts}; expected a multiple of the {team.size} processes",
        )
        self.data, self.recipe, self.steps, self.team = data, recipe, steps, team
        self.device, self.workers = torch.device(device), workers
        self.waited = 0.0
        self.log: Path | None = None
        self._noted: set[str] = set()

    def note(self) -> None:
        """Write the names of images newly found broken to the log, one line of JSON each."""
        fresh = {name: why for name, why in self.data.broken.items() if name not in self._noted}
        self._noted |= fresh.keys()
        if fresh and self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"image": name, "reason": why}) + "\n" for name, why in fresh.items())

    def __iter__(self) -> Iterator[list[Part]]:
        reading = self._reading()
        while True:
            began = time.perf_counter()
            read = next(reading, None)
            if read is None:
                return
            parts = [Part(number, self._moved(inputs), self._moved(labels)) for number, inputs, labels in read[0]]
            self.data.broken.update(read[1])
            self.note()
            check_broken(self.data, self.recipe.max_broken, self.team.size)
            self.waited += time.perf_counter() - began
            yield parts

    def _reading(self) -> Iterator[Read]:
        reader = _Reader(self.data)
        if self.workers == 0:
            return (reader[key] for key in self._keys())
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        loader = DataLoader(
            reader, sampler=_Keys(self), batch_size=None, num_workers=self.workers, multiprocessing_context=method,
            pin_memory=self.device.type == "cuda", prefetch_factor=2,
        )  # fmt: skip
        return iter(loader)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _keys(self) -> Iterator[Key]:
        recipe, team = self.recipe, self.team
        size, mine = recipe.batch_size // recipe.parts, recipe.parts // team.size
        order = batches(self.data, recipe.batch_size, recipe.seed, self.steps)
        for step, indices in zip(self.steps, order, strict=True):
            epoch = step // (len(self.data) // recipe.batch_size)
            numbers = range(team.rank * mine, (team.rank + 1) * mine)
            yield recipe.look_at(epoch), [(number, indices[number * size : (number + 1) * size]) for number in numbers]


class _Keys:
    """A feed's keys, as often as a loader asks for them."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Iterator[Key]:
        return self.feed._keys()

    def __len__(self) -> int:
        return len(self.feed.steps)


class _Reader(Dataset[Read]):
    """Reads a key's parts, and says which images turned out broken."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, key: Key) -> Read:
        look, parts = key
        return [(number, *self.data.batch(indices, look)) for number, indices in parts], dict(self.data.broken)


def check_broken(data: ImageData, share: float, processes: int = 1) -> None:
    """Stop a run that meets more broken images than a share of the data set: ValueError with the list."""
    if data.broken and len(data.broken) * processes > share * len(data):
        listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(data.broken.items())[:20])
        raise ValueError(
            f"{len(data.broken)} of {len(data)} images are broken, more than max_broken, {share:g}, allows: {listed}"
        )
