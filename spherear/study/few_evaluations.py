"""Few evaluations by distilled heads: which objective learns best.

    python -m spherear.study.few_evaluations MODEL STEPS

distils MODEL once per objective, with the same recipe of STEPS steps, and prints how far the tokens of 1, 2 and 4
evaluations are from the solution of the teacher's flow, at true past tokens and guidance scale 3. One seed of training,
and no interval: images are compared by `spherear study heads`.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.analysis.latents import real_latents
from spherear.console import markdown_table
from spherear.models.ar import SphereAR
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.heads.velocity import VelocityHead
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN
from spherear.sampling.solvers import SOLVERS
from spherear.study.reference import data_of
from spherear.train import distill
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.training.distillation.objective import Teacher
from spherear.training.distillation.recipe import OBJECTIVES, DistillRecipe
from spherear.training.run import keyed_generator

EVALUATIONS = (1, 2, 4)
SCALE, IMAGES, SOLUTION = 3.0, 32, 100  # guidance scale, images, and steps of the teacher's solution


@torch.no_grad()
def token_error(
    student: SphereAR, teacher: SphereAR, latents: Float[Tensor, "n tokens dim"], labels: Tensor, steps: int
) -> float:
    """Root mean square distance, per number, of tokens of `steps` evaluations from the teacher's solution.

    All earlier tokens are true ones; noise and guidance scale are the same.
    """
    head, own = student.head, teacher.head
    assert isinstance(head, MeanVelocityHead)
    assert isinstance(own, VelocityHead)
    rows = latents.flatten(0, 1)
    condition, null = (teacher(latents, y).flatten(0, 1) for y in (labels, torch.full_like(labels, teacher.null_label)))
    scale = torch.full((len(rows),), SCALE)
    noise = torch.randn(rows.shape, generator=keyed_generator(0, 5))
    exact = Teacher(own, condition, null, scale).trajectory(noise, SOLUTION)[-1]
    times = torch.linspace(0, 1, steps + 1)
    average = head.average(condition, scale)

    def velocity(x: Tensor, t: float) -> Tensor:
        index = int(torch.searchsorted(times, t))
        return average(x, x.new_full((len(x),), t), x.new_full((len(x),), float(times[index + 1])))

    found = SOLVERS["euler"](velocity, head.space.start(noise)[None], times.tolist(), head.space)
    return float((found - exact).square().mean().sqrt())


def compare_objectives(
    pipeline: Pipeline, data: ImageData, recipe: DistillRecipe
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """(objective, `token_error` at 1, 2 and 4 evaluations) for every objective, with the same recipe."""
    latents, labels = real_latents(pipeline.vae, data, seed=1, limit=IMAGES)
    for objective in OBJECTIVES:
        for state in distill(pipeline.vae, pipeline.ar, data, replace(recipe, objective=objective)):
            student = state.model
        assert isinstance(student, SphereAR)
        errors = (token_error(student.eval(), pipeline.ar, latents, labels, n) for n in EVALUATIONS)
        yield objective, tuple(errors)


def main(model: str, steps: str) -> None:
    """Distil the model once per objective and print the table."""
    pipeline = Pipeline.from_pretrained(model, **AS_WRITTEN.to_dict())
    data = load_data(data_of(model, pipeline), pipeline.vae.config.image_size)
    recipe = DistillRecipe(steps=int(steps), cached_copies=0)
    rows = [(name, *(f"{e:.3f}" for e in errors)) for name, errors in compare_objectives(pipeline, data, recipe)]
    print(markdown_table(("objective", *(f"error at {n}" for n in EVALUATIONS)), rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
