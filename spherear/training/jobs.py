"""Training jobs as dataclasses: what to train, on which data, and how to execute the run. Does not import torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

from spherear.models.config import require
from spherear.sphere.families import FAMILIES
from spherear.training.recipes import RECIPES, ARRecipe, VAERecipe, recipes

ALIASES = {"imagenet256": "imagenet256-B"}  # all sizes of AR models share one VAE


@dataclass(frozen=True)
class Execution:
    """Options that may change when a run is resumed. The defaults are the simplest execution."""

    compile: bool = False
    """Compile the model's part of a step. Needs a C++ compiler, and about a minute at the start."""
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
        peak = self.peak_teraflops
        require(0 <= peak < 1e6, f"peak_teraflops is {peak}; expected 10^12 operations per second, 0 or more")
        require(0 < self.timeout < 1e6, f"timeout is {self.timeout}; expected minutes, above 0")


PLAIN = Execution()


def sizes_name(preset: str) -> str:
    """The row of `models.presets` for a job's preset."""
    return ALIASES.get(preset, preset)


@dataclass(frozen=True)
class Job:
    """Shared by both kinds of training."""

    data: str
    """Data: digits, mnist, shapes, folder:PATH, tar:PATH or hub:OWNER/NAME[@REVISION][#SPLIT][?stream[=CLASSES]]."""
    run: Path
    """The run's folder. Use --out under torchrun, which takes --run for an option of its own."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda if available."""
    execution: Execution = PLAIN
    """How the run is executed. None of this changes the result."""
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
    """Train a VAE on a preset's data. The same command on the same folder resumes the run."""

    recipe: VAERecipe
    """Hyperparameters of the training. The defaults are the preset's."""
    preset: Literal[*RECIPES, *ALIASES] = "digits"  # type: ignore[valid-type]
    """Model sizes."""
    bottleneck: Literal[*FAMILIES] = "power_spherical"  # type: ignore[valid-type]
    """Family of latents."""


@dataclass(frozen=True, kw_only=True)
class ARJob(Job):
    """Train an AR model on a trained VAE's tokens. The same command on the same folder resumes the run."""

    recipe: ARRecipe
    """Hyperparameters of the training. The defaults are the preset's."""
    vae: Path
    """Folder of the VAE's finished run."""
    preset: Literal[*RECIPES] = "digits"  # type: ignore[valid-type]
    """Model sizes."""


def parse_job(args: list[str]) -> VAEJob | ARJob:
    """The job that command-line arguments describe. Needs tyro."""
    import tyro

    args = ["--run" + arg[5:] if re.fullmatch("--out(=.*)?", arg) else arg for arg in args]
    name = _option(args, "preset", "digits")
    plan, folder = recipes(sizes_name(name)), Path("runs") / name
    vae = VAEJob(plan.data, folder / "vae", recipe=plan.vae, preset=name)
    ar = ARJob(plan.data, folder / "ar", recipe=plan.ar, vae=folder / "vae", preset=sizes_name(name))
    kinds = Union[  # noqa: UP007 (tyro reads a Union)
        Annotated[VAEJob, tyro.conf.subcommand("vae", default=vae)],
        Annotated[ARJob, tyro.conf.subcommand("ar", default=ar)],
    ]
    config = (tyro.conf.OmitArgPrefixes,)  # --steps, not --recipe.steps
    return tyro.cli(kinds, prog="spherear train", description="Train a model.", args=args, config=config)


def _option(args: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` in args; the defaults of all other options depend on it."""
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        if flag == f"--{name}":
            return value
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return default
