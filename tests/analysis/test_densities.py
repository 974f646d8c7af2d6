"""Laws of a direction against scipy, quadrature and each other."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.testing import assert_close

from spherear.analysis.densities import (
    angle_histogram,
    angle_laws,
    cosine_density,
    gaussian_cosine,
    projected_gaussian_log_density,
    solve,
    sphere_mesh,
    vmf_cosine,
)
from spherear.sphere.distributions import PowerSpherical, VonMisesFisher

F64 = torch.float64


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


def test_cosine_density_is_that_of_the_law():
    axis = torch.tensor([0.6, 0.0, -0.8, 0.0], dtype=F64)
    t = torch.linspace(-1 + 1e-6, 1 - 1e-6, 20_001, dtype=F64)
    flat = PowerSpherical(axis, torch.tensor(0.0, dtype=F64))
    # uniform in 4 dimensions: (1 + t)/2 ~ Beta(3/2, 3/2)
    expected = torch.from_numpy(stats.beta(1.5, 1.5).pdf((1 + t.numpy()) / 2)) / 2
    assert_close(cosine_density(flat, t), expected, rtol=1e-6, atol=1e-9)
    for law in (PowerSpherical(axis, torch.tensor(7.0, dtype=F64)), VonMisesFisher(axis, torch.tensor(7.0, dtype=F64))):
        density = cosine_density(law, t)
        assert float(torch.trapezoid(density, t)) == pytest.approx(1, abs=1e-4)
        assert float(torch.trapezoid(t * density, t)) == pytest.approx(float(law.mean_length), abs=1e-4)
