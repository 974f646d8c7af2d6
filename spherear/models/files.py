"""Atomic writes of text and JSON, and reads with clear error messages."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def user_path(text: str | Path) -> Path:
    """The path, with `~` and `~name` as home folders. A home that does not exist: ValueError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"path is {str(text)!r}; expected a home that exists (HOME): {error}") from error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`; when the block succeeds, it is synced to disk and renamed to `target`.

    On failure the temporary file is removed and `target` is unchanged; a write error is raised as an OSError
    that names the file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield part
        with part.open("rb+") as file:  # Windows syncs only files that are open for writing
            os.fsync(file.fileno())
        part.replace(target)
        _sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"could not write {target}: {error}; what it held before is unchanged") from error
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a rename reaches the disk only when its folder is synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: the same bytes on every system."""
    with atomic_path(path) as part:
        part.write_bytes(text.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. FileNotFoundError for a missing file, ValueError for other contents."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; expected a JSON file there") from None
    return parse_object(content, str(path))


def parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    """A JSON object, in UTF-8. Other contents: ValueError that begins with `name`."""
    try:
        values = json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number too long, or nested too deeply
        raise ValueError(f"{name} is not JSON ({error}); expected JSON, an object") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds a {type(values).__name__}; expected a JSON object")
    return values
