"""The training loop of a distillation. It resumes, logs and stops as the other loops do, with the same `Run`."""

import copy
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import torch

from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import seeded
from spherear.models.presets import check_pair
from spherear.models.pretrained import CONFIG_FILE, fingerprint
from spherear.models.vae import VAE
from spherear.sphere.bottlenecks import Latent
from spherear.training.build import autocast, cached_posteriors, check_classes, check_images, laid_out, prepared
from spherear.training.data.dataset import ImageData
from spherear.training.distillation.objective import DistillObjective, frozen
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.jobs import PLAIN, Execution
from spherear.training.run import Run, TrainState
from spherear.world import launched_world


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
    vae = vae.to(device).eval()
    teacher = copy.deepcopy(ar.head).to(device)
    assert isinstance(teacher, VelocityHead)
    world = launched_world(device, execution.sharded, execution.timeout)
    model = student_of(ar, recipe).to(device).train()
    facts = {"kind": "ar", "data": data.spec, "dataset": data.facts(), "model": model.config.to_dict()}
    facts |= {"vae": fingerprint(vae), "teacher": fingerprint(ar)}
    run = Run(model, recipe, facts, None if folder is None else Path(folder) / "ar", world, execution)
    if folder is not None and world.first and not (Path(folder) / "vae" / CONFIG_FILE).exists():
        vae.save_pretrained(Path(folder) / "vae")
    objective = prepared(DistillObjective(model, teacher, recipe), model, world, execution)
    posterior: Callable[..., Latent] = vae.posterior
    if recipe.cached_copies and not run.done:
        data, posterior = cached_posteriors(vae, data, recipe, device, execution, world), vae.constrain
    feed = run.feed(data, device, 0 if recipe.cached_copies else execution.workers)
    with run.checkpointed():
        for batch in feed:
            for part in run.micro_batches(objective, batch):
                generator = run.generator(device, part.number)
                with autocast(device, recipe.precision):
                    with torch.no_grad():
                        tokens = posterior(laid_out(part.inputs, execution), generator).sample
                    loss = objective(tokens, part.labels, generator)
                run.accumulate({"loss": loss}, len(batch))
            yield run.update()


def student_name(ar: SphereAR) -> str:
    """The row of HEADS for a student of this AR model: geodesic if the teacher is.

    TypeError for an AR model whose head has no velocity to learn from.
    """
    if not isinstance(ar.head, VelocityHead) or ar.head.takes_scale:
        raise TypeError(f"the teacher's head is {ar.config.head_kind.title}; expected a velocity, flat or geodesic")
    return "geodesic_mean" if ar.head.curved else "mean_velocity"


def student_of(ar: SphereAR, recipe: DistillRecipe) -> SphereAR:
    """A copy of the AR model with a head of average velocities that begins as the teacher's; only the head learns.

    Weights of the teacher's head that fit by name and shape are copied. Errors: as `student_name`.
    """
    config = replace(ar.config, head=student_name(ar))
    student = seeded(recipe.seed, SphereAR, config)
    own = student.state_dict()
    fitting = {k: v for k, v in ar.state_dict().items() if k in own and v.shape == own[k].shape}
    student.load_state_dict(own | fitting)
    assert isinstance(student.head, MeanVelocityHead)
    student.head.scales.copy_(torch.tensor([1.0, recipe.largest_scale]))
    frozen(student, but=student.head)
    return student
