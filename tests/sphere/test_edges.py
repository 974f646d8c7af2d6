"""The error bounds that the laws' docstrings state, at the edges: dim 2 to 2048, kappa 0 to 1e8 and beyond."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence
from torch.testing import assert_close

from spherear.sphere.angular_central_gaussian import AngularCentralGaussian
from spherear.sphere.distributions import HypersphericalUniform
from spherear.sphere.gamma import digamma_difference, log_gamma_ratio
from spherear.sphere.laws import LARGEST
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.von_mises_fisher import VonMisesFisher, _angle_slope
from tests.sphere.truth import bessel, log_area, pole, power_spherical, units

KAPPAS = [1e-6, 1.0, 100.0, 1e4, 1e6, 1e8]
axial = pytest.mark.parametrize("law", [PowerSpherical, VonMisesFisher])


def double(x: float, **options) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64, **options)


def error(ours: torch.Tensor, theirs: Decimal) -> float:
    return float(abs(Decimal(ours.item()) - theirs))


def relative(ours: torch.Tensor, theirs: Decimal) -> float:
    return float(abs(Decimal(ours.item()) / theirs - 1))


def near(dim: int, kappa: float) -> torch.Tensor:
    """A unit vector about as far from the pole as the draws of that concentration."""
    theta = min(2.0, math.sqrt(dim / kappa))
    return math.cos(theta) * pole(dim) + math.sin(theta) * pole(dim).roll(1)


def one_minus_cosine(u: torch.Tensor) -> Decimal:
    """1 - e1 · u/|u| of a vector of two non-zero numbers, in the digits of Decimal."""
    a, b = Decimal(u[0].item()), Decimal(u[1].item())
    return 1 - a / (a * a + b * b).sqrt()


@pytest.mark.parametrize("dim", [2, 3, 16, 2048])
@pytest.mark.parametrize("kappa", KAPPAS)
def test_von_mises_fisher(dim, kappa):
    k, true, x = double(kappa, requires_grad=True), bessel(kappa, dim), Decimal(kappa)
    p, u = VonMisesFisher(pole(dim), k), near(dim, kappa)
    divergence = kl_divergence(p, HypersphericalUniform(dim, dtype=torch.float64))
    (slope,) = torch.autograd.grad(divergence, k)
    assert relative(p.mean_length, true.A) < 1e-15
    assert relative(p.variance[0], true.slope) < 1e-11
    assert relative(p.variance[1], true.A / x) < 1e-11
    assert error(divergence, x * true.A - true.M) < 1e-11
    assert relative(slope, x * true.slope) < 1e-11
    assert error(p.entropy(), log_area(dim) - x * true.A + true.M) < 1e-11
    log_prob = p.log_prob(u)
    assert error(log_prob, x - true.M - log_area(dim) - x * one_minus_cosine(u)) < 1e-11
    (slope,) = torch.autograd.grad(log_prob, k)
    assert error(slope, 1 - true.A - one_minus_cosine(u)) < 1e-15


@pytest.mark.parametrize("dim", [3, 17, 2047])
@pytest.mark.parametrize("kappa", KAPPAS)
def test_power_spherical(dim, kappa):
    k, true, x = double(kappa, requires_grad=True), power_spherical(kappa, dim), Decimal(kappa)
    p, u = PowerSpherical(pole(dim), k), near(dim, kappa)
    divergence = kl_divergence(p, HypersphericalUniform(dim, dtype=torch.float64))
    (slope,) = torch.autograd.grad(divergence, k)
    assert error(divergence, true.information) < 1e-11
    assert error(slope, true.slope) < 1e-12 * float(true.slope) + 1e-15
    assert error(p.entropy(), log_area(dim) - true.information) < 1e-11
    expected = true.log_peak - log_area(dim) + x * (1 - one_minus_cosine(u) / 2).ln()
    assert error(p.log_prob(u), expected) < 1e-11
    alpha, beta = x + (dim - 1) // 2, Decimal(dim - 1) / 2
    assert relative(p.mean_length, x / (alpha + beta)) < 1e-14
    across = 2 * alpha / ((alpha + beta) * (alpha + beta + 1))
    assert relative(p.variance[1], across) < 1e-14
    assert relative(p.variance[0], across * 2 * beta / (alpha + beta)) < 1e-14


@pytest.mark.parametrize("alpha", [1e4, 1e6, 1e8])
def test_gamma_ratio_of_a_half(alpha):
    """log Γ(a + 1/2)/Γ(a) = log(a)/2 - 1/(8a) + O(a^-3), as on the circle."""
    a = double(alpha)
    assert log_gamma_ratio(a, 0.5).item() == pytest.approx(math.log(alpha) / 2 - 1 / (8 * alpha), rel=1e-14)
    assert digamma_difference(a, 0.5).item() == pytest.approx(1 / (2 * alpha) + 1 / (8 * alpha**2), rel=1e-11)


@pytest.mark.parametrize("kappa", [1e3, 1e6, 1e8])
def test_divergences_between_narrow_laws(kappa):
    """(P_p - P_q) + (1 - A_p)(kappa_q - kappa_p) with P = kappa - M, all in 60 digits."""
    dim, wide = 17, 1.5 * kappa
    here, there, x = bessel(kappa, dim), bessel(wide, dim), Decimal(kappa)
    q = VonMisesFisher(pole(dim), double(wide))
    pair = kl_divergence(VonMisesFisher(pole(dim), double(kappa)), q)
    assert error(pair, there.M - here.M + here.A * (x - Decimal(wide))) < 1e-11
    mixed = kl_divergence(PowerSpherical(pole(dim), double(kappa)), q)
    expected = power_spherical(kappa, dim).information + there.M - Decimal(wide) * x / (x + dim - 1)
    assert error(mixed, expected) < 1e-11


def test_von_mises_fisher_draws_move_along_rays_at_a_large_concentration():
    """There θ sqrt(kappa) has a fixed law (chi), so dθ/dkappa = -θ/(2 kappa), up to O(1/kappa)."""
    for kappa in (1e8, 1e12, 1e20):
        theta = torch.linspace(0.5, 8, 30, dtype=torch.float64) / math.sqrt(kappa)
        k = torch.full_like(theta, kappa)
        for dim in (2, 3, 16):
            assert_close(_angle_slope(k, theta, dim), -theta / (2 * k), rtol=max(2e-13, 100 / kappa), atol=0)


@axial
@pytest.mark.parametrize("dim", [2, 16, 2048])
def test_the_largest_concentration_is_a_law_and_infinity_is_refused(law, dim):
    p = law(pole(dim), double(LARGEST))
    quantities = (p.log_prob(pole(dim)), p.entropy(), p.mean, p.variance, p.log_normalizer)
    assert all(quantity.isfinite().all() for quantity in quantities)
    assert (p.variance >= 0).all()
    assert_close(p.sample((9,), torch.Generator().manual_seed(0)), pole(dim).expand(9, dim), atol=1e-30, rtol=0)
    for kappa in (math.inf, 1e76):
        with pytest.raises(ValueError, match=r"(?s)concentration.*FiniteGreaterThanEq.*(inf|e\+76)"):
            law(pole(dim), double(kappa))


@axial
@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e6, 1e8])
def test_the_gradient_of_the_divergence_keeps_its_digits_in_float32(law, kappa):
    """kappa A' or kappa (ψ'(alpha) - ψ'(alpha + beta)): both are differences of numbers that nearly agree."""
    dim, k = 17, torch.tensor(kappa, requires_grad=True)
    divergence = kl_divergence(law(pole(dim).float(), k), HypersphericalUniform(dim))
    (ours,) = torch.autograd.grad(divergence, k)
    true = power_spherical(kappa, dim).slope if law is PowerSpherical else Decimal(kappa) * bessel(kappa, dim).slope
    assert relative(ours, true) < 2e-7


