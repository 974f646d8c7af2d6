"""Training recipes of all presets, as a table. Does not import torch."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from spherear.models.config import Config, one_of, require
from spherear.training.augment import Augmentation

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe(Config):
    """Shared by both training loops: AdamW with linear warm-up, then cosine decay of the learning rate."""

    steps: int
    """Total optimiser steps."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """Peak learning rate."""
    final_learning_rate: float
    """Learning rate at the end of the cosine. Equal to the peak: constant."""
    warmup_steps: int
    """Steps of linear warm-up from zero."""
    ema_decay: float
    """Decay of the averaged weights (EMA), which are used for sampling. 0: no EMA."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on matrices only."""
    beta1: float = 0.9
    """First-moment decay of AdamW."""
    beta2: float = 0.95
    """Second-moment decay of AdamW."""
    clip: float = 1.0
    """Maximum gradient norm."""
    precision: Literal[*PRECISIONS] = "float32"  # type: ignore[valid-type]
    """bfloat16 uses autocast."""
    seed: int = 0
    """Seed of weights, data order, posterior samples and noise."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    micro_batches: int = 1
    """Gradient accumulation: a batch is computed in this many equal parts, or in more if the processes need more.
    The effective batch is always batch_size: 8 on 8 processes is one each, on 2 processes four each."""
    skip_limit: int = 10
    """The run stops after this many consecutive steps with a non-finite loss or gradient; each is skipped."""
    max_broken: float = 0.01
    """The run stops if more than this share of the images is broken."""
    crop: float = 1.0
    """Photographs only: the shorter side is resized to 1 to `crop` times the image size, then cropped at random."""
    flip: bool = False
    """Photographs only: mirror each image with probability 1/2."""
    fade_start: int = -1
    """Epoch from which random crops move to the centre. -1: never."""
    fade_end: int = -1
    """Epoch from which all crops are centre crops."""

    def check(self) -> None:
        for name in ("steps", "batch_size", "save_every", "log_every", "micro_batches", "skip_limit"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; expected at least 1")
        for name in ("learning_rate", "final_learning_rate", "clip"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}; expected a finite number above 0")
        for name in ("ema_decay", "beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; expected 0 or more and below 1")
        decay = self.weight_decay
        require(0 <= decay < math.inf, f"weight_decay is {decay}; expected a finite number, 0 or more")
        require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; expected 0 or more")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}; expected an integer from 0 to 2^63 - 1")
        one_of("precision", self.precision, PRECISIONS)
        require(
            self.batch_size % self.micro_batches == 0,
            f"micro_batches is {self.micro_batches}; expected a divisor of the batch size, {self.batch_size}",
        )
        require(0 <= self.max_broken <= 1, f"max_broken is {self.max_broken}; expected a share from 0 to 1")
        require(1 <= self.crop < math.inf, f"crop is {self.crop}; expected a finite number, 1 or more")
        require(
            0 <= self.fade_start < self.fade_end or self.fade_start == self.fade_end == -1,
            f"crops fade from epoch {self.fade_start} to {self.fade_end}; expected the first to be smaller, or both -1",
        )

    def micro_batches_on(self, processes: int) -> int:
        """Micro-batches of a batch on so many processes: at least `micro_batches`, and equally many on each.

        ValueError if the batch cannot be divided so.
        """
        counts = range(processes, self.batch_size + 1, processes)
        found = [n for n in counts if n >= self.micro_batches and self.batch_size % n == 0]
        require(
            bool(found),
            f"batch_size is {self.batch_size}; expected a multiple of the {processes} processes, so that each computes "
            "an equal share of every batch",
        )
        return found[0]

    def learning_rate_at(self, step: int) -> float:
        """Linear from 0 over the warm-up, then half a cosine to the final rate; `step` counts from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        weight = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_learning_rate + weight * (self.learning_rate - self.final_learning_rate)

    def augmentation_at(self, epoch: int) -> Augmentation:
        """Augmentation of an epoch: random crops fade to centre crops, flips stay."""
        weight = 1.0
        if self.fade_start >= 0:
            weight = 1 - min(1.0, max(0.0, (epoch - self.fade_start) / (self.fade_end - self.fade_start)))
        return Augmentation(self.seed, epoch, 1 + weight * (self.crop - 1), weight * (self.crop > 1), self.flip)


