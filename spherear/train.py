"""The training script: the two training loops, the second of them also of a distillation, and their command line.

    python -m spherear.train vae --preset digits --run runs/digits/vae
    python -m spherear.train ar --preset digits --vae runs/digits/vae --run runs/digits/ar
    torchrun --nproc-per-node 8 -m spherear.train vae --preset imagenet256 --data tar:ILSVRC2012_img_train.tar

A loop shows the order of operations in a step. Optimisers and files are in `training.run`, sizes in
`models.presets`, lengths and rates in `training.recipes`; the caller, who iterates, shows progress.
"""

import copy
import math
import os
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from spherear.console import INTERRUPTED, exit_status, print_rank_zero
from spherear.models.ar import ARConfig, SphereAR
from spherear.models.config import require
from spherear.models.heads.categorical import CategoricalHead
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import seeded
from spherear.models.presets import Preset, check_pair
from spherear.models.pretrained import CONFIG_FILE
from spherear.models.vae import VAE, VAEConfig
from spherear.registry import take_imports
from spherear.sampling.pipeline import Pipeline
from spherear.training.adversarial import Extras
from spherear.training.build import (
    autocast,
    cached_posteriors,
    check_classes,
    check_graphs,
    check_images,
    laid_out,
    pick_device,
    prepared,
)
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.training.data.feed import check_broken
from spherear.training.distillation.objective import DistillObjective
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.distillation.student import student_name, student_of
from spherear.training.dry_run import (
    Estimate,
    StepFunction,
    ar_step,
    check_memory,
    device_memory,
    estimate,
    report,
    tokens_line,
    vae_step,
)
from spherear.training.jobs import PLAIN, AllJob, ARJob, Execution, VAEJob, start_recipes
from spherear.training.jobs.arguments import parse_job
from spherear.training.objectives import ARObjective, vae_losses
from spherear.training.progress import watch
from spherear.training.recipes import ARRecipe, VAERecipe
from spherear.training.run import Run, TrainState, fingerprint, keyed_generator
from spherear.training.run_file import RUN_FILE, SKIPPED, skipped_images
from spherear.validation import observers_of
from spherear.world import end_processes, gathered, launched_world

Watch = Callable[[Generator[TrainState, None, None], str, int], bool]
"""watch(states, title, steps) runs a loop; returns whether it finished."""


def train_vae(
    config: VAEConfig,
    data: ImageData,
    recipe: VAERecipe,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    execution: Execution = PLAIN,
) -> Generator[TrainState, None, None]:
    """Train a VAE, one `TrainState` per step; leave the loop to stop, call again to resume from `folder`.

    If the family does not fix the length of a token, all tokens are scaled by one factor at the end, to standard
    deviation 1 over the training set.

    Errors: ValueError for data of another image size, fewer images than a batch, a folder that holds another
    run, or a codebook on several processes.
    """
    check_images(data, config.image_size, recipe)
    check_graphs(recipe, device, execution)
    world = launched_world(device, execution.sharded, execution.timeout)
    require(
        world.size == 1 or not config.alphabet,
        f"a codebook follows the features of one process; expected one, not {world.size}",
    )
    model = seeded(recipe.seed, VAE, config).to(device).train()
    facts = {"kind": "vae", "data": data.spec, "dataset": data.facts(), "model": config.to_dict()}
    extras = Extras(recipe, config.image_size, device)
    run = Run(model, recipe, facts, folder, world, execution, extras.trained())
    objective = prepared(model, model, world, execution)
    feed = run.feed(data, device, execution.workers)
    with run.checkpointed():
        for batch in feed:
            for part in run.micro_batches(objective, batch):
                images = laid_out(part.inputs, execution)
                with autocast(device, recipe.precision):
                    reconstruction, latent = objective(images, run.generator(device, part.number))
                    losses = vae_losses(images, reconstruction, latent, recipe)
                    losses = extras.add(losses, images, reconstruction, run.step)
                run.accumulate(losses, len(batch))
            yield run.update()
        _settle_scale(run, data, recipe, device)


