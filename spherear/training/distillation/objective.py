"""What a student learns from: the teacher's guided velocity, or the steps that a solver takes with it."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.heads.mean_velocity import MeanVelocityHead, mean_flow_loss, shortcut_loss, weighted
from spherear.models.heads.velocity import VelocityHead, random_noise, repeated
from spherear.sampling.head_sampling import guide
from spherear.sampling.solvers import SOLVERS
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.objectives import ARObjective


class Teacher:
    """A velocity head at the conditions of some tokens, guided: v = null + s (cond - null), s of every row."""

    def __init__(self, head: VelocityHead, condition: Tensor, null: Tensor, scale: Float[Tensor, " rows"]) -> None:
        self.head, self.scale = head, scale[:, None]
        self.embedded = head.embed_condition(torch.cat((condition, null)))  # (2 rows, width)

    @torch.no_grad()
    def velocity(self, x: Float[Tensor, "rows dim"], t: Float[Tensor, "*rows"]) -> Float[Tensor, "rows dim"]:
        """Guided velocity at x, at one time for all rows or one of each."""
        time = self.head.embed_time(t)
        time = torch.cat((time, time)) if t.ndim else time
        return guide(self.head.modulated_velocity(x, self.head.modulate(time + self.embedded)), self.scale)

    def trajectory(self, noise: Float[Tensor, "rows dim"], steps: int) -> Float[Tensor, "points rows dim"]:
        """The states at `steps` + 1 even times, by Adams-Bashforth steps in the head's space."""
        states = list[Tensor]()

        def velocity(x: Tensor, t: float) -> Tensor:
            states.append(x)
            return self.velocity(x, x.new_tensor(t))

        times, space = torch.linspace(0, 1, steps + 1).tolist(), self.head.space
        end = SOLVERS["adams_bashforth"](velocity, space.start(noise)[None], times, space)
        return torch.stack([*states, end])


class DistillObjective(ARObjective):
    """The loss of a student's head against a teacher's, on the tokens of images and with the same conditions.

    model: the student, whose transformer is the teacher's.  teacher: the velocity head.
    """

    def __init__(self, model: SphereAR, teacher: VelocityHead, recipe: DistillRecipe) -> None:
        super().__init__(model, recipe)
        self.distillation = recipe
        self.teacher = teacher.requires_grad_(False).eval()

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], labels: Int[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Mean loss per token; all randomness from `generator`."""
        labels = self.drop(labels, generator)
        with torch.no_grad():
            condition = self.model(tokens, labels)
            null = self.model(tokens, torch.full_like(labels, self.model.null_label))
        return LOSSES[self.distillation.objective](self, tokens, condition, null, generator)

    @property
    def student(self) -> MeanVelocityHead:
        """The head that learns."""
        assert isinstance(self.model.head, MeanVelocityHead)
        return self.model.head


Loss = Callable[[DistillObjective, Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""loss(objective, tokens, condition, null, generator)."""


def trajectory_loss(
    objective: DistillObjective, tokens: Tensor, condition: Tensor, null: Tensor, generator: torch.Generator
) -> Float[Tensor, ""]:
    """mean |u(x_a, a, b) - step(x_a, x_b) / (b - a)|^2 / s over pairs of states of the teacher's own draws.

    A draw begins at noise and has a scale s of its own. Of every draw, one pair is the whole of it and
    `repeats` - 1 are any two of its times. Targets are exact: nothing of the student's enters them.
    """
    student, steps, repeats = objective.student, objective.distillation.teacher_steps, objective.recipe.repeats
    condition, null, rows = repeated(condition, 1), repeated(null, 1), repeated(tokens, 1)
    low, high = student.scales.float().unbind()
    uniform = torch.rand((3, repeats, len(rows)), generator=generator, device=rows.device)
    scale = low + (high - low) * uniform[2, 0]
    with torch.no_grad():
        states = Teacher(objective.teacher, condition, null, scale).trajectory(random_noise(rows, generator), steps)
        first = (uniform[0] * steps).long()
        last = first + 1 + (uniform[1] * (steps - first)).long()
        first[0], last[0] = 0, steps
        index = torch.arange(len(rows), device=rows.device)
        x, there = (states[which, index].flatten(0, 1) for which in (first, last))  # (repeats * rows, dim)
        t, end = (which.flatten() / steps for which in (first, last))
        target = student.space.step(x, there) / (end - t)[:, None]
    scale = scale.repeat(repeats)
    return weighted(student(x, t, condition.repeat(repeats, 1), end, scale) - target, 1 / scale)


def _velocity_loss(loss: Callable[..., Tensor]) -> Loss:
    """A loss of the teacher's velocity on paths from noise to tokens."""

    def of(
        objective: DistillObjective, tokens: Tensor, condition: Tensor, null: Tensor, generator: torch.Generator
    ) -> Tensor:
        student, repeats = objective.student, objective.recipe.repeats
        drawn = student.draws(tokens, repeats, generator, plain=0.0)
        rows, condition, null = (repeated(x, repeats) for x in (tokens, condition, null))
        t, end, scale = drawn["times"], drawn["ends"], drawn["scales"]
        x, _ = student.space.path(drawn["noise"], rows, t[:, None])
        velocity = Teacher(objective.teacher, condition, null, scale).velocity(x, t)
        return loss(student.space, student.average(condition, scale), x, t, end, velocity, 1 / scale)

    return of


LOSSES: dict[str, Loss] = {
    "trajectory": trajectory_loss,
    "shortcut": _velocity_loss(shortcut_loss),
    "mean_flow": _velocity_loss(mean_flow_loss),
}
"""Of every name of `recipe.OBJECTIVES`.

`python -m spherear.study.few_evaluations` measures which comes nearest to the teacher.
"""