@dataclass(frozen=True)
class VAERecipe(Recipe):
    """Training of a VAE. The default loss weights are the paper's."""

    l1_weight: float = 1.0
    """Weight of the mean absolute pixel error."""
    kl_weight: float = 0.004
    """Weight of the mean KL per token, in nats."""
    lpips_weight: float = 0.0
    """Weight of the perceptual distance LPIPS. 0: not computed."""
    gan_weight: float = 0.0
    """Weight of the adversarial loss. 0: no critic."""
    gan_start: int = 20_000
    """Step from which the critic is trained and its loss is added."""

    def check(self) -> None:
        super().check()
        for name in ("l1_weight", "kl_weight", "lpips_weight", "gan_weight", "gan_start"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} is {value}; expected a finite number, 0 or more")


@dataclass(frozen=True)
class ARRecipe(Recipe):
    """Training of an AR model on a VAE's posterior samples."""

    label_dropout: float = 0.1
    """Share of labels replaced by the null class."""
    repeats: int = 4
    """Times and noises drawn per token."""
    cached_copies: int = 0
    """Epochs whose posteriors are cached and reused in turn, with fresh samples. 0: encode at every step."""

    def check(self) -> None:
        super().check()
        require(self.cached_copies >= 0, f"cached_copies is {self.cached_copies}; expected 0 or more")
        require(0 <= self.label_dropout < 1, f"label_dropout is {self.label_dropout}; expected 0 or more, below 1")
        require(self.repeats >= 1, f"repeats is {self.repeats}; expected at least 1")


@dataclass(frozen=True)
class Recipes:
    """A preset's data set and its two recipes."""

    data: str
    vae: VAERecipe
    ar: ARRecipe


_IMAGENET_EPOCH = 1_281_167
_IMAGENET = Recipes(
    "folder:imagenet/train",
    VAERecipe(
        steps=100 * (_IMAGENET_EPOCH // 256), batch_size=256, learning_rate=1e-4, final_learning_rate=1e-4,
        warmup_steps=0, ema_decay=0.0, precision="bfloat16", save_every=5000, log_every=100, micro_batches=8,
        crop=1.25, flip=True, lpips_weight=1.0, gan_weight=0.5,
    ),
    ARRecipe(
        steps=400 * (_IMAGENET_EPOCH // 512), batch_size=512, learning_rate=3e-4, final_learning_rate=1e-5,
        warmup_steps=20_000, ema_decay=0.9999, precision="bfloat16", save_every=5000, log_every=100, micro_batches=8,
        crop=1.25, flip=True, fade_start=350, fade_end=375,
    ),
)  # fmt: skip

_DIGITS = Recipes(
    "digits",
    VAERecipe(
        steps=600, batch_size=32, learning_rate=2e-3, final_learning_rate=1e-4, warmup_steps=50, ema_decay=0.0,
        save_every=100,
    ),
    ARRecipe(
        steps=1000, batch_size=32, learning_rate=2e-3, final_learning_rate=1e-5, warmup_steps=50,
        ema_decay=0.99, save_every=100,
    ),
)  # fmt: skip

_SHAPES = Recipes(
    "shapes",
    VAERecipe(
        steps=6000, batch_size=16, learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=100, ema_decay=0.0,
        kl_weight=0.002, save_every=250,
    ),
    ARRecipe(
        steps=6000, batch_size=16, learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=100,
        ema_decay=0.998, save_every=250, cached_copies=1,
    ),
)  # fmt: skip

RECIPES: dict[str, Recipes] = {
    "digits": _DIGITS,
    "digits3": _DIGITS,
    "mnist": replace(_SHAPES, data="mnist"),
    "shapes": _SHAPES,
    "shapes16": _SHAPES,
    "shapes256": _SHAPES,
    **{f"imagenet256-{size}": _IMAGENET for size in "BLH"},
}  # fmt: skip


def recipes(name: str) -> Recipes:
    """The recipes of a preset. Unknown names: ValueError that lists the known ones."""
    one_of("preset", name, RECIPES)
    return RECIPES[name]
