"""Saving and loading models: folders of `config.json` and `model.safetensors`, local, shipped or on the hub.

The paper's published files have another format; see `checkpoints`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn

from spherear.models.config import Config
from spherear.models.files import read_json, user_path, write_json
from spherear.models.tensor_files import read_tensors, write_tensors
from spherear.sphere.families import FAMILIES

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module)\.)+")
RUNS = "runs"  # where commands write by default; no owner on the hub
SHIPPED = Path(__file__).parent / "shipped"

ConfigT = TypeVar("ConfigT", bound=Config)
ModelT = TypeVar("ModelT", bound="Pretrained[Any]")


def shipped() -> list[str]:
    """Names of the models that ship with the library."""
    return sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.is_dir() else []


def shipped_families(preset: str) -> list[str]:
    """The families with a shipped model of this preset, in the order of `FAMILIES`."""
    names = shipped()
    return [family for family in FAMILIES if f"{preset}-{family}" in names]


def shipped_name(family: str, preset: str) -> str:
    """Name of the shipped model of a family; any other name (a folder, a hub repository) is returned unchanged."""
    return f"{preset}-{family}" if family in shipped_families(preset) else family


def find_folder(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The local folder of a model: the path itself, a shipped model, or a snapshot of a hub repository `owner/name`.

    revision: branch, tag or commit, for the hub only. FileNotFoundError if there is no such model.
    """
    folder = user_path(name_or_path)
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if name in shipped():
        return SHIPPED / name
    expected = f"expected a folder that exists, a hub repository 'owner/name', or one of {', '.join(shipped())}"
    if name.startswith(f"{RUNS}/"):
        raise FileNotFoundError(
            f"{name!r} is not here; `spherear demo` trains runs/demo in a few minutes, and these models ship: "
            f"{', '.join(shipped())}"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name!r} is not a folder here; {expected}")
    try:
        patterns = ["*.json", "*.safetensors", "**/*.json", "**/*.safetensors"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"{name!r} (revision {revision}) was not found; {expected}: {error}") from error


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have without `torch.compile` (`_orig_mod.`) and DDP (`module.`)."""
    return {WRAPPERS.sub(r"\1", name): tensor for name, tensor in weights.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """`model.load_state_dict`, but any mismatch is one ValueError that names the keys and the shapes.

    Prefixes of torch's wrappers in the names do not count.
    """
    weights = unwrapped(weights)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    faults = [f"{name} is missing" for name in expected.keys() - shapes.keys()]
    faults += [f"{name} is unknown" for name in shapes.keys() - expected.keys()]
    shared = expected.keys() & shapes.keys()
    faults += [f"{k} is {shapes[k]}, expected {expected[k]}" for k in shared if shapes[k] != expected[k]]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        listed = "; ".join(sorted(faults)[:4])
        raise ValueError(f"{source} does not fit {type(model).__name__} as configured: {listed}{more}")
    model.load_state_dict(weights)


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Pretrained(Generic[ConfigT]):
    """Mixin for models built from one config: `save_pretrained`, `from_pretrained`."""

    config: ConfigT
    config_class: ClassVar[type[Any]]

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config and weights (in `dtype`, or unchanged) to the folder `path`; each file is written atomically."""
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
        """Load a model that `save_pretrained` wrote, from a folder or a hub repository, in eval mode.

        FileNotFoundError if nothing is there; ValueError if it is another kind of model or truncated, or if
        the weights do not fit the config.
        """
        folder = find_folder(name_or_path, revision) / subfolder
        config = cls.read_config(folder)
        weights, _ = read_tensors(folder / WEIGHTS_FILE)
        return cls.from_weights(config, weights, str(folder / WEIGHTS_FILE), device)

    @classmethod
    def read_config(cls, folder: Path) -> Any:
        """The config in a folder. FileNotFoundError if there is none; ValueError if it is of another kind of model."""
        config = read_json(folder / CONFIG_FILE)
        kind = config.pop("model", None)
        if kind != cls.__name__:
            raise ValueError(f"{folder / CONFIG_FILE} is of model {kind!r}; expected {cls.__name__!r}")
        return cls.config_class.from_dict(config)

    @classmethod
    def from_weights(
        cls: type[ModelT],
        config: Config,
        weights: Mapping[str, Tensor],
        source: str = "the state dict",
        device: torch.device | str = "cpu",
    ) -> ModelT:
        """A model of this config with these weights, in eval mode; random initialisation is skipped."""
        with torch.device("meta"):
            model = cls(config)  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        model.to_empty(device=device)
        load_weights(model, weights, source)
        return model.eval()
