"""Files that are whole or not there: atomic writes, and reads that say what is wrong.

Knows: safetensors and JSON on a disk that may be full or hold something else.
Does not know: models, runs, or what the tensors mean.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes it, synced to disk, when the block ends well.

    When it does not, the temporary file is removed and whatever `target` held before is untouched; an
    error of the disk comes out as an OSError that names the file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        _sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {target}: {error}; what it held before is unchanged") from error
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a rename is on disk only once its folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON, indented, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. A missing file is a FileNotFoundError, anything else amiss a ValueError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected a JSON file there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with atomic_path(path) as part:
        part.touch()
        mode = part.stat().st_mode  # what the user's umask asks for; safetensors writes files none else may read
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata)
        part.chmod(mode)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file -> (tensors, metadata). A truncated or foreign file is a ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a safetensors file there")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
