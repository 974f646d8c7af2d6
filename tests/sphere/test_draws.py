"""Draws against the exact laws of their projections, and their gradients against exact derivatives."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from spherear.sphere.angular_central_gaussian import AngularCentralGaussian
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.uniform import HypersphericalUniform
from spherear.sphere.von_mises_fisher import VonMisesFisher, _angle_slope, _draw_angle
from tests.sphere.truth import DIMS, pole, power_spherical_cdf, rings, units, von_mises_fisher_cdf

CDFS = {PowerSpherical: power_spherical_cdf, VonMisesFisher: von_mises_fisher_cdf}
axial = pytest.mark.parametrize("law", list(CDFS))
COUNT = 20_000
LEAST_P = 1e-4  # seeds are fixed: a p-value below this is a defect, not bad luck


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def seen_from(mu: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(mu · u, the direction of u across mu in a fixed basis of the tangent space)."""
    t = u @ mu
    basis = torch.linalg.svd(mu.unsqueeze(0)).Vh[1:]
    across = u @ basis.T
    return t, across / across.norm(dim=-1, keepdim=True)


# laws ----------------------------------------------------------------------------------------------------


@axial
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", [0.0, 0.5, 5.0, 100.0, 1e4])
def test_projection_on_the_axis_follows_its_law(law, dim, kappa):
    mu = units(dim)
    u = law(mu, torch.tensor(kappa, dtype=torch.float64)).sample((COUNT,), seeded(dim))
    t, across = seen_from(mu, u)
    assert_close(u.norm(dim=-1), torch.ones(COUNT, dtype=torch.float64), rtol=0, atol=1e-15)
    assert stats.kstest(t.numpy(), CDFS[law](dim, kappa)).pvalue > LEAST_P
    first = across[:, 0].numpy()  # around the axis: no direction is preferred, and none depends on t
    if dim == 2:
        assert stats.binomtest(int((first > 0).sum()), COUNT).pvalue > LEAST_P
    else:
        assert stats.kstest((1 + first) / 2, stats.beta((dim - 2) / 2, (dim - 2) / 2).cdf).pvalue > LEAST_P
    assert abs(stats.spearmanr(t.numpy(), first).statistic) < 4 / math.sqrt(COUNT)


@axial
@pytest.mark.parametrize("dim", [2, 3, 16])
def test_mean_and_variance_of_draws(law, dim):
    p = law(units(dim), torch.tensor(4.0, dtype=torch.float64))
    u = p.sample((COUNT,), seeded(1))
    assert ((u.mean(0) - p.mean).abs() < 4 * (p.variance / COUNT).sqrt()).all()
    assert_close(u.var(0), p.variance, rtol=0.06, atol=0)


@pytest.mark.parametrize("dim", DIMS)
def test_uniform_draws_have_no_preferred_axis(dim):
    u = HypersphericalUniform(dim, dtype=torch.float64).sample((COUNT,), seeded(dim))
    for axis in (pole(dim), units(dim)):
        assert stats.kstest((u @ axis).numpy(), power_spherical_cdf(dim, 0.0)).pvalue > LEAST_P
    assert_close(u.norm(dim=-1), torch.ones(COUNT, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("stretch", [0.1, 1.0, 5.0])
def test_angular_gaussian_draws_follow_students_t(dim, stretch):
    """Σ = diag(a^2, 1, ..., 1): u_1/sqrt(1 - u_1^2) sqrt(dim - 1)/a is Student's t with dim - 1 degrees."""
    scale = torch.ones(dim, dtype=torch.float64)
    scale[0] = stretch
    p = AngularCentralGaussian(torch.diag(scale))
    u = p.sample((COUNT,), seeded(dim))
    ratio = u[:, 0] / u[:, 1:].norm(dim=-1) * math.sqrt(dim - 1) / stretch
    assert stats.kstest(ratio.numpy(), stats.t(dim - 1).cdf).pvalue > LEAST_P
    assert_close((u**2).mean(0), p.variance, rtol=0.1, atol=0)
    assert_close(u.norm(dim=-1), torch.ones(COUNT, dtype=torch.float64), rtol=0, atol=1e-15)


def test_angular_gaussian_draws_have_the_second_moments_of_their_factor():
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-1.0, 0.3, 0.7]], dtype=torch.float64)
    p = AngularCentralGaussian(factor)
    u = p.sample((100_000,), seeded())
    assert_close((u**2).mean(0), p.variance, rtol=0.02, atol=0)


