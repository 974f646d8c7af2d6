"""Few evaluations by distilled heads: which objective learns best, and how the images compare with the teacher's.

    python -m spherear.study.few_evaluations objectives MODEL STEPS
    python -m spherear.study.few_evaluations scores MODEL STUDENT [COUNT]

`objectives` distils MODEL once per objective, with the same recipe of STEPS steps, and prints how far the tokens of 1,
2 and 4 evaluations are from the solution of the teacher's flow, at true past tokens and guidance scale 3. `scores`
draws COUNT images of the same labels and seeds with the teacher and with a STUDENT that `spherear distill` made, and
prints what a judge says. Neither is a study: one seed of training, and no interval.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.analysis.latents import real_latents
from spherear.console import markdown_table
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.heads.velocity import VelocityHead
from spherear.models.pretrained import shipped
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN
from spherear.sampling.settings import SamplingSettings
from spherear.sampling.solvers import SOLVERS
from spherear.study.reference import Reference, judge_of, trained_data
from spherear.train import distill
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.training.distillation.objective import Teacher
from spherear.training.distillation.recipe import OBJECTIVES, DistillRecipe
from spherear.training.recipes import recipes
from spherear.training.run import keyed_generator

EVALUATIONS = (1, 2, 4)
SCALE, IMAGES, SOLUTION = 3.0, 32, 100  # guidance scale, images, and steps of the teacher's solution
TEACHER = {
    101: SamplingSettings(),
    10: SamplingSettings(solver="adams_bashforth", steps=10),
}
"""Settings of the teacher in flat space, by evaluations."""


@dataclass(frozen=True)
class Score:
    """What a judge says of one head at one number of evaluations. accuracy: share recognised as their labels."""

    head: str
    evaluations: int
    accuracy: float
    frechet: float


def data_of(name: str, pipeline: Pipeline) -> str:
    """The data set that a run was trained on, or a shipped model was made for; ValueError if nothing says which."""
    preset_name = name.partition("-")[0]
    made_for = recipes(preset_name).data if name in shipped() else judge_of(pipeline)
    spec = trained_data(name)[0] or made_for
    require(bool(spec), f"data is empty, and {name} does not say what it was trained on; expected a data set")
    return spec


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


def compare_images(teacher: Pipeline, student: Pipeline, reference: Reference, count: int, scale: float) -> list[Score]:
    """Scores of `count` images with the student at 1, 2 and 4 evaluations and the teacher at 10 and 101."""
    labels = torch.arange(count) % teacher.ar.config.num_classes
    cases = [("student", student, n, SamplingSettings(scale, solver="euler", steps=n)) for n in EVALUATIONS]
    cases += [("teacher", teacher, n, replace(s, guidance_scale=scale)) for n, s in TEACHER.items()]
    scores = []
    for name, pipeline, evaluations, settings in cases:
        found = asdict(reference.judge(pipeline.sample(labels, settings, seeds=10_000), labels))
        scores.append(Score(name, evaluations, found["accuracy"], found["frechet"]))
    return scores


def main(kind: str, model: str, *rest: str) -> None:
    """Run one of the two comparisons and print its table."""
    require(kind in ("objectives", "scores"), f"comparison is {kind!r}; expected 'objectives' or 'scores'")
    pipeline = Pipeline.from_pretrained(model, **AS_WRITTEN.to_dict())
    spec = data_of(model, pipeline)
    if kind == "objectives":
        recipe = DistillRecipe(steps=int(rest[0]), cached_copies=0)
        data = load_data(spec, pipeline.vae.config.image_size)
        rows = [(name, *(f"{e:.3f}" for e in errors)) for name, errors in compare_objectives(pipeline, data, recipe)]
        print(markdown_table(("objective", *(f"error at {n}" for n in EVALUATIONS)), rows))
        return
    student = Pipeline.from_pretrained(rest[0], **AS_WRITTEN.to_dict())
    reference = Reference.load(spec, pipeline.vae.config.image_size)
    count = int(rest[1]) if len(rest) > 1 else 200
    scores = compare_images(pipeline, student, reference, count, SCALE)
    rows = [(s.head, str(s.evaluations), f"{s.accuracy:.3f}", f"{s.frechet:.3g}") for s in scores]
    print(markdown_table(("head", "evaluations", "recognised", "Frechet"), rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
