"""The numbers of the recipes: the paper's, and those by which the small models are trained."""

import math
from dataclasses import replace

import pytest
from torch.testing import assert_close

from spherear.training.jobs import Execution
from spherear.training.recipes import Recipe, recipes


def test_the_papers_recipe_to_its_last_number():
    """100 and 400 epochs of 1,281,167 images in whole batches; every weight, rate, crop and fade of the paper."""
    plan, epoch = recipes("imagenet256-H"), 1_281_167
    shared = {"weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95, "clip": 1.0, "precision": "bfloat16", "crop": 1.25,
              "flip": True}  # fmt: skip
    vae = {"steps": 100 * (epoch // 256), "ema_decay": 0.0, "warmup_steps": 0, "l1_weight": 1.0, "lpips_weight": 1.0,
           "gan_weight": 0.5, "gan_start": 20_000, "kl_weight": 0.004, "fade_start": -1, "fade_end": -1}  # fmt: skip
    ar = {"steps": 400 * (epoch // 512), "ema_decay": 0.9999, "label_dropout": 0.1, "repeats": 4, "fade_start": 350,
          "fade_end": 375}  # fmt: skip
    for recipe, expected in ((plan.vae, shared | vae), (plan.ar, shared | ar)):
        values = recipe.to_dict()
        assert {name: values[name] for name in expected} == expected


SMALL = {  # steps, batch size, peak and final learning rate, warm-up, EMA of the VAE and of the AR model; KL weight
    "digits": ((600, 32, 2e-3, 1e-4, 50, 0.0), (1000, 32, 2e-3, 1e-5, 50, 0.99), 0.004),
    "shapes": ((6000, 16, 1e-3, 1e-5, 100, 0.0), (6000, 16, 1e-3, 1e-5, 100, 0.998), 0.002),
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_recipes_of_the_small_models_are_those_they_were_trained_by(name):
    plan, (vae, ar, kl_weight) = recipes(name), SMALL[name]
    fields = ("steps", "batch_size", "learning_rate", "final_learning_rate", "warmup_steps", "ema_decay")
    for recipe, expected in ((plan.vae, vae), (plan.ar, ar)):
        assert tuple(getattr(recipe, field) for field in fields) == expected
        assert (recipe.weight_decay, recipe.beta1, recipe.beta2, recipe.clip) == (0.05, 0.9, 0.95, 1.0)
    assert (plan.vae.l1_weight, plan.vae.kl_weight) == (1.0, kl_weight)
    assert (plan.ar.label_dropout, plan.ar.repeats) == (0.1, 4)


def test_a_learning_rate_falls_along_half_a_cosine():
    recipe = Recipe(steps=110, batch_size=1, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10, ema_decay=0.0)
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    assert_close([recipe.learning_rate_at(n) for n in (35, 85)], [quarter, 1.1 - quarter])


def test_crops_fade_linearly_from_the_first_epoch_to_the_last():
    ar = recipes("imagenet256-B").ar
    for epoch, weight in ((0, 1.0), (350, 1.0), (360, 0.6), (370, 0.2), (375, 0.0), (399, 0.0)):
        augmentation = ar.augmentation_at(epoch)
        assert augmentation.crop == pytest.approx(1 + 0.25 * weight)
        assert augmentation.spread == pytest.approx(weight)
        assert augmentation.flip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected a finite number, 0 or more"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"fade_start": -7, "fade_end": 3}, "crops fade from epoch -7 to 3; expected the first to be smaller, or both"),
        ({"fade_start": 3, "fade_end": 3}, "crops fade from epoch 3 to 3"),
    ],
)
def test_recipes_that_cannot_be(change, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        replace(recipes("digits").vae, **change)


@pytest.mark.parametrize("name", ["workers", "preview_every"])
def test_executions_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"{name} is -1; expected 0 or more"):
        Execution(**{name: -1})