# seeds, shapes, precision --------------------------------------------------------------------------------


def a_law(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu", dim: int = 16):
    mu, kappa = units(4, dim).to(device, dtype), torch.logspace(-1, 6, 4, device=device, dtype=dtype)
    if name == "uniform":
        return HypersphericalUniform(dim, (4,), dtype=dtype, device=device)
    if name == "angular_gaussian":
        return AngularCentralGaussian(torch.diag_embed(mu.abs() + 0.1))
    return {"power_spherical": PowerSpherical, "von_mises_fisher": VonMisesFisher}[name](mu, kappa)


every_law = pytest.mark.parametrize("name", ["uniform", "power_spherical", "von_mises_fisher", "angular_gaussian"])


@every_law
def test_a_generator_fixes_the_draws_and_leaves_the_global_one_alone(name, device):
    p = a_law(name, device=device)
    before = torch.get_rng_state()
    first, again, other = (p.sample((9,), seeded(seed, device)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert torch.equal(first, p.rsample((9,), seeded(3, device)).detach())
    assert (first != other).any(-1).all()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unseeded = p.sample((9,))
        torch.manual_seed(5)
        assert torch.equal(unseeded, p.sample((9,)))


@every_law
@pytest.mark.parametrize("dim", [2, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_unit_vectors_to_rounding(name, dim, dtype, device):
    u = a_law(name, dtype, device, dim).sample((3, 500), seeded(0, device))
    assert u.shape == (3, 500, 4, dim)
    assert u.dtype == dtype
    length = u.double().norm(dim=-1)
    assert ((length - 1).abs() <= 3 * torch.finfo(dtype).eps).all()


@every_law
def test_sample_carries_no_gradient_and_rsample_does(name):
    p = a_law(name)
    for parameter in ("loc", "concentration", "scale_tril"):
        if hasattr(p, parameter):
            setattr(p, parameter, getattr(p, parameter).clone().requires_grad_())
    assert not p.sample(generator=seeded()).requires_grad
    assert p.rsample(generator=seeded()).requires_grad == (name != "uniform")


@axial
def test_a_concentration_that_is_no_number_shows(law):
    p = law(pole(3), torch.tensor(math.nan, dtype=torch.float64), validate_args=False)
    assert p.sample((5,), seeded()).isnan().all()


def test_rejection_needs_few_rounds_at_any_concentration():
    for dim in (2, 3, 16, 512):
        kappa = torch.logspace(-3, 7, 2000, dtype=torch.float64)
        theta = _draw_angle(kappa, dim, seeded())
        assert ((theta > 0) & (theta < math.pi)).all()
        expected = VonMisesFisher(pole(dim), kappa).mean_length
        assert abs((theta.cos() - expected).mean()) < 0.05


# gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 30.0, 1e3])
def test_power_spherical_draws_move_along_their_quantiles(dim, kappa):
    """dt/dkappa = -(dF/dkappa)/p at fixed F, from scipy's Beta and the law's own densities, draw by draw."""
    k = torch.full((40,), kappa, dtype=torch.float64, requires_grad=True)
    g = torch.randn(40, dim - 1, generator=seeded(7), dtype=torch.float64)
    y = g.square().sum(-1) / 2
    u = PowerSpherical(pole(dim), k).rsample(generator=seeded(7))
    t = u[:, 0]
    (slope,) = torch.autograd.grad(t.sum(), k)
    # given Y, t moves with X alone, and X along the quantiles of Gamma((dim - 1)/2 + kappa)
    x = y * ((1 + t) / (1 - t)).detach()
    alpha, step = (dim - 1) / 2 + kappa, 1e-5 * (1 + kappa)
    higher, lower = (stats.gamma(alpha + s).cdf(x.numpy()) for s in (step, -min(step, alpha / 2)))
    x_slope = -(higher - lower) / (step + min(step, alpha / 2)) / stats.gamma(alpha).pdf(x.numpy())
    expected = 2 * y / (x + y) ** 2 * torch.from_numpy(x_slope)
    assert_close(slope, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 30.0, 1e3, 1e6])
def test_von_mises_fisher_draws_move_along_their_quantiles(dim, kappa):
    """dθ/dkappa = -(dF/dkappa)/p at fixed F, the cumulative integrals by an independent trapezoidal rule."""
    k = torch.full((20,), kappa, dtype=torch.float64)
    theta = _draw_angle(k, dim, seeded(2))
    reach = min(math.pi, 12 * math.sqrt(dim / (kappa + 1e-9)))
    grid = np.linspace(0, reach, 40_001)
    density = np.exp(-2 * kappa * np.sin(grid / 2) ** 2) * np.sin(grid) ** (dim - 2)
    mean = np.trapezoid(np.cos(grid) * density, grid) / np.trapezoid(density, grid)
    mass = np.concatenate(([0], np.cumsum((lambda f: (f[1:] + f[:-1]) / 2)((np.cos(grid) - mean) * density))))
    expected = -np.interp(theta, grid, mass) * grid[1] / np.interp(theta, grid, density)
    assert_close(_angle_slope(k, theta, dim), torch.from_numpy(expected), rtol=2e-4, atol=1e-14)


@axial
@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("kappa", [0.5, 20.0])
def test_gradient_of_an_expectation(law, dim, kappa):
    """dE[t^2]/dkappa by quadrature and the gradient of E[a · u] in mu, each within 4 standard errors."""
    k = torch.full((COUNT,), kappa, dtype=torch.float64, requires_grad=True)
    mu = units(dim).expand(COUNT, dim).clone().requires_grad_()
    a = units(dim, seed=5)
    u = law(mu / mu.norm(dim=-1, keepdim=True), k).rsample(generator=seeded(dim))
    t = (u * mu.detach()).sum(-1)
    (slopes,) = torch.autograd.grad((t**2).sum(), k, retain_graph=True)
    (pulls,) = torch.autograd.grad((u @ a).sum(), mu)

    theta, weight = rings(dim)
    exact = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    circle = torch.stack((theta.cos(), theta.sin(), *[torch.zeros_like(theta)] * (dim - 2)), -1)
    second = (weight * law(pole(dim), exact).log_prob(circle).exp() * theta.cos() ** 2).sum()
    (slope,) = torch.autograd.grad(second, exact)
    length = law(pole(dim), exact.detach()).mean_length
    pull = length * (a - (a @ units(dim)) * units(dim))
    assert abs(slopes.mean() - slope) < 4 * slopes.std() / math.sqrt(COUNT)
    assert ((pulls.mean(0) - pull).abs() < 4 * pulls.std(0) / math.sqrt(COUNT) + 1e-12).all()


@axial
def test_gradient_of_one_draw_in_mu_is_that_of_its_formula(law):
    """With common random numbers, moving mu moves the draw as automatic differentiation says."""
    mu = units(5, 8)
    mu[:, 0] += 0.1 * mu[:, 0].sign()  # away from the seam mu_1 = 0, where the frame changes hands

    def draw(z):
        p = law(z / z.norm(dim=-1, keepdim=True), torch.full((5,), 7.0, dtype=torch.float64))
        return p.rsample(generator=seeded())

    assert torch.autograd.gradcheck(draw, (mu.requires_grad_(),))


def test_gradient_of_an_angular_gaussian_draw_in_its_factor():
    factor = torch.tril(units(4, 4)) + torch.eye(4, dtype=torch.float64)

    def draw(matrix):
        return AngularCentralGaussian(matrix.tril(), validate_args=False).rsample((3,), seeded())

    assert torch.autograd.gradcheck(draw, (factor.requires_grad_(),))


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 1e3, 1e6])
@axial
def test_gradients_of_many_draws_are_finite_in_float32(law, dim, kappa, device):
    mu = torch.cat((pole(dim).unsqueeze(0), -pole(dim).unsqueeze(0), units(2, dim))).to(device, torch.float32)
    mu.requires_grad_()
    k = torch.full((4,), kappa, device=device, requires_grad=True)
    u = law(mu, k).rsample((2000,), seeded(0, device))
    gradients = torch.autograd.grad((u * units(dim, seed=3).to(u)).sum(), (mu, k))
    assert u.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
