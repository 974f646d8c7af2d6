"""Atomic writes of safetensors files, and reads with clear error messages."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spherear.models.files import atomic_path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic_path(path) as part:
        part.touch()
        mode = part.stat().st_mode  # from the user's umask; safetensors makes files that only the owner can read
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata)
        part.chmod(mode)


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file -> (tensors, metadata). FileNotFoundError; ValueError if truncated or another format."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a safetensors file there")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
