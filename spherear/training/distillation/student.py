"""The student of a distillation, as it begins: a copy of the AR model with another head."""

from dataclasses import replace

import torch

from spherear.models.ar import SphereAR
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.heads.velocity import VelocityHead
from spherear.models.layers import seeded
from spherear.training.distillation.recipe import DistillRecipe


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
    student.requires_grad_(False).head.requires_grad_(True)
    return student
