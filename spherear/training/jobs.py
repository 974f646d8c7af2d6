"""What a training job is, as data: what to train, on what, and how the run is carried out; without torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

from spherear.sphere.families import FAMILIES
from spherear.training.recipes import COURSES, ARRecipe, VAERecipe, course

ALIASES = {"imagenet256": "imagenet256-B"}  # one VAE serves all sizes


@dataclass(frozen=True)
class Execution:
    """Choices that may differ between a run and its continuation; the defaults are the plain path."""

    compile: bool = False
    """Compile the model's part of a step; needs a C++ compiler, and a minute or so at the start."""
    cache: Path | None = None
    """Folder for cached posteriors (see cached_copies), shared by runs on the same VAE; none: in memory."""
    workers: int = 0
    """Processes that read images ahead of the step; 0: the loop reads them itself."""
    sharded: bool = False
    """Split weights, optimiser and average over the processes (FSDP2) instead of copying them (DDP)."""
    checkpointing: bool = False
    """Recompute every block in the backward pass instead of keeping it: less memory, a third more time."""
    average_on: str = ""
    """Device of the averaged weights; none: with the model's."""
    preview_every: int = 0
    """Steps between sheets of pictures in the run's folder; 0: none."""
    tensorboard: bool = False
    """Write curves for TensorBoard into the run's folder."""
    override: bool = False
    """Go on although the folder's run was begun with another recipe or other data."""


PLAIN = Execution()


@dataclass(frozen=True)
class VAEJob:
    """Train a VAE on a preset's data. The same command on the same folder goes on where it stopped."""

    recipe: VAERecipe
    """How long and how; the defaults are the preset's."""
    data: str
    """What to train on: digits, shapes, folder:PATH, tar:PATH or hub:OWNER/NAME[@REVISION][#SPLIT][?stream]."""
    run: Path
    """The run's folder. Also --out, as it has to be under torchrun, which takes --run for its own."""
    preset: Literal[*COURSES, *ALIASES] = "digits"  # type: ignore[valid-type]
    """Sizes of the model."""
    bottleneck: Literal[*FAMILIES] = "power_spherical"  # type: ignore[valid-type]
    """How tokens are constrained."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    execution: Execution = PLAIN
    """How the run is carried out; none of it changes what comes out."""
    dry_run: bool = False
    """Say what the run would take, and look at the data; train nothing, write nothing."""
    teraflops: float = 1.0
    """10^12 operations a second that a device does, to reckon the time with in a dry run."""


@dataclass(frozen=True)
class ARJob:
    """Train an AR model on a trained VAE's tokens. The same command on the same folder goes on."""

    recipe: ARRecipe
    """How long and how; the defaults are the preset's."""
    data: str
    """What to train on: digits, shapes, folder:PATH, tar:PATH or hub:OWNER/NAME[@REVISION][#SPLIT][?stream]."""
    run: Path
    """The run's folder. Also --out, as it has to be under torchrun, which takes --run for its own."""
    vae: Path
    """The finished run folder of the VAE."""
    preset: Literal[*COURSES] = "digits"  # type: ignore[valid-type]
    """Sizes of the model."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    execution: Execution = PLAIN
    """How the run is carried out; none of it changes what comes out."""
    dry_run: bool = False
    """Say what the run would take, and look at the data; train nothing, write nothing."""
    teraflops: float = 1.0
    """10^12 operations a second that a device does, to reckon the time with in a dry run."""


def parse_job(args: list[str]) -> VAEJob | ARJob:
    """The job that command-line words ask for. Needs tyro."""
    import tyro

    args = ["--run" + arg[5:] if re.fullmatch("--out(=.*)?", arg) else arg for arg in args]
    name = _option(args, "preset", "digits")
    plan, folder = course(ALIASES.get(name, name)), Path("runs") / name
    vae = VAEJob(plan.vae, plan.data, folder / "vae", preset=name)
    ar = ARJob(plan.ar, plan.data, folder / "ar", folder / "vae", preset=name)
    kinds = Union[  # noqa: UP007 (tyro reads a Union)
        Annotated[VAEJob, tyro.conf.subcommand("vae", default=vae)],
        Annotated[ARJob, tyro.conf.subcommand("ar", default=ar)],
    ]
    config = (tyro.conf.OmitArgPrefixes,)  # --steps, not --recipe.steps
    return tyro.cli(kinds, prog="spherear train", description="Train a model.", args=args, config=config)


def _option(args: Sequence[str], name: str, default: str) -> str:
    """The value of `--name` in args: the defaults of all other options depend on it."""
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        if flag == f"--{name}":
            return value
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return default
