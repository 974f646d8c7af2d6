"""The job that command-line arguments describe, and its defaults. Does not import torch."""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Union

from spherear.console import say
from spherear.models.config import ConfigT, require
from spherear.models.files import read_json
from spherear.models.presets import PRESETS, with_vae
from spherear.models.sizes import ARConfig, VAEConfig
from spherear.training.jobs import PROPOSED, RUN, AllJob, ARJob, VAEJob, sizes_name, starting_point, vae_folder
from spherear.training.recipes import RECIPES, ARRecipe, VAERecipe, recipes

CONFIG = "config.json"  # of a trained model
FILE_KEYS = ("kind", "data", "dataset", "model", "recipe", "vae")  # of a run.json
WHOLE = ("vae_steps", "ar_steps", "batch_size", "seed", "workers")  # of a file of `train all`


def parse_job(args: list[str]) -> VAEJob | ARJob | AllJob:
    """The job that command-line arguments describe. Needs tyro, and torch only to look at pictures.

    Its defaults come from `--config`, from `--preset`, or from the data and the VAE that are named.
    """
    import tyro

    args = ["--run" + arg[5:] if re.fullmatch("--out(=.*)?", arg) else arg for arg in args]
    given = _Given(args)
    kind = next((arg for arg in args if not arg.startswith("-")), "")
    makers = {"vae": _vae_default, "ar": _ar_default, "all": _all_default}
    plain = _Given(["--preset", "digits"])  # of the kinds that are not asked for
    defaults = {name: make(given if name == kind else plain) for name, make in makers.items()}
    kinds = Union[  # noqa: UP007 (tyro reads a Union)
        Annotated[tyro.conf.OmitArgPrefixes[VAEJob], tyro.conf.subcommand("vae", default=defaults["vae"])],
        Annotated[tyro.conf.OmitArgPrefixes[ARJob], tyro.conf.subcommand("ar", default=defaults["ar"])],
        Annotated[AllJob, tyro.conf.subcommand("all", default=defaults["all"])],
    ]
    job = tyro.cli(kinds, prog="spherear train", description="Train a model.", args=args)
    if isinstance(job, VAEJob):
        require(
            job.patch in (0, job.model.patch), f"patch is {job.patch}; expected {job.model.patch}, as --widths says"
        )
    return job


class _Given:
    """The words of a command line that the defaults of all others depend on."""

    def __init__(self, args: Sequence[str]) -> None:
        self.args, self.help = args, "-h" in args or "--help" in args
        file = self.flag("config")
        self.file: dict[str, Any] = read_json(Path(file)) if file and not self.help else {}

    def flag(self, name: str) -> str:
        """The value of `--name`, with - or _ between words; empty if it is not given."""
        flags = {f"--{name}", f"--{name.replace('_', '-')}"}
        for flag, value in zip(self.args, [*self.args[1:], ""], strict=True):
            if flag in flags:
                return value
            if flag.partition("=")[0] in flags:
                return flag.partition("=")[2]
        return ""

    def text(self, name: str, default: str = "") -> str:
        """The value of `--name`, or of the file's `name`."""
        return self.flag(name) or str(self.file.get(name, default))

    def number(self, name: str) -> int:
        """As `text`, for numbers; 0 where there is none. What is no number is refused when all options are parsed."""
        text = self.text(name)
        return int(text) if text.isdecimal() else 0

    def preset(self) -> str:
        """The preset: as given, the one of the data, or a proposal."""
        data = self.text("data")
        named = data if data in RECIPES and recipes(data).data == data else PROPOSED
        return self.text("preset", named if data and not self.help else "digits")

    def folder(self) -> Path:
        """The default folder of a run."""
        name, data = self.preset(), self.text("data")
        where = Path(data.partition(":")[2].partition("#")[0]).name or data
        return Path("runs") / (where if name == PROPOSED else name)

    def sizes(self) -> dict[str, int]:
        """The sizes that others follow from."""
        return {name: self.number(name) for name in ("image_size", "patch", "latent_dim")}

    def part(self, name: str, kind: type[ConfigT], default: ConfigT) -> ConfigT:
        """A config of the file, over the default. ValueError for what is none."""
        values = self.file.get(name, {})
        require(isinstance(values, dict), f"{name} of the config file is {values!r}; expected a JSON object")
        return kind.from_dict(default.to_dict() | values)

    def require_kind(self, kind: str) -> None:
        """ValueError for the file of another kind of job, or with a name that it does not have."""
        found, known = self.file.get("kind", kind), (*FILE_KEYS, *(field.name for field in fields(AllJob)))
        require(found == kind, f"the config file is of kind {found!r}; expected {kind!r}")
        unknown = sorted(set(self.file) - set(known))
        require(not unknown, f"the config file has {unknown}; expected some of {', '.join(known)}")


