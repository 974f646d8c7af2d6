"""Training jobs as dataclasses: what to train, on which data, and how to execute the run. Does not import torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spherear.models.config import require
from spherear.models.presets import Preset, preset, with_vae
from spherear.models.sizes import ARConfig, VAEConfig
from spherear.training.recipes import RECIPES, ARRecipe, Recipes, VAERecipe, recipes

ALIASES = {"imagenet256": "imagenet256-B"}  # all sizes of AR models share one VAE
PROPOSED = "proposed"
RUN = "run.json"  # of the run of a trained model


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
