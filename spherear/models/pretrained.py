"""Saving a model and finding it again: a folder of `config.json` and `model.safetensors`, here or on the hub.

Knows: folders, hub repositories, and how weights are matched with the config beside them.
Does not know: any particular model, or the published files of the paper (see `checkpoints`).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn

from spherear.models.config import Config
from spherear.models.files import read_json, write_json
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.sphere.families import FAMILIES

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHIPPED = Path(__file__).parent / "shipped"

ConfigT = TypeVar("ConfigT", bound=Config)
ModelT = TypeVar("ModelT", bound="Pretrained[Any]")


def shipped() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.is_dir() else []


def shipped_families(preset: str) -> list[str]:
    """The families of a preset whose models ship, in the order of the table of families."""
    names = shipped()
    return [family for family in FAMILIES if f"{preset}-{family}" in names]


def shipped_name(family: str, preset: str) -> str:
    """The shipped model of a family; any other name is returned as it is: a folder, or a repository of the hub."""
    return f"{preset}-{family}" if family in shipped_families(preset) else family


def find_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """A folder on this machine: the path itself, weights that ship, or a snapshot of a hub repository `owner/name`.

    revision: branch, tag or commit to pin, for the hub alone. Nothing there: FileNotFoundError.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name in shipped():
        return SHIPPED / name
    expected = f"expected a folder that exists, a hub repository 'owner/name', or one of {', '.join(shipped())}"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name!r} is not a folder here; {expected}")
    try:
        patterns = ["*.json", "*.safetensors", "**/*.json", "**/*.safetensors"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"{name!r} (revision {revision}) was not found; {expected}: {error}") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """`model.load_state_dict`, but every misfit is one ValueError that names the keys and the shapes."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    shared = expected.keys() & found.keys()
    faults += [f"{k} is {found[k]}, expected {expected[k]}" for k in shared if found[k] != expected[k]]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        listed = "; ".join(sorted(faults)[:4])
        raise ValueError(f"{source} does not fit {type(model).__name__} as configured: {listed}{more}")
    model.load_state_dict(weights)


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Pretrained(Generic[ConfigT]):
    """Mixin of models built from one config: `save_pretrained`, `from_pretrained`."""

    config: ConfigT
    config_class: ClassVar[type[Any]]

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config and weights (in `dtype`, or their own) to the folder `path`; each file whole or as it was."""
        assert isinstance(self, nn.Module)
        folder = Path(path)
        config = {"model": type(self).__name__, **self.config.to_dict()}
        weights = {name: tensor.to("cpu", dtype) for name, tensor in self.state_dict().items()}
        write_tensors(folder / WEIGHTS_FILE, weights, {"config": json.dumps(config)})
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name_or_path: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> ModelT:
        """Read what `save_pretrained` wrote, from a folder or a hub repository; in eval mode.

        Errors: FileNotFoundError where there is nothing, ValueError where it is another model's,
        truncated, or its weights do not fit its config.
        """
        folder = find_folder(name_or_path, revision) / subfolder
        config = read_json(folder / CONFIG_FILE)
        kind = config.pop("model", None)
        if kind != cls.__name__:
            raise ValueError(f"{folder / CONFIG_FILE} is of model {kind!r}; expected {cls.__name__!r}")
        weights, _ = read_tensors(folder / WEIGHTS_FILE)
        return cls.from_weights(cls.config_class.from_dict(config), weights, str(folder / WEIGHTS_FILE), device)

    @classmethod
    def from_weights(
        cls: type[ModelT],
        config: Config,
        weights: Mapping[str, Tensor],
        source: str = "the state dict",
        device: torch.device | str = "cpu",
    ) -> ModelT:
        """A model of this config with these weights, in eval mode, without drawing any first."""
        with torch.device("meta"):
            model = cls(config)  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        model.to_empty(device=device)
        load_weights(model, weights, source)
        return model.eval()
