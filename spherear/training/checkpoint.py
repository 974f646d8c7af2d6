"""Checkpoints on disk: one folder per step, never overwritten, read back before an older one is removed.

    checkpoints/0000500/state.safetensors, state.json                  written by one process
    checkpoints/0000500/state-0-of-8.safetensors, state-0-of-8.json    ... by eight, each its share of the tensors

A `.json` holds the checksums of its `.safetensors` and comes last: a checkpoint is complete once every process has
written one, so processes need not wait for each other. A reader takes the newest checkpoint that is complete and agrees
with its checksums, and warns if a newer one is damaged. No pickle is read, unlike in `torch.distributed.checkpoint`.
"""

import json
import shutil
import threading
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spherear.models.files import read_json, write_json
from spherear.models.tensor_files import write_tensors
from spherear.world import World, is_split, local

CHECKPOINTS = "checkpoints"
NEWEST = 2  # newest checkpoints that stay


class Checkpoints:
    """Writes the checkpoints of a run. All processes must call `write` at the same steps.

    every: checkpoints at multiples of this many steps are not removed; 0: only the newest two stay.
    background: write from a copy in memory, in a thread, while training goes on.
    good: the step of the checkpoint that the run resumed from, which stays until two newer ones are complete.
    """

    def __init__(
        self, folder: Path, world: World, every: int = 0, background: bool = False, good: int | None = None
    ) -> None:
        self.folder, self.world, self.every, self.background = folder, world, every, background
        self._steps = [] if good is None else [good]
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def write(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write this process's share of a checkpoint. OSError if this one, or the one before it, cannot be written."""
        self.wait()
        share = _share(tensors, self.world)
        cut = " ".join(name for name, tensor in tensors.items() if is_split(tensor))
        details = {**metadata, "step": str(step), "cut": cut}
        if not self.background:
            self._write(step, share, details)
            return
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in share.items()}
        self._thread = threading.Thread(target=self._try_to_write, args=(step, copies, details))
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. OSError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def rotate(self) -> None:
        """Remove all complete checkpoints but the newest two that read back, and those of `every`."""
        if not self.world.first:
            return
        written = [step for step in self._steps if _complete(_directory(self.folder, step))]
        if not written:
            return
        stay = set(written[-NEWEST:])
        for directory in _directories(self.folder):
            step = int(directory.name)
            if step not in stay and step <= max(stay) and not (self.every and step % self.every == 0):
                shutil.rmtree(directory)

    def _try_to_write(self, step: int, share: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            self._write(step, share, metadata)
        except Exception as error:  # raised in the training thread, by `wait`
            self._error = error

    def _write(self, step: int, share: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        directory, size = _directory(self.folder, step), self.world.size
        path = directory / f"state{f'-{self.world.rank}-of-{size}' if size > 1 else ''}.safetensors"
        path.with_suffix(".json").unlink(missing_ok=True)
        write_tensors(path, share, metadata)
        checksums = {name: _checksum(tensor) for name, tensor in share.items()}
        _check(path, checksums)
        write_json(path.with_suffix(".json"), {"processes": size, "step": step, "checksums": checksums})
        self._steps = [*(earlier for earlier in self._steps if earlier != step), step]
        self.rotate()


class State:
    """A complete checkpoint opened for reading: its `step`, `metadata`, tensor names, and one tensor at a time.

    Damaged: ValueError that names the file and the tensor.
    """

    def __init__(self, files: list[Path], device: torch.device | str = "cpu") -> None:
        self.source, self.device = str(files[0]), str(device)
        self._places: dict[str, list[Path]] = {}
        self.digest = 0
        for path in files:
            checksums = read_json(path.with_suffix(".json"))["checksums"]
            self.metadata = _check(path, checksums)
            self.digest = zlib.crc32(json.dumps(checksums).encode(), self.digest)
            for name in checksums:
                self._places.setdefault(name, []).append(path)

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._places)

    def __getitem__(self, name: str) -> Tensor:
        """A full tensor; the shards of a sharded run are concatenated along the first dimension."""
        shards = []
        for path in self._places[name]:
            with safe_open(path, framework="pt", device=self.device) as file:
                shards.append(file.get_tensor(name))
        return torch.cat(shards) if name in self.metadata["cut"].split() and shards[0].ndim else shards[0]

    @property
    def step(self) -> int:
        """The step at which it was written."""
        return int(self.metadata["step"])


def read_state(folder: Path, device: torch.device | str = "cpu", step: int | None = None) -> State | None:
    """The newest readable checkpoint of a run; None if none is complete; ValueError if all of these are damaged.

    Falling back to an older one gives a warning that names the damaged file. step: read that of this step only.
    """
    first_error: ValueError | None = None
    for directory in reversed(_directories(folder)):
        files = _complete(directory) if step in (None, int(directory.name)) else []
        try:
            state = State(files, device) if files else None
        except ValueError as error:
            first_error = first_error or error
            continue
        if state is not None:
            if first_error is not None:
                warnings.warn(f"{first_error}; going on from {state.source}", stacklevel=2)
            return state
    if first_error is not None:
        raise first_error
    return None


def steps_of(folder: Path) -> list[int]:
    """The steps of a run's complete checkpoints, in order."""
    return [int(directory.name) for directory in _directories(folder) if _complete(directory)]


def remove_partial_files(folder: Path) -> None:
    """Remove what interrupted writes left: temporary files, and checkpoints that are not complete."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
    for directory in _directories(folder):
        if not _complete(directory):
            shutil.rmtree(directory)
        for path in directory.glob("*.tmp"):
            path.unlink(missing_ok=True)


def _directory(folder: Path, step: int) -> Path:
    return folder / CHECKPOINTS / f"{step:07}"


def _directories(folder: Path) -> list[Path]:
    """The folders of a run's checkpoints, in the order of their steps."""
    found = (folder / CHECKPOINTS).glob("*") if (folder / CHECKPOINTS).is_dir() else ()
    return sorted((path for path in found if path.is_dir() and path.name.isdecimal()), key=lambda path: int(path.name))


def _complete(directory: Path) -> list[Path]:
    """The files of a checkpoint, one per process, if all processes have finished theirs; else none."""
    names: dict[int, list[str]] = {}
    for path in directory.glob("state*.json"):
        _, _, processes = path.stem.partition("-of-")
        names.setdefault(int(processes or 1), []).append(path.stem)
    for size, found in names.items():
        if len(found) == size:
            return [directory / f"{name}.safetensors" for name in sorted(found, key=_rank)]
    return []


def _rank(stem: str) -> int:
    """state-3-of-8 -> 3"""
    return int(stem.split("-")[1]) if "-" in stem else 0


def _share(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this process writes: its shard of every sharded tensor, and some of the others, about equal in bytes."""
    whole = [(name, tensor) for name, tensor in tensors.items() if not is_split(tensor)]
    share = {name: local(tensor).detach() for name, tensor in tensors.items() if is_split(tensor)}
    total, before = sum(tensor.nbytes for _, tensor in whole), 0
    for name, tensor in whole:
        if min(world.size - 1, before * world.size // max(1, total)) == world.rank:
            share[name] = tensor.detach()
        before += tensor.nbytes
    return share


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _check(path: Path, checksums: Mapping[str, int]) -> dict[str, str]:
    """The metadata of a file; ValueError unless it holds tensors with these checksums."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            bad = [name for name, value in checksums.items() if name not in names or _differs(file, name, value)]
            metadata = file.metadata() or {}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
    if bad:
        raise ValueError(f"{path} is damaged: {len(bad)} tensors differ from their checksums, {', '.join(bad[:4])}")
    return metadata


def _differs(file: safe_open, name: str, checksum: int) -> bool:
    return _checksum(file.get_tensor(name)) != checksum
