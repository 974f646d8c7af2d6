"""The recipe of a distillation. Does not import torch."""

import math
from dataclasses import dataclass
from typing import Literal

from spherear.models.config import one_of, require
from spherear.training.recipes import ARRecipe

OBJECTIVES = ("trajectory", "shortcut", "mean_flow")
"""How the student learns; a function of each is in `distillation.objective`."""


@dataclass(frozen=True)
class DistillRecipe(ARRecipe):
    """Training of a head of few evaluations by the velocity head of a trained AR model."""

    steps: int = 4000
    """Total optimiser steps."""
    batch_size: int = 16
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_steps: int = 100
    """Steps of linear warm-up from zero."""
    ema_decay: float = 0.998
    """Decay of the averaged weights (EMA), which are used for sampling. 0: no EMA."""
    cached_copies: int = 1
    """Epochs whose posteriors are cached and reused in turn, with fresh samples. 0: encode at every step."""
    save_every: int = 250
    """Steps between checkpoints."""
    objective: "Literal[*OBJECTIVES]" = "trajectory"  # type: ignore[valid-type]
    """trajectory: the teacher's own steps, whole and in part. shortcut: the velocity, and half steps of the student.
    mean_flow: the velocity, and the derivative of the student along it."""
    teacher_steps: int = 12
    """Adams-Bashforth steps of the teacher, of `trajectory`."""
    largest_scale: float = 8.0
    """Guidance scale up to which the student learns, from 1."""

    def check(self) -> None:
        super().check()
        one_of("objective", self.objective, OBJECTIVES)
        require(1 <= self.teacher_steps <= 1000, f"teacher_steps is {self.teacher_steps}; expected 1 to 1000")
        scale = self.largest_scale
        require(1 <= scale < math.inf, f"largest_scale is {scale}; expected a finite number, 1 or more")
