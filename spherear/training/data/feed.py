"""Data loading: the batches of a run, read ahead of the step that needs them."""

import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spherear import signals
from spherear.training.augment import Augmentation
from spherear.training.data.catalog import batches
from spherear.training.data.dataset import ImageData, as_float
from spherear.training.recipes import Recipe
from spherear.world import World

Key = tuple[Augmentation, list[tuple[int, Tensor]]]  # an epoch's augmentation, and micro-batches: (number, indices)
Read = tuple[list[tuple[int, Tensor, Tensor]], dict[str, str]]  # (number, images, labels) of each; broken images


class Stopped(Exception):
    """A stop signal reached one of the processes; all leave the loop before the same step."""


@dataclass(frozen=True)
class MicroBatch:
    """A share of a batch. number: among those of all processes.  inputs, labels: on the device."""

    number: int
    inputs: Tensor
    labels: Tensor


class Feed:
    """Iterates over the batches of a run's remaining steps, each as the list of this process's micro-batches.

    The micro-batches of a batch are dealt to the processes in order. The images and random numbers of one do not depend
    on the number of processes.

    workers: data loader processes; 0: read in this process.  log: a file that lists broken images.
    waited: seconds spent waiting for data.  broken: name -> reason, of the broken images found by any process.
    Errors: ValueError if the processes cannot have equal shares of a batch. Before every step all processes agree:
    if one was asked to stop, all raise `Stopped`; if one cannot read its data, all raise an error.
    """

    def __init__(
        self, data: ImageData, recipe: Recipe, steps: range, world: World, device: torch.device | str, workers: int = 0
    ) -> None:
        self.data, self.recipe, self.steps, self.world = data, recipe, steps, world
        self.count = recipe.micro_batches_on(world.size)
        self.device, self.workers = torch.device(device), workers
        self.waited = 0.0
        self.log: Path | None = None
        self.broken: dict[str, str] = {}

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        reads = read_ahead(self.data, _Keys(self), self.workers, self.device)
        try:
            for _ in self.steps:
                start = time.perf_counter()
                found, broken = self._next(reads)
                if broken:
                    self.data.broken.update(broken)  # which workers found
                batch = [
                    MicroBatch(number, as_float(self._to_device(inputs)), self._to_device(labels))
                    for number, inputs, labels in found
                ]
                self._note(broken)
                self.waited += time.perf_counter() - start
                yield batch
        finally:
            reads.close()

    def _next(self, reads: Iterator[Read]) -> Read:
        """The next batch, once all processes have theirs."""
        failure: Exception | None = None
        try:
            read = next(reads)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a worker died
            failure = error
        stop, failed = self.world.total([float(signals.stop_requested()), float(failure is not None)])
        if stop:
            raise Stopped
        if failure is not None:
            raise failure
        if failed:
            raise ValueError("another process could not read its data; its own message says why")
        return read

    def _note(self, broken: Mapping[str, str]) -> None:
        """Log newly found broken images, and share them. Too many on all processes together: ValueError."""
        new = {name: reason for name, reason in broken.items() if name not in self.broken}
        if new and self.log is not None:
            with self.log.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps({"image": name, "reason": reason}) + "\n" for name, reason in new.items())
        if self.world.total([float(len(new))])[0]:
            for found in self.world.gather(new):
                self.broken |= found
            check_broken(self.data, self.recipe.max_broken, self.broken)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _keys(self) -> Iterator[Key]:
        recipe, world = self.recipe, self.world
        size, share = recipe.batch_size // self.count, self.count // world.size
        order = batches(self.data, recipe.batch_size, recipe.seed, self.steps)
        for step, indices in zip(self.steps, order, strict=True):
            epoch = step // (len(self.data) // recipe.batch_size)
            numbers = range(world.rank * share, (world.rank + 1) * share)
            yield (
                recipe.augmentation_at(epoch),
                [(number, indices[number * size : (number + 1) * size]) for number in numbers],
            )


class _Keys:
    """The keys of a feed, as the sampler of a data loader."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __iter__(self) -> Iterator[Key]:
        return self.feed._keys()

    def __len__(self) -> int:
        return len(self.feed.steps)


def read_ahead(data: ImageData, keys: Iterable[Key], workers: int, device: torch.device | str = "cpu") -> Any:
    """A generator of what `keys` ask for, read for `device` by worker processes, or for 0 workers by this one.

    Workers end with the generator, and not by a stop signal: they are the children of this process alone (`spawn`).
    """
    cuda = torch.device(device).type == "cuda"
    if workers == 0:
        reader = _Reader(data.on(device) if cuda else data)
        yield from (reader.read(key) for key in keys)
        return
    loader = DataLoader(
        _Reader(data), sampler=keys, batch_size=None, num_workers=workers, multiprocessing_context="spawn",
        pin_memory=cuda, prefetch_factor=2, worker_init_fn=signals.ignore,
    )  # fmt: skip
    before = set(multiprocessing.active_children())
    with signals.blocked():
        reads = iter(loader)
    children = set(multiprocessing.active_children()) - before
    try:
        for read in reads:
            if isinstance(read, Exception):
                raise read
            found, broken = read  # in which the loader has made lists of tuples
            yield [tuple(one) for one in found], broken
    finally:
        del reads
        for child in children:
            child.kill()


class _Reader(Dataset[Read | Exception]):
    """Reads the micro-batches of a key; returns them and the broken images found so far, or the error."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, key: Key) -> Read | Exception:
        try:
            return self.read(key)
        except OSError as error:
            return OSError(str(error))
        except ValueError as error:
            return ValueError(str(error))

    def read(self, key: Key) -> Read:
        """The same, but an error is raised."""
        augmentation, micro_batches = key
        return [(number, *self.data.raw(indices, augmentation)) for number, indices in micro_batches], dict(
            self.data.broken
        )


def check_broken(data: ImageData, share: float, broken: Mapping[str, str] | None = None) -> None:
    """ValueError with a list if broken images exceed a share of the data set. broken: `data.broken` by default."""
    broken = data.broken if broken is None else broken
    if broken and len(broken) > share * len(data):
        listed = "; ".join(f"{name}: {reason}" for name, reason in sorted(broken.items())[:20])
        raise ValueError(
            f"{len(broken)} of {len(data)} images are broken, more than max_broken, {share:g}, allows: {listed}"
        )
