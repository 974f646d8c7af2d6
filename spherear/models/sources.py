"""A model before its weights are read: where it lies (folder, shipped, hub, published file), and its configs.

How weights become models: `pretrained`, `published_weights`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import Config, require
from spherear.models.files import read_json, user_path
from spherear.models.presets import check_pair
from spherear.models.pretrained import CONFIG_FILE, RUNS, find_folder, fingerprint
from spherear.models.published_weights import HUB_FILES, load_parts, published_configs
from spherear.models.vae import VAE, VAEConfig

VaeT = TypeVar("VaeT")
ArT = TypeVar("ArT")
IMAGENET = Path(__file__).with_name("imagenet_classes.json")


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 names of ImageNet's classes (ILSVRC 2012) in the order of the labels, all different."""
    return tuple(read_json(IMAGENET)["classes"])


@dataclass(frozen=True)
class Outline:
    """The configs of a VAE and of the AR model of its tokens."""

    vae: VAEConfig
    ar: ARConfig

    def parameters(self) -> tuple[int, int]:
        """Parameters of the VAE and of the AR model. Nothing is allocated for that."""
        return _count(VAE, self.vae), _count(SphereAR, self.ar)


@lru_cache(maxsize=64)
def _count(model: Callable[[Any], nn.Module], config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in model(config).parameters())


@dataclass(frozen=True)
class Source:
    """Where a VAE and its AR model lie.

    name: a folder that `Pipeline.save_pretrained` or a run wrote, a shipped name, a hub repository 'owner/name', or
    the published file of an AR model.  vae: the published file of its VAE, or the folder of its VAE's run, unless
    `name` holds both.
    revision: branch, tag or commit, for the hub only.
    """

    name: str
    vae: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name} with {self.vae}" if self.vae else self.name

    @property
    def published(self) -> bool:
        """Whether the source is a published file, or a pair of them."""
        if self.vae and user_path(self.vae).is_dir():
            return False
        return bool(self.vae) or user_path(self.name).is_file() or self.name in HUB_FILES

    @property
    def _folders(self) -> tuple[Path, Path]:
        """The folders of the VAE and of the AR model."""
        folder = find_folder(self.name, self.revision)
        if not self.vae:
            folder = _finished(folder)
            return folder / "vae", folder / "ar"
        vae = user_path(self.vae)
        return _part(vae, "vae"), _part(folder, "ar")

    def outline(self) -> Outline:
        """The configs, without reading the weights. Errors: as `load`."""
        if not self.published:
            vae_folder, ar_folder = self._folders
            return _checked(VAE.read_config(vae_folder), SphereAR.read_config(ar_folder))
        vae, ar = self._both(*published_configs(*self._files, revision=self.revision))
        return _checked(vae, _named(ar))

    def load(self, device: torch.device | str = "cpu") -> tuple[VAE, SphereAR]:
        """Both models, float32, in eval mode; published models of 1,000 classes have ImageNet's names.

        FileNotFoundError if nothing is there; ValueError for a file without one of the two models, for models that do
        not fit each other, for a VAE that was trained again since the AR model of its run learnt its tokens, and for
        what `from_pretrained` and `load_parts` refuse.
        """
        if not self.published:
            vae_folder, ar_folder = self._folders
            vae = VAE.from_pretrained(vae_folder, device=device)
            _check_tokens(ar_folder, vae)
            ar = SphereAR.from_pretrained(ar_folder, device=device)
        else:
            vae, ar = self._both(*load_parts(*self._files, revision=self.revision, device=device))
            ar.config = _named(ar.config)
        _checked(vae.config, ar.config)
        return vae, ar

    def absolute(self) -> "Source":
        """The same source from any working directory: local paths are absolute."""
        return replace(self, name=_absolute(self.name), vae=_absolute(self.vae))

    @property
    def _files(self) -> tuple[str, str | None]:
        return str(user_path(self.name)), str(user_path(self.vae)) if self.vae else None

    def _both(self, vae: VaeT | None, ar: ArT | None) -> tuple[VaeT, ArT]:
        """The VAE and the AR model of the one or two files. ValueError if one is missing."""
        if ar is None:
            raise ValueError(f"{self.name} holds no AR model; expected a published SphereAR")
        if vae is None:
            raise ValueError(f"{self.vae or self.name} holds no VAE; expected one, or a published VAE beside it (vae=)")
        return vae, ar


def heads_folder(name: str) -> Path:
    """Where heads distilled from a model lie: `heads` in its folder, or in runs/NAME of a source that is no folder."""
    folder = user_path(name)
    return (folder if folder.is_dir() else Path(RUNS) / folder.name) / "heads"


def heads_beside(name: str) -> dict[str, str]:
    """Folder -> head, of the finished models that were distilled from a model and lie beside it."""
    found = {}
    for folder in sorted(heads_folder(name).glob("*")):
        if (folder / "ar" / CONFIG_FILE).is_file():
            found[str(folder)] = SphereAR.read_config(folder / "ar").head
    return found


def _finished(folder: Path) -> Path:
    """The folder. ValueError for a run that is not finished, or the run of one of the two models."""
    for part, other in (("vae", "AR model"), ("ar", "VAE")):
        begun, done = (folder / part / "run.json").is_file(), (folder / part / CONFIG_FILE).is_file()
        require(
            not begun or done,
            f"the run {folder} is not finished ({part} is in training); the command that began it goes on, and "
            f"`spherear export {folder} --out OUT` makes a model of what there is; expected a finished run",
        )
        alone = done and not (folder / ("ar" if part == "vae" else "vae")).exists()
        require(not alone, f"the run {folder} has no {other} yet; expected vae/ and ar/: `spherear train ar` or `all`")
    return folder


def _part(folder: Path, name: str) -> Path:
    """The folder of one model, given that folder or the one around both models."""
    return folder / name if (folder / name / CONFIG_FILE).exists() else folder


def _check_tokens(folder: Path, vae: VAE) -> None:
    """ValueError if an AR model's run learnt the tokens of another VAE."""
    run = folder / "run.json"
    trained_on = read_json(run).get("vae") if run.is_file() else None
    beside = trained_on and fingerprint(vae)  # of a run only: it reads all weights
    name = folder.parent if folder.name == "ar" else folder
    require(
        trained_on == beside,
        f"the AR model of {name} was trained on the tokens of another VAE ({trained_on}); "
        f"expected the one beside it, {beside}: train the AR model again",
    )


def _named(config: ARConfig) -> ARConfig:
    """A published config with the names of its classes: those of ImageNet if it has 1,000."""
    names = imagenet_classes()
    return config if config.classes or config.num_classes != len(names) else replace(config, classes=names)


def _checked(vae: VAEConfig, ar: ARConfig) -> Outline:
    check_pair(vae, ar)
    return Outline(vae, ar)


def _absolute(name: str) -> str:
    path = user_path(name)
    return str(path.resolve()) if name and path.exists() else name


def source_of(name: str | Path, vae: str | Path | None = None, revision: str | None = None) -> Source:
    """The source of these names. Empty names: ValueError."""
    require(str(name) != "", "the name of the model is empty; expected a folder, a shipped name or a published file")
    return Source(str(name), str(vae or ""), revision)