# angular central Gaussian ----------------------------------------------------------------------------------


def two_lengths(first: int, second: int, ratio: float) -> float:
    """KL to uniform with first axes of variance 1 and second ones of variance `ratio`.

    (dim/2) E log(l_1 B + l_2 (1 - B)) with B ~ Beta(first/2, second/2), l of geometric mean 1; quadrature in logit B.
    """
    dim, mode = first + second, math.log(first / second)
    room = 20 * math.sqrt(1 / first + 1 / second)
    x = np.linspace(mode - 100 / first - room, mode + 100 / second + room, 400_001)
    log_b, log_rest = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    log_density = first / 2 * log_b + second / 2 * log_rest
    density = np.exp(log_density - log_density.max())
    log_mean = np.logaddexp(log_b, math.log(ratio) + log_rest)
    return dim / 2 * (float((density * log_mean).sum() / density.sum()) - second / dim * math.log(ratio))


@pytest.mark.parametrize("ratio", [1e2, 1e8, 1e20])
@pytest.mark.parametrize(("first", "second"), [(1, 1), (8, 8), (64, 64), (511, 1), (256, 256)])
def test_angular_gaussian_with_two_lengths(first, second, ratio):
    scale = torch.tensor([1.0] * first + [math.sqrt(ratio)] * second, dtype=torch.float64)
    p = AngularCentralGaussian(torch.diag(scale))
    ours = kl_divergence(p, HypersphericalUniform(first + second, dtype=torch.float64)).item()
    assert ours == pytest.approx(two_lengths(first, second, ratio), rel=1e-12, abs=1e-11)
    assert p.variance.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_angular_gaussian_in_two_thousand_dimensions():
    scale = torch.tensor([1.0] * 1024 + [1e10] * 1024, dtype=torch.float64)
    p = AngularCentralGaussian(torch.diag(scale), validate_args=False)
    ours = kl_divergence(p, HypersphericalUniform(2048, dtype=torch.float64)).item()
    assert ours == pytest.approx(two_lengths(1024, 1024, 1e20), rel=1e-12)


def test_a_wide_and_a_narrow_matrix_share_a_batch():
    narrow, wide = torch.eye(4, dtype=torch.float64), torch.diag(torch.logspace(0, 9, 4, dtype=torch.float64))
    both = AngularCentralGaussian(torch.stack((narrow, wide)))
    for index, factor in enumerate((narrow, wide)):
        assert_close(both.entropy()[index], AngularCentralGaussian(factor).entropy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_angular_gaussian_refuses_a_matrix_that_is_not_finite(value):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, 2] = value
    with pytest.raises(ValueError, match=r"(?s)scale_tril.*FiniteLowerCholesky"):
        AngularCentralGaussian(matrix)


@axial
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_widened_before_anything_is_computed(law, dtype):
    """Exact for the rounded concentration; the axis is normalised again in float32."""
    mu, kappa = units(16).to(dtype), torch.tensor(300.0, dtype=dtype)
    half = law(mu, kappa)
    exact = law(mu.double() / mu.double().norm(), kappa.double())
    assert_close(half.entropy(), exact.entropy().float())
    assert_close(half.variance, exact.variance.float(), rtol=1e-5, atol=0)
    assert_close(half.mean, exact.mean.float())