def _vae_default(given: _Given) -> VAEJob:
    given.require_kind("vae")
    name, data = given.preset(), given.text("data")
    found = starting_point(name, data, **given.sizes())
    if found.explanation:
        say(found.explanation)
    model = given.part("model", VAEConfig, found.sizes.vae)
    return VAEJob(
        data or found.recipes.data, given.folder() / "vae", name,
        recipe=given.part("recipe", VAERecipe, found.recipes.vae), model=model, patch=given.number("patch"),
    )  # fmt: skip


def _ar_default(given: _Given) -> ARJob:
    given.require_kind("ar")
    file = given.flag("vae")
    folder = vae_folder(Path(file)) if file else given.folder() / "vae"
    run, vae = ({}, None) if given.help else (_stored(folder / RUN), _stored_vae(folder))
    data = given.text("data") or str(run.get("data", ""))
    name = given.text("preset") or _preset_like(vae, data)
    base = starting_point(name, data, width=given.number("width"))
    sizes = base.sizes if vae is None else with_vae(base.sizes, vae)
    classes = _classes(data, run) if vae is not None else 0
    model = replace(sizes.ar, num_classes=classes or sizes.ar.num_classes)
    beside = file and not given.text("preset")  # AR models of several presets may share a VAE
    run_folder = folder.parent if beside else given.folder()
    return ARJob(
        data or base.recipes.data, run_folder / "ar", sizes_name(name), vae=folder,
        recipe=given.part("recipe", ARRecipe, base.recipes.ar), model=given.part("model", ARConfig, model),
    )  # fmt: skip


def _all_default(given: _Given) -> AllJob:
    given.require_kind("all")
    name, data = given.preset(), given.text("data")
    found = starting_point(name, data, **given.sizes(), width=given.number("width"))
    if found.explanation:
        say(found.explanation)
    plan, row = found.recipes, found.sizes
    vae = given.part("vae", VAEConfig, row.vae)
    whole: dict[str, Any] = {
        "vae_steps": plan.vae.steps, "ar_steps": plan.ar.steps, "seed": 0, "workers": 0,
        "batch_size": min(plan.vae.batch_size, plan.ar.batch_size),
    }  # fmt: skip
    whole |= {name: given.number(name) for name in WHOLE if name in given.file}
    return AllJob(
        data or plan.data, given.folder(), name, vae=vae, ar=given.part("ar", ARConfig, with_vae(row, vae).ar),
        image_size=vae.image_size, patch=vae.patch, latent_dim=vae.latent_dim, width=row.ar.width,
        hold_out=bool(given.file.get("hold_out", True)), **whole,
    )  # fmt: skip


def _stored(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where there is none."""
    return read_json(path) if path.is_file() else {}


def _stored_vae(folder: Path) -> VAEConfig | None:
    """The config of a trained VAE; None where there is none."""
    values = _stored(folder / CONFIG)
    values.pop("model", None)
    return VAEConfig.from_dict(values) if values else None


def _classes(data: str, run: dict[str, Any]) -> int:
    """How many classes the data have: as the VAE's run says of them, or looked at; 0 if nothing says which data."""
    if data and data != run.get("data"):
        from spherear.training.data.catalog import load_data

        return load_data(data, 1).num_classes
    return len(run.get("dataset", {}).get("classes", []))


def _preset_like(vae: VAEConfig | None, data: str) -> str:
    """The first preset with a VAE of these sizes and these data, or a proposal; digits without a VAE."""
    if vae is None:
        return "digits"
    fitting = (name for name, row in PRESETS.items() if _shape(row.vae) == _shape(vae))
    return next((name for name in fitting if data in ("", RECIPES[name].data)), PROPOSED if data else "digits")


def _shape(vae: VAEConfig) -> tuple[object, ...]:
    return vae.image_size, vae.latent_dim, vae.widths, vae.encoder_layers, vae.decoder_layers, vae.channels