def train_ar(
    config: ARConfig,
    vae: VAE,
    data: ImageData,
    recipe: ARRecipe,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    execution: Execution = PLAIN,
) -> Generator[TrainState, None, None]:
    """Train an AR model on fresh posterior samples of `vae`, one `TrainState` per step.

    With `recipe.cached_copies`, posteriors are computed once and sampled afresh at every step; for data without
    augmentation the samples are the same as without a cache.

    Errors: as `train_vae`, and ValueError for a VAE whose tokens, or data whose classes, do not fit.
    """
    check_pair(vae.config, config)
    check_classes(data, config)
    config = replace(config, classes=data.classes)
    check_images(data, vae.config.image_size, recipe)
    check_graphs(recipe, device, execution)
    vae = vae.to(device).eval()
    world = launched_world(device, execution.sharded, execution.timeout)
    model = seeded(recipe.seed, SphereAR, config).to(device).train()
    if vae.codebook is not None and isinstance(model.head, CategoricalHead):
        model.head.set_codebook(vae.codebook)
    facts = {"kind": "ar", "data": data.spec, "dataset": data.facts()}
    facts |= {"model": config.to_dict(), "vae": fingerprint(vae)}
    run = Run(model, recipe, facts, folder, world, execution)
    objective = prepared(ARObjective(model, recipe), model, world, execution)
    yield from _token_steps(run, objective, vae, data, recipe, device, execution)


def distill(
    vae: VAE,
    ar: SphereAR,
    data: ImageData,
    recipe: DistillRecipe,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    execution: Execution = PLAIN,
) -> Generator[TrainState, None, None]:
    """Train a head of few evaluations by the head of `ar`, one `TrainState` per step; `ar` itself is not changed.

    folder: of the new model, with vae/ (a copy) and ar/ (the run, and at the end the model); call again to resume.
    Errors: ValueError for data that do not fit, a folder that holds another run, and what `execution` cannot do here;
    TypeError for a teacher without a velocity.
    """
    check_pair(vae.config, ar.config)
    student_name(ar)
    check_classes(data, ar.config)
    check_images(data, vae.config.image_size, recipe)
    require(not execution.sharded, "sharded is True; expected False: only a head is trained, which is small")
    require(not execution.compile, "compile is True; expected False: the teacher's draws are not compiled")
    world, vae = launched_world(device, execution.sharded, execution.timeout), vae.to(device).eval()
    model, teacher = student_of(ar, recipe).to(device).train(), copy.deepcopy(ar.head).to(device)
    assert isinstance(teacher, VelocityHead)
    facts = {"kind": "ar", "data": data.spec, "dataset": data.facts(), "model": model.config.to_dict()}
    facts |= {"vae": fingerprint(vae), "teacher": fingerprint(ar)}
    run = Run(model, recipe, facts, None if folder is None else Path(folder) / "ar", world, execution)
    if folder is not None and world.first and not (Path(folder) / "vae" / CONFIG_FILE).exists():
        vae.save_pretrained(Path(folder) / "vae")
    objective = prepared(DistillObjective(model, teacher, recipe), model, world, execution)
    yield from _token_steps(run, objective, vae, data, recipe, device, execution)


def _token_steps(
    run: Run,
    objective: nn.Module,
    vae: VAE,
    data: ImageData,
    recipe: ARRecipe,
    device: torch.device | str,
    execution: Execution,
) -> Generator[TrainState, None, None]:
    """The steps of a run that learns from a VAE's tokens."""
    draw: Callable[..., Tensor] = vae.draw
    if recipe.cached_copies and not run.done:
        data, draw = cached_posteriors(vae, data, recipe, device, execution, run.world), vae.draw_from
    feed = run.feed(data, device, 0 if recipe.cached_copies else execution.workers)
    with run.checkpointed():
        for batch in feed:
            for part in run.micro_batches(objective, batch):
                generator = run.generator(device, part.number)
                with autocast(device, recipe.precision):
                    with torch.no_grad():
                        tokens = draw(laid_out(part.inputs, execution), generator)
                    loss = objective(tokens, part.labels, generator)
                run.accumulate({"loss": loss}, len(batch))
            yield run.update()


