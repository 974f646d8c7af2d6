"""All it takes to resume, on disk: whole or as it was, with the one before it kept.

Knows: files of tensors, one for a run or one for every process.  Does not know: what the tensors mean.

    state.safetensors, state.previous.safetensors    a run whose processes all hold everything
    shards.json, shards.previous.json, shards/STEP/  a run whose weights are split: a file a process

A reader takes the newest that can be read, and warns where that is not the newest there is.
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
from spherear.training.team import Team

STATE_FILE = "state.safetensors"
PREVIOUS_FILE = "state.previous.safetensors"
SHARDS_FILE = "shards.json"
PREVIOUS_SHARDS = "shards.previous.json"
SHARDS = "shards"


def write_state(folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `state.safetensors`, whole or not at all; what it held is kept as the previous one."""
    _keep(folder / STATE_FILE, folder / PREVIOUS_FILE)
    write_tensors(folder / STATE_FILE, tensors, metadata)


def write_shard(folder: Path, step: int, team: Team, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write this process's part; once all are written, the first names them the newest. Every process must ask."""
    write_tensors(_shard(folder, step, team.rank, team.size), tensors, metadata)
    team.wait()
    if team.first:
        _keep(folder / SHARDS_FILE, folder / PREVIOUS_SHARDS)
        write_json(folder / SHARDS_FILE, {"step": step, "processes": team.size})
        kept = {str(read_json(folder / name)["step"]) for name in (SHARDS_FILE, PREVIOUS_SHARDS) if _is(folder, name)}
        for old in (folder / SHARDS).iterdir():
            if old.name not in kept:
                shutil.rmtree(old)
    team.wait()


class State:
    """A checkpoint to be read: `metadata`, names, and one tensor at a time."""

    def __init__(self, files: list[Path], device: torch.device | str = "cpu") -> None:
        self.source = str(files[0])
        self._files = files
        if len(files) == 1:
            self._whole, self.metadata = read_tensors(files[0], device)
            return
        self._whole = {}
        for path in files:
            self.metadata = _metadata(path)

    def names(self) -> list[str]:
        """Of all tensors."""
        if self._whole:
            return list(self._whole)
        with safe_open(self._files[0], framework="pt") as file:
            return list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """All of a tensor: the processes' rows one after another."""
        if self._whole:
            return self._whole[name]
        parts = []
        for path in self._files:
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(name))
        return parts[0] if parts[0].ndim == 0 or _replicated(name, self.metadata) else torch.cat(parts)

    @property
    def step(self) -> int:
        """The step it was taken at."""
        return int(self.metadata["step"])


def read_state(folder: Path, device: torch.device | str = "cpu") -> State | None:
    """The newest checkpoint that can be read, or None where there is none; ValueError where there are none but bad.

    Falling back on an older one is a warning that names the bad file.
    """
    found, first_error = [], None
    for files in _candidates(folder):
        try:
            found.append(State(files, device))
        except ValueError as error:
            first_error = first_error or error
    if first_error is not None and not found:
        raise first_error
    if first_error is not None:
        warnings.warn(f"{first_error}; going on from {found[0].source}", stacklevel=2)
    return max(found, key=lambda state: state.step, default=None)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half written."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def _candidates(folder: Path) -> Iterator[list[Path]]:
    """The newest checkpoint of either kind; the ones before them only where the newest cannot be read."""
    for newest, previous in ((STATE_FILE, PREVIOUS_FILE), (SHARDS_FILE, PREVIOUS_SHARDS)):
        if not _is(folder, newest):
            continue
        files = list(_files(folder, newest))
        yield files
        if _is(folder, previous) and not all(map(_readable, files)):
            yield list(_files(folder, previous))


def _files(folder: Path, name: str) -> Iterable[Path]:
    if name.endswith(".json"):
        facts = read_json(folder / name)
        step, processes = int(facts["step"]), int(facts["processes"])
        return [_shard(folder, step, rank, processes) for rank in range(processes)]
    return [folder / name]


def _is(folder: Path, name: str) -> bool:
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


def _keep(newest: Path, previous: Path) -> None:
    """Let `previous` be what `newest` is, without a moment at which either is missing."""
    if not newest.exists():
        return
    part = previous.with_name(f"{previous.name}.{os.getpid()}.tmp")
    part.unlink(missing_ok=True)
    try:
        os.link(newest, part)
    except OSError:  # a file system without hard links
        shutil.copy2(newest, part)
    part.replace(previous)
