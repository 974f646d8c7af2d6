"""Checkpoints on disk, written atomically; the previous one is kept.

    state.safetensors, state.previous.safetensors    a run whose processes each hold all weights
    shards.json, shards.previous.json, shards/STEP/  a run with sharded weights: one file per process

A reader takes the newest readable checkpoint, and warns if a newer one is unreadable.
"""

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spherear.models.files import read_json, write_json
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.training.world import World

STATE_FILE = "state.safetensors"
PREVIOUS_FILE = "state.previous.safetensors"
SHARDS_FILE = "shards.json"
PREVIOUS_SHARDS = "shards.previous.json"
SHARDS = "shards"


def write_state(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `state.safetensors` atomically; its previous content becomes `state.previous.safetensors`."""
    _copy_to_previous(folder / STATE_FILE, folder / PREVIOUS_FILE)
    write_tensors(folder / STATE_FILE, tensors, metadata)


def write_shard(folder: Path, step: int, world: World, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write this process's shard; after all are written, the first process marks them as newest. All must call it."""
    write_tensors(_shard(folder, step, world.rank, world.size), tensors, metadata)
    world.wait()
    if world.first:
        _copy_to_previous(folder / SHARDS_FILE, folder / PREVIOUS_SHARDS)
        write_json(folder / SHARDS_FILE, {"step": step, "processes": world.size})
        steps = {
            str(read_json(folder / name)["step"]) for name in (SHARDS_FILE, PREVIOUS_SHARDS) if _exists(folder, name)
        }
        for path in (folder / SHARDS).iterdir():
            if path.name not in steps:
                shutil.rmtree(path)
    world.wait()


class State:
    """A checkpoint opened for reading: `metadata`, tensor names, and one tensor at a time."""

    def __init__(self, files: list[Path], device: torch.device | str = "cpu") -> None:
        self.source = str(files[0])
        self._files = files
        if len(files) == 1:
            self._tensors, self.metadata = read_tensors(files[0], device)
            return
        self._tensors = {}
        for path in files:
            self.metadata = _metadata(path)

    def names(self) -> list[str]:
        """Names of all tensors."""
        if self._tensors:
            return list(self._tensors)
        with safe_open(self._files[0], framework="pt") as file:
            return list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """A full tensor; shards are concatenated along the first dimension."""
        if self._tensors:
            return self._tensors[name]
        shards = []
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                shards.append(file.get_tensor(name))
        return shards[0] if shards[0].ndim == 0 or _replicated(name, self.metadata) else torch.cat(shards)

    @property
    def step(self) -> int:
        """The step at which it was written."""
        return int(self.metadata["step"])


def read_state(folder: Path, device: torch.device | str = "cpu") -> State | None:
    """The newest readable checkpoint; None if there is none; ValueError if there are some but none is readable.

    Falling back to an older one gives a warning that names the bad file.
    """
    states, first_error = [], None
    for files in _candidates(folder):
        try:
            states.append(State(files, device))
        except ValueError as error:
            first_error = first_error or error
    if first_error is not None and not states:
        raise first_error
    if first_error is not None:
        warnings.warn(f"{first_error}; going on from {states[0].source}", stacklevel=2)
    return max(states, key=lambda state: state.step, default=None)


def remove_partial_files(folder: Path) -> None:
    """Remove temporary files left by interrupted writes."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _candidates(folder: Path) -> Iterator[list[Path]]:
    """The newest checkpoint of either kind, and the previous one if the newest is unreadable."""
    for newest, previous in ((STATE_FILE, PREVIOUS_FILE), (SHARDS_FILE, PREVIOUS_SHARDS)):
        if not _exists(folder, newest):
            continue
        files = list(_files(folder, newest))
        yield files
        if _exists(folder, previous) and not all(map(_readable, files)):
            yield list(_files(folder, previous))


def _files(folder: Path, name: str) -> Iterable[Path]:
    if name.endswith(".json"):
        record = read_json(folder / name)
        step, processes = int(record["step"]), int(record["processes"])
        return [_shard(folder, step, rank, processes) for rank in range(processes)]
    return [folder / name]


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _shard(folder: Path, step: int, rank: int, size: int) -> Path:
    return folder / SHARDS / str(step) / f"{rank}-of-{size}.safetensors"


def _replicated(name: str, metadata: Mapping[str, str]) -> bool:
    return name in metadata["replicated"].split()


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error


def _readable(path: Path) -> bool:
    try:
        _metadata(path)
    except ValueError:
        return False
    return True


def _copy_to_previous(newest: Path, previous: Path) -> None:
    """Atomically replace `previous` by a copy of `newest`, which stays in place."""
    if not newest.exists():
        return
    temporary = previous.with_name(f"{previous.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(newest, temporary)
    except OSError:  # a file system without hard links
        shutil.copy2(newest, temporary)
    temporary.replace(previous)