def exhaust(states: Generator[TrainState, None, None], title: str, steps: int) -> bool:
    """Run a loop to its end without output; returns True."""
    for _ in states:
        pass
    return True


def train_pipeline(
    sizes: Preset,
    data: ImageData,
    recipes: tuple[VAERecipe, ARRecipe],
    folder: Path,
    device: torch.device | str,
    watch: Watch = exhaust,
    compiled: bool = False,
) -> Pipeline | None:
    """Train a VAE and its AR model in `folder`, resuming runs found there; None if `watch` was stopped.

    compiled: compile both models' steps, and on a GPU replay them as CUDA graphs.
    """
    vae_recipe, ar_recipe = recipes
    graphs = compiled and torch.device(device).type == "cuda" and all(r.micro_batches == 1 for r in recipes)
    # compiled convolutions are slow in the other order
    execution = Execution(compile=compiled, channels_last=compiled, graphs=graphs)
    states = train_vae(sizes.vae, data, vae_recipe, folder / "vae", device, execution)
    if not watch(states, "VAE: images to tokens and back", vae_recipe.steps):
        return None
    vae = VAE.from_pretrained(folder / "vae", device=device)
    states = train_ar(sizes.ar, vae, data, ar_recipe, folder / "ar", device, execution)
    if not watch(states, "AR model: the next token", ar_recipe.steps):
        return None
    return Pipeline.from_pretrained(folder, device=device, dtype="float32", engine="eager")


def _settle_scale(run: Run, data: ImageData, recipe: VAERecipe, device: torch.device | str) -> None:
    """Set the scale to one over the standard deviation of the latents, if the family has no radius."""
    model = run.result
    assert isinstance(model, VAE)
    if model.bottleneck.radius is None:
        model.rescale(1.0)
        whole = gathered(model).to(device)
        assert isinstance(whole, VAE)
        model.rescale(1.0 / latent_deviation(whole, data, recipe.seed, device))


@torch.no_grad()
def latent_deviation(vae: VAE, data: ImageData, seed: int, device: torch.device | str, limit: int = 8192) -> float:
    """Standard deviation of all components of all tokens of the data's first `limit` images, about their mean."""
    generator, training = keyed_generator(seed, 0, device), vae.training
    vae.eval()
    count, total, squares = 0, 0.0, 0.0
    for indices in torch.arange(min(limit, len(data))).split(128):
        tokens = vae.draw(data.batch(indices)[0].to(device), generator).double()
        count, total, squares = count + tokens.numel(), total + float(tokens.sum()), squares + float((tokens**2).sum())
    vae.train(training)
    return math.sqrt(squares / count - (total / count) ** 2)


def _vae_inputs(job: VAEJob) -> tuple[VAEConfig, ImageData]:
    return job.model, load_data(job.data, job.model.image_size)


def _ar_inputs(job: ARJob) -> tuple[ARConfig, VAE, ImageData]:
    require(
        (job.vae_folder / "config.json").exists() or not (job.vae_folder / RUN_FILE).exists(),
        f"the VAE of {job.vae} is not trained to its end; expected a finished run: its command goes on",
    )
    vae = VAE.from_pretrained(job.vae_folder)
    return job.model, vae, load_data(job.data, vae.config.image_size)


def states_of(job: VAEJob | ARJob) -> tuple[Generator[TrainState, None, None], ImageData]:
    """The training loop of a job, which has not begun, and its data."""
    device = pick_device(job.device)
    if isinstance(job, VAEJob):
        config, data = _vae_inputs(job)
        return train_vae(config, data, job.recipe, job.run, device, job.execution), data
    sizes, vae, data = _ar_inputs(job)
    return train_ar(sizes, vae, data, job.recipe, job.run, device, job.execution), data


