"""What the live panels show, against other ways to the same numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from spherear.analysis.canvas import expected_length
from spherear.analysis.densities import (
    angle_histogram,
    angle_laws,
    gaussian_cosine,
    projected_gaussian_log_density,
    solve,
    sphere_mesh,
    vmf_cosine,
)
from spherear.analysis.perturbation import Perturbation, error_growth, perturbed_decode
from spherear.analysis.trajectories import arrow_tips, token_path
from spherear.live.length_overlay import overlay_lengths
from spherear.live.sheet import Picture, free_path, paint
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import SamplingSettings


@pytest.mark.parametrize("concentration", [0.1, 5.0, 50.0])
def test_the_three_laws_are_laws_of_one_mean_cosine(concentration):
    laws = angle_laws(concentration, samples=4000, resolution=2001)
    for law in laws.laws:
        total = np.trapezoid(law.by_angle.numpy(), laws.angles.numpy())
        mean = np.trapezoid((law.by_angle * laws.angles.cos()).numpy(), laws.angles.numpy())
        assert total == pytest.approx(1, abs=1e-3)
        assert mean == pytest.approx(law.mean_cosine, abs=1e-3)
        assert law.mean_cosine == pytest.approx(concentration / (concentration + 2), abs=1e-9)
        assert float(law.samples[:, 2].mean()) == pytest.approx(mean, abs=0.04)
        torch.testing.assert_close(law.samples.norm(dim=-1), torch.ones(4000, dtype=torch.float64))


def test_von_mises_fisher_is_scipys():
    law = angle_laws(20.0, matched=False).laws[1]
    angles = np.linspace(0, math.pi, 181)
    points = np.stack((np.sin(angles), 0 * angles, np.cos(angles)), axis=1)
    expected = stats.vonmises_fisher([0, 0, 1], 20.0).pdf(points)
    np.testing.assert_allclose(law.density, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0, 20.0])
def test_the_mean_cosine_of_a_projected_gaussian_is_that_of_its_density(sigma):
    axis, spread = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), torch.full((3,), sigma, dtype=torch.float64)

    def part(angle):
        point = torch.tensor([math.sin(angle), 0.0, math.cos(angle)], dtype=torch.float64)
        density = float(projected_gaussian_log_density(point, axis, spread).exp())
        return 2 * math.pi * math.sin(angle) * math.cos(angle) * density

    assert gaussian_cosine(sigma) == pytest.approx(integrate.quad(part, 0, math.pi)[0], abs=1e-9)


def test_the_ends_of_the_formulas_meet():
    assert gaussian_cosine(29.999) == pytest.approx(gaussian_cosine(30.001), rel=2e-4)
    assert vmf_cosine(0.999e-3) == pytest.approx(vmf_cosine(1.001e-3), rel=1e-2)
    assert solve(lambda x: x**3, 8.0, 0.1, 10.0) == pytest.approx(2.0)
    assert solve(lambda x: 1 / x, 4.0, 0.1, 10.0) == pytest.approx(0.25)


def test_a_histogram_of_angles_has_area_one():
    centres, heights = angle_histogram(angle_laws(3.0, samples=500).laws[0].samples, bins=30)
    assert float(heights.sum() * math.pi / 30) == pytest.approx(1)
    assert float(centres[0]) == pytest.approx(math.pi / 60)


def test_the_mesh_is_the_sphere():
    points, faces = sphere_mesh(24)
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(len(points), dtype=torch.float64))
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1).sum() / 2
    assert float(area) == pytest.approx(4 * math.pi, rel=0.01)


@pytest.mark.parametrize("family", ["digits3-power_spherical", "digits3-gaussian", "digits-power_spherical"])
@pytest.mark.parametrize(
    ("scale", "solver", "schedule"),
    [
        *itertools.product((1.0, 6.0), ("euler", "heun", "euler_maruyama"), ("linear",)),
        (6.0, "euler", "constant"),
    ],
)
def test_a_path_ends_where_the_decode_does(family, scale, solver, schedule):
    pipeline = cached_pipeline(family)
    settings = SamplingSettings(guidance_scale=scale, solver=solver, steps=5, schedule=schedule)
    steps = list(pipeline.steps([4], settings, 5))
    for position in (0, 1, 9, 15):
        path = token_path(pipeline, 4, position, settings, 5)
        torch.testing.assert_close(path.points[-1], steps[position].raw[0], rtol=0, atol=3e-5)
        torch.testing.assert_close(path.token, steps[position].token[0], rtol=0, atol=3e-5)
        assert len(path.points) == len(path.times) == len(path.guided) + 1
        torch.testing.assert_close(path.guided, path.null + path.scale * (path.conditional - path.null))


def test_eulers_path_follows_its_velocities():
    path = token_path(
        cached_pipeline("digits3-gaussian"), 2, 7, SamplingSettings(guidance_scale=5.0, solver="euler", steps=8), 1
    )
    torch.testing.assert_close(path.points[1:], path.points[:-1] + path.guided / 8, rtol=0, atol=1e-5)
    torch.testing.assert_close(arrow_tips(path, 7)[2], path.points[-1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="step is 8"):
        arrow_tips(path, 8)


def test_a_path_needs_a_velocity_and_a_position():
    with pytest.raises(ValueError, match="expected one with a velocity"):
        token_path(cached_pipeline("digits3-vq"), 2, 7, SamplingSettings(), 1)
    with pytest.raises(ValueError, match="position is 16"):
        token_path(cached_pipeline("digits3-gaussian"), 2, 16, SamplingSettings(), 1)


@pytest.mark.parametrize("kind", ["radial", "tangential"])
def test_a_kick_is_followed_as_error_growth_does(kind):
    pipeline, settings = (
        cached_pipeline("digits-power_spherical"),
        SamplingSettings(guidance_scale=2.0, solver="euler", steps=4),
    )
    kick = Perturbation("digits-power_spherical", (1, 3), 4, settings, 5, kind, 0.5)
    *_, pairs = perturbed_decode(pipeline, kick)
    for pair in pairs:
        growth = error_growth(pipeline, [1, 3], settings, [4, 5], 5, kind, 0.5, pair.projected)
        torch.testing.assert_close(pair.change(), growth.latents, rtol=1e-3, atol=1e-6)
        assert pair.pixels() == pytest.approx(growth.pixels, rel=1e-3, abs=1e-6)


def test_painting_fills_in_token_by_token():
    settings = SamplingSettings(guidance_scale=2.0, solver="euler", steps=2)
    picture = Picture(("digits-power_spherical", "digits-gaussian"), (1, 2), 3, settings, 2)
    states = list(paint(picture))
    assert [canvases[0].drawn for canvases in states] == list(range(17))
    for canvas, name in zip(states[-1], picture.models, strict=True):
        torch.testing.assert_close(
            canvas.images(), cached_pipeline(name).sample([1, 2], settings, seeds=3), rtol=0, atol=0
        )
    frames = list(cached_pipeline(picture.models[0]).stream([1, 2], settings, seeds=3))
    for frame, canvases in zip(frames, states[1:], strict=True):
        torch.testing.assert_close(canvases[0].images(), frame.images, rtol=0, atol=0)
    raw, _ = states[4][0].lengths()
    assert bool(raw[:, :4].isfinite().all())
    assert bool(raw[:, 4:].isnan().all())
    assert expected_length(cached_pipeline("digits-gaussian")) == pytest.approx(math.sqrt(8))


def test_lengths_tint_their_own_patch_alone():
    white = np.full((2 * 17 * 2 + 2, 17 * 2 + 2, 3), 255, np.uint8)  # two images of 16 px below each other, zoom 2
    lengths = torch.full((2, 16), math.nan)
    lengths[1, 5] = 1.5
    tinted = overlay_lengths(white, lengths, 1.0, 1, 2)
    rows, columns = np.nonzero((tinted != white).any(axis=2))
    assert (rows.min(), rows.max()) == (2 + 34 + 8, 2 + 34 + 15)
    assert (columns.min(), columns.max()) == (2 + 8, 2 + 15)
    red, _, blue = tinted[2 + 34 + 8, 2 + 8].astype(int)
    assert red > blue  # longer is orange
    lengths[1, 5] = 0.5
    red, _, blue = overlay_lengths(white, lengths, 1.0, 1, 2)[2 + 34 + 8, 2 + 8].astype(int)
    assert blue > red  # shorter is blue
    assert (white == 255).all()


def test_a_free_path_is_free(tmp_path):
    path = tmp_path / "a.png"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "a-2.png").touch()
    assert free_path(path) == tmp_path / "a-3.png"
