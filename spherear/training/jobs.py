"""Training jobs as dataclasses: what to train, on which data, and how to execute the run. Does not import torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from spherear.console import say
from spherear.models.config import ConfigT, require
from spherear.models.files import read_json
from spherear.models.presets import PRESETS, Preset, preset, with_vae
from spherear.models.sizes import ARConfig, VAEConfig
from spherear.training.recipes import RECIPES, ARRecipe, Recipes, VAERecipe, recipes

ALIASES = {"imagenet256": "imagenet256-B"}  # all sizes of AR models share one VAE
PROPOSED = "proposed"
CONFIG, RUN = "config.json", "run.json"  # of a trained model, and of its run
FILE_KEYS = ("kind", "data", "dataset", "model", "recipe", "vae")  # of a run.json
WHOLE = ("vae_steps", "ar_steps", "batch_size", "seed", "workers")  # of a file of `train all`


@dataclass(frozen=True)
class Execution:
    """Options that may change when a run is resumed. The defaults are the simplest execution."""

    compile: bool = False
    """Compile the model's part of a step. Needs a C++ compiler, and about a minute at the start."""
    graphs: bool = False
    """Replay the compiled step as CUDA graphs: faster for a small model on one GPU, whose time goes into launches.
    With --compile, and without micro-batches."""
    cache: Path | None = None
    """Folder for cached posteriors (see cached_copies), shared by runs on the same VAE. Without it: in memory."""
    workers: int = 0
    """Data loader processes that read images ahead of the step. 0: the training process reads them."""
    sharded: bool = False
    """Shard weights, optimiser state and EMA over the processes (FSDP2) instead of replicating them (DDP)."""
    checkpointing: bool = False
    """Gradient checkpointing: recompute every block in the backward pass. Less memory, a third more time."""
    average_on: str = ""
    """Device of the averaged weights (EMA). Empty: the model's device."""
    preview_every: int = 0
    """Steps between preview images in the run's folder. 0: none."""
    tensorboard: bool = False
    """Write TensorBoard logs to the run's folder."""
    wandb: str = ""
    """Project at Weights & Biases to log to. Empty: none. Needs wandb."""
    validate_every: int = 0
    """Steps between scores on held-out images, in validation.jsonl: the loss of an AR model; PSNR, LPIPS (where it is
    trained with) and Frechet distance of a VAE's reconstructions. 0: none."""
    held_out: str = ""
    """Data set of the held-out images, like --data, with the same classes. Empty: the test split of digits, mnist or
    shapes."""
    keep_every: int = 0
    """Keep the checkpoints at multiples of this many steps, for `spherear export`. 0: only the newest two."""
    timeout: float = 30.0
    """Minutes that processes wait for each other (the timeout of NCCL and gloo) before they give up."""
    peak_teraflops: float = 0.0
    """10^12 operations per second that one device can do, for the utilisation in the log. 0: by the GPU's name."""
    channels_last: bool = False
    """Images in channels-last order, which convolutions on recent GPUs prefer."""
    override: bool = False
    """Resume even if the folder's run was started with another recipe or other data."""

    def __post_init__(self) -> None:
        for name in ("workers", "preview_every", "keep_every", "validate_every"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; expected 0 or more")
        require(
            self.compile or not self.graphs,
            "graphs is True without compile; expected both: compiled steps are replayed",
        )
        peak = self.peak_teraflops
        require(0 <= peak < 1e6, f"peak_teraflops is {peak}; expected 10^12 operations per second, 0 or more")
        require(0 < self.timeout < 1e6, f"timeout is {self.timeout}; expected minutes, above 0")


PLAIN = Execution()


def sizes_name(preset: str) -> str:
    """The row of `models.presets` for a job's preset."""
    return ALIASES.get(preset, preset)


@dataclass(frozen=True)
class Job:
    """Shared by all kinds of training."""

    data: str
    """Data set: digits, mnist, shapes, folder:PATH, tar:PATH (#train after a path: without every fifth picture of a
    class, which are PATH#test), hub:OWNER/NAME[@REVISION][#SPLIT][?stream[=CLASSES]], or one of your own."""
    run: Path
    """The run's folder. Use --out under torchrun, which takes --run for an option of its own."""
    preset: "Literal[PROPOSED, *RECIPES, *ALIASES]" = "digits"  # type: ignore[valid-type]
    """Sizes and recipe to start from. proposed: from the data (the default for data without a preset)."""
    config: Path | None = None
    """A JSON file with defaults for the other options, such as the run.json of another run."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    dry_run: bool = False
    """Estimate the cost of the run and check the data. Nothing is trained or written."""
    teraflops: float = 1.0
    """Throughput of one device in 10^12 operations per second, for the time estimate of a dry run."""
    devices: int = 0
    """Number of devices that a dry run estimates for. 0: those of this launch."""
    device_memory: float = 0.0
    """GiB of one device, into which a dry run checks that a step fits. 0: what the GPU has; without one, no check."""

    def __post_init__(self) -> None:
        require(self.devices >= 0, f"devices is {self.devices}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class VAEJob(Job):
    """Train a VAE. The same command on the same folder resumes the run."""

    recipe: VAERecipe
    """Hyperparameters of the training. The defaults are the preset's."""
    model: VAEConfig
    """Sizes of the model. The defaults are the preset's, or proposed from the data."""
    patch: int = 0
    """Side of a token's patch in pixels, a power of two, instead of --widths. 0: as --widths says."""
    execution: Execution = PLAIN
    """How the run is executed. None of this changes the result."""


@dataclass(frozen=True, kw_only=True)
class ARJob(Job):
    """Train an AR model on a trained VAE's tokens. The same command on the same folder resumes the run."""

    recipe: ARRecipe
    """Hyperparameters of the training. The defaults are the preset's."""
    model: ARConfig
    """Sizes of the model. Tokens and classes are those of the VAE and of the data it saw."""
    vae: Path
    """Folder of the VAE's finished run, or one with such a run in vae/."""
    execution: Execution = PLAIN
    """How the run is executed. None of this changes the result."""

    @property
    def vae_folder(self) -> Path:
        """The folder of the VAE itself."""
        return vae_folder(self.vae)


def vae_folder(run: Path) -> Path:
    """The folder of a VAE's run: `run`, or `vae` in it."""
    return run / "vae" if (run / "vae" / RUN).is_file() else run


@dataclass(frozen=True, kw_only=True)
class AllJob(Job):
    """Train a VAE and its AR model, and draw a sheet of images. The same command goes on where it stopped.

    Every further option has `spherear train vae` and `spherear train ar`.
    """

    vae: VAEConfig
    """Sizes of the VAE."""
    ar: ARConfig
    """Sizes of the AR model."""
    vae_steps: int
    """Training steps of the VAE."""
    ar_steps: int
    """Training steps of the AR model."""
    batch_size: int
    """Images per step."""
    image_size: int = 0
    """Pixels of an image; 0: proposed from the data, as are the next three."""
    patch: int = 0
    """Side of a token's patch in pixels, a power of two."""
    latent_dim: int = 0
    """Numbers per token."""
    width: int = 0
    """Of the AR model and its head."""
    seed: int = 0
    """Of weights, data order and noise."""
    workers: int = 0
    """Data loader processes. 0: the training process reads the images."""
    hold_out: bool = True
    """Leave every fifth picture of a class of folder:PATH or tar:PATH out of the training, to evaluate with."""

    def jobs(self) -> tuple[VAEJob, ARJob]:
        """The two trainings. ValueError for steps, sizes or data that cannot be."""
        from spherear.training.data.catalog import training_part

        data = training_part(self.data) if self.hold_out else self.data
        plan = start_recipes(self.preset, data, self.batch_size)
        sizes = with_vae(Preset(self.vae, self.ar, 1.0), self.vae)
        shared: dict[str, Any] = {
            "data": data, "preset": self.preset, "device": self.device, "teraflops": self.teraflops,
            "execution": Execution(workers=self.workers),
        }  # fmt: skip
        changes: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
        vae_recipe = replace(plan.vae, steps=self.vae_steps, **changes)
        ar_recipe = replace(plan.ar, steps=self.ar_steps, **changes)
        vae = VAEJob(run=self.run / "vae", recipe=vae_recipe, model=self.vae, **shared)
        return vae, ARJob(run=self.run / "ar", recipe=ar_recipe, model=sizes.ar, vae=self.run / "vae", **shared)


@dataclass(frozen=True)
class Start:
    """What a job starts from. explanation: of a proposal."""

    sizes: Preset
    recipes: Recipes
    explanation: str = ""


def start_recipes(name: str, data: str, images: int) -> Recipes:
    """The recipes of a preset, or proposed for that many images."""
    if name != PROPOSED:
        return recipes(sizes_name(name))
    from spherear.training.data.propose import propose_recipes

    return propose_recipes(data, images)


def starting_point(
    name: str, data: str, image_size: int = 0, patch: int = 0, latent_dim: int = 0, width: int = 0
) -> Start:
    """Sizes and recipes of a preset, or proposed for the data; what is given (not 0) is kept.

    ValueError for data that cannot be read, and for sizes that do not fit together.
    """
    if name == PROPOSED:
        from spherear.training.data import propose

        look = propose.look_at(data)
        sizes = propose.propose_sizes(look, image_size, patch, latent_dim, width)
        return Start(sizes, start_recipes(name, data, look.images), propose.explained(look, sizes))
    row = preset(sizes_name(name))
    vae: dict[str, Any] = {
        "image_size": image_size or row.vae.image_size,
        "latent_dim": latent_dim or row.vae.latent_dim,
    }
    ar = row.ar
    if patch or width:
        from spherear.training.data import propose

        vae |= {"widths": propose.widths_for(patch)} if patch else {}
        ar = propose.sized(ar, width)
    return Start(with_vae(replace(row, ar=ar), replace(row.vae, **vae)), recipes(sizes_name(name)))


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