def dry_run(job: VAEJob | ARJob | AllJob) -> str:
    """Estimated cost of a job, as lines of text; ValueError if its data, VAE or sizes do not fit, or the memory."""
    if isinstance(job, VAEJob):
        return _planned(job, _vae_inputs(job)[1])
    if isinstance(job, ARJob):
        return _planned(job, _ar_inputs(job)[2])
    vae, ar = job.jobs()
    data = check_jobs(vae, ar)
    return f"VAE\n{_planned(vae, data)}\n\nAR model\n{_planned(ar, data)}"


def check_jobs(vae: VAEJob, ar: ARJob) -> ImageData:
    """The data of both trainings. ValueError if they, the VAE and the AR model do not fit, before any is trained."""
    check_pair(vae.model, ar.model)
    _, data = _vae_inputs(vae)
    check_classes(data, ar.model)
    for job in (vae, ar):
        check_images(data, vae.model.image_size, job.recipe)
    return data


def _planned(job: VAEJob | ARJob, data: ImageData) -> str:
    teraflops, device = job.teraflops, pick_device(job.device)
    require(0 < teraflops < math.inf, f"teraflops is {teraflops}; expected a finite number above 0")
    limit, devices = device_memory(device, job.device_memory), job.devices or int(os.environ.get("WORLD_SIZE", "1"))
    step: Callable[[Execution], tuple[torch.nn.Module, StepFunction]]
    if isinstance(job, VAEJob):
        step = partial(vae_step, job.model, job.recipe, device=device)
    else:
        check_classes(data, job.model)
        step = partial(ar_step, job.model, job.recipe, device=device)
    check_images(data, data.image_size, job.recipe)
    check_graphs(job.recipe, device, job.execution)
    indices = data.spread(64)
    data.batch(indices, job.recipe.augmentation_at(0))
    check_broken(data, job.recipe.max_broken)

    def measure(execution: Execution) -> Estimate:
        return estimate(*step(execution), job.recipe, execution, devices)

    cost = check_memory(measure, job.recipe, job.execution, devices, limit)
    checked = f"{len(indices)} read to check, {len(data.broken)} of them broken"
    text = report(cost, job.recipe, len(data), devices, job.teraflops)
    outlook = f"{tokens_line(job.model)}\n{_outlook(job, data)}" if isinstance(job, VAEJob) else ""
    return f"data                {data.describe()}; {checked}\n{outlook}{text}"


def _outlook(job: VAEJob, data: ImageData) -> str:
    """What of the AR model's training will not fit, as a line; empty if nothing."""
    batch = start_recipes(job.preset, job.data, len(data)).ar.batch_size
    if batch <= len(data):
        return ""
    return f"will not fit        `train ar` takes batches of {batch}, of {len(data)} images: give it --batch-size\n"


def main(args: Sequence[str] | None = None) -> int:
    """`python -m spherear.train vae|ar ...`; returns the exit status. For `all`, see `spherear.train_all`."""
    return exit_status(lambda: run(parse_job(take_imports(sys.argv[1:] if args is None else args))))


def run(job: VAEJob | ARJob | AllJob) -> int:
    """Train a VAE or an AR model, or say what any job would take; returns the exit status."""
    if not isinstance(job, AllJob) and job.execution.average_on:
        pick_device(job.execution.average_on)
    if job.dry_run:
        print_rank_zero(dry_run(job))
        return 0
    if isinstance(job, AllJob):
        raise ValueError("the job is 'all'; expected vae or ar here: `spherear train all` does both")
    vae = isinstance(job, VAEJob)
    states, data = states_of(job)
    try:
        observers = observers_of(job, data)
        finished = watch(states, f"{'VAE' if vae else 'AR model'} ({job.preset})", job.recipe.steps, observers)
    except Exception as error:
        print(*getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        raise
    end_processes()
    if not finished:
        print_rank_zero(f"stopped: {job.run} holds all it takes; the same command goes on")
        return INTERRUPTED
    print_rank_zero(f"finished: {job.run}{_skipped(job.run)}")
    return 0


def _skipped(run: Path) -> str:
    """How many images of a run could not be read, and where they are listed; empty if all could."""
    count = len(skipped_images(run))
    return f"; {count} images could not be read: {run / SKIPPED.format('*')} says why" if count else ""


if __name__ == "__main__":
    sys.exit(main())
