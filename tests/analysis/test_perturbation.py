"""Errors put in by hand: their sizes, what a projection removes of them, and what reaches the pixels."""

import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.analysis.perturbation import (
    KINDS,
    Perturbation,
    directions,
    error_growth,
    growth_slope,
    perturbed,
    perturbed_decode,
)
from spherear.sampling.decode import decode, trace
from spherear.sampling.noise import seeded_noise
from spherear.sphere.geometry import project

SETTINGS = SamplingSettings(guidance_scale=2.0, solver="euler", steps=4)
SIZES = [1e-4, 3e-4, 1e-3, 3e-3]


@pytest.fixture(scope="module")
def trained():
    """The model that ships, in float64."""
    pipeline = Pipeline.from_pretrained("digits-power_spherical")
    pipeline.vae.double()
    pipeline.ar.double()
    return pipeline


def growths(pipeline, kind, projected, position=4):
    return [
        error_growth(pipeline, Perturbation((3, 7), 0, SETTINGS, position, kind, size), projected) for size in SIZES
    ]


@pytest.mark.parametrize(
    ("kind", "projected", "order"),
    [
        ("radial", False, 1),
        ("tangential", True, 1),
        ("tangential", False, 1),
        ("turning", True, 2),
        ("turning", False, 1),
    ],
)
def test_order_to_which_errors_are_kept(trained, kind, projected, order):
    """The paper's argument, on a trained model: with a projection only the second order of a radial error is left."""
    grown = growths(trained, kind, projected)
    assert growth_slope(SIZES, [g.pixels for g in grown]) == pytest.approx(order, abs=0.1)
    for position in (4, 5, 15):  # its own token, the next and the last
        assert growth_slope(SIZES, [float(g.latents[position]) for g in grown]) == pytest.approx(order, abs=0.1)


def test_an_exactly_radial_error_is_removed_to_all_orders(trained):
    for grown in growths(trained, "radial", True):
        assert grown.pixels < 1e-10
        assert grown.latents.max() < 1e-10
    assert min(g.pixels for g in growths(trained, "radial", False)) > 1e-6


def test_nothing_changes_before_the_perturbation(trained):
    grown = error_growth(trained, Perturbation((3, 7), 0, SETTINGS, 6, "tangential", 0.1))
    assert_close(grown.latents[:6], torch.zeros(6, dtype=torch.float64), atol=0, rtol=0)
    assert grown.latents[6:].min() > 0


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_perturbations_have_their_size_and_direction(kind):
    raw = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, v = directions(raw, seed=3)
    assert_close((u * v).sum(-1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    for w in (u, v):
        assert_close(w.norm(dim=-1), torch.ones(5, dtype=torch.float64), atol=1e-12, rtol=0)
    change = perturbed(lambda z: z, 1, kind, 0.3, seed=3)
    assert_close(change(raw), raw, atol=0, rtol=0)  # token 0
    moved = change(raw) - raw  # token 1
    assert_close(moved.norm(dim=-1), torch.full((5,), 0.3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(change(raw), raw, atol=0, rtol=0)  # token 2
    share = {"radial": 1.0, "tangential": 0.0, "turning": torch.cos(torch.tensor(0.3)).item()}[kind]
    assert_close((moved * u).sum(-1) / 0.3, torch.full((5,), share, dtype=torch.float64), atol=1e-7, rtol=0)


def test_the_tangential_error_is_what_geometry_says():
    """N(z + s v) for z of length R: moved by the chord of the angle atan(s/R)."""
    z = project(torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 2.0)
    moved = perturbed(lambda x: project(x, 2.0), 0, "tangential", 0.5)(z)
    angle = torch.atan(torch.tensor(0.25, dtype=torch.float64))
    assert_close((moved - z).norm(dim=-1), (4 * torch.sin(angle / 2)).expand(4), atol=1e-12, rtol=0)


def test_slopes_of_powers():
    sizes = [0.1, 0.2, 0.5]
    assert growth_slope(sizes, [7 * s**3 for s in sizes]) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="expected two or more each, all above 0"):
        growth_slope(sizes, [1.0, 0.0, 1.0])


@pytest.mark.parametrize("kind", ["radial", "tangential"])
@pytest.mark.parametrize("projected", [True, False])
def test_pairs_are_the_two_decodes(trained, kind, projected):
    """Against the token loop itself, run to its end without and with the perturbed projection."""
    perturbation = Perturbation((1, 3), 4, SETTINGS, 5, kind, 0.5)
    *_, pair = perturbed_decode(trained, perturbation, projected)
    inner = trained.vae.project if projected else lambda z: z
    projections = inner, perturbed(inner, 5, kind, 0.5, first_calls=2)
    labels = torch.tensor([1, 3])
    before, after = (
        trace(decode(trained.ar, labels, SETTINGS, seeded_noise([4, 5]), projection)).tokens
        for projection in projections
    )
    assert_close(pair.before.tokens, before, rtol=0, atol=0)
    assert_close(pair.after.tokens, after, rtol=0, atol=0)
    with torch.no_grad():
        pixels = (trained.vae.decode(after) - trained.vae.decode(before)).square().mean().sqrt()
    assert pair.pixels() == pytest.approx(float(pixels), rel=1e-9)
    growth = error_growth(trained, perturbation, projected)
    assert_close(growth.latents, (after - before).square().sum(-1).mean(0).sqrt(), rtol=1e-9, atol=1e-12)
    assert growth.pixels == pair.pixels()


def test_pairs_begin_empty_and_grow_token_by_token(trained):
    pairs = list(perturbed_decode(trained, Perturbation((1,), 0, SETTINGS, 2, "radial", 0.5)))
    assert [pair.before.drawn for pair in pairs] == list(range(17))
    assert bool(pairs[5].change()[5:].isnan().all())


def test_bad_requests(tiny_vae, tiny_ar):
    pipeline = Pipeline(tiny_vae, tiny_ar)
    with pytest.raises(ValueError, match="kind is 'sideways'; expected one of 'radial', 'tangential', 'turning'"):
        Perturbation((1,), 0, SETTINGS, 0, "sideways", 0.1)
    with pytest.raises(ValueError, match="position is 16; expected below 16"):
        perturbed_decode(pipeline, Perturbation((1,), 0, SETTINGS, 16, "radial", 0.1))
    with pytest.raises(ValueError, match=r"position and size are 0 and -0.1"):
        Perturbation((1,), 0, SETTINGS, 0, "radial", -0.1)
