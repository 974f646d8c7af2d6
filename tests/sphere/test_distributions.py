"""Densities, entropies and moments of the laws against golden numbers, scipy, quadrature and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence
from torch.testing import assert_close

from spherear.sphere.angular_central_gaussian import AngularCentralGaussian
from spherear.sphere.geometry import log_sphere_area
from spherear.sphere.laws import unit_sphere
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.uniform import HypersphericalUniform
from spherear.sphere.von_mises_fisher import VonMisesFisher
from tests.sphere.truth import DIMS, GOLDEN, at_angle, points, pole, rings, units

AXIAL = {"power_spherical": PowerSpherical, "von_mises_fisher": VonMisesFisher}
axial = pytest.mark.parametrize("law", list(AXIAL.values()))
KAPPAS = [0.0, 1e-3, 1.0, 1e3, 1e6]


def triangular(dim: int, seed: int = 0) -> torch.Tensor:
    """A well conditioned lower triangular factor with a positive diagonal."""
    return torch.tril(points(dim, dim, seed=seed), -1) * 0.5 + torch.diag(0.5 + points(dim, seed=seed + 1).abs())


# golden numbers and other libraries ----------------------------------------------------------------------


@pytest.mark.parametrize("name", AXIAL)
@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['dim']}-{row['concentration']}")
def test_golden_numbers(name, row):
    dim, expected = row["dim"], row[name]
    p = AXIAL[name](pole(dim), torch.tensor(row["concentration"], dtype=torch.float64))
    divergence = kl_divergence(p, HypersphericalUniform(dim))
    ours = {
        "log_normalizer": p.log_normalizer,
        "entropy": p.entropy(),
        "kl_to_uniform": divergence,
        "mean_length": p.mean_length,
    }
    for quantity, value in ours.items():
        assert value.item() == pytest.approx(expected[quantity], rel=1e-12, abs=2e-12), quantity


@pytest.mark.parametrize("dim", [2, 3, 8, 16])
@pytest.mark.parametrize("kappa", [0.1, 1.0, 30.0, 200.0])
def test_von_mises_fisher_is_that_of_scipy(dim, kappa):
    mu, u = units(dim), units(50, dim, seed=1)
    ours = VonMisesFisher(mu, torch.tensor(kappa, dtype=torch.float64))
    scipys = stats.vonmises_fisher(mu.numpy(), kappa)
    assert_close(ours.log_prob(u), torch.from_numpy(scipys.logpdf(u.numpy())), rtol=1e-11, atol=1e-11)
    assert ours.entropy().item() == pytest.approx(scipys.entropy(), rel=1e-10, abs=1e-10)


def test_power_spherical_is_the_beta_law_of_its_axis():
    dim, kappa = 16, 7.5
    mu, theta = units(dim), torch.linspace(0.05, 3.0, 20, dtype=torch.float64)
    t = np.cos(theta.numpy())
    ring = log_sphere_area(dim - 1) + (dim - 3) / 2 * np.log1p(-(t**2))
    expected = stats.beta((dim - 1) / 2 + kappa, (dim - 1) / 2).logpdf((1 + t) / 2) - math.log(2) - ring
    ours = PowerSpherical(mu, torch.tensor(kappa, dtype=torch.float64)).log_prob(at_angle(mu, theta))
    assert_close(ours, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


# quadrature ----------------------------------------------------------------------------------------------


@axial
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_density_integrates_to_one_and_gives_entropy_and_moments(law, dim, kappa):
    mu = units(dim)
    p = law(mu, torch.tensor(kappa, dtype=torch.float64))
    theta, weight = rings(dim, scale=1 / math.sqrt(1 + kappa))
    log_prob = p.log_prob(at_angle(mu, theta))
    share, t = weight * log_prob.exp(), theta.cos()
    mass, entropy = share.sum().item(), -(share * log_prob).sum().item()
    length = (share * t).sum().item()
    along = (share * (t - length) ** 2).sum().item()
    across = (share * theta.sin() ** 2).sum().item() / (dim - 1)
    assert mass == pytest.approx(1, rel=1e-8)
    assert p.entropy().item() == pytest.approx(entropy, rel=1e-7, abs=1e-7)
    assert p.mean_length.item() == pytest.approx(length, rel=1e-7, abs=1e-9)
    expected = mu**2 * along + (1 - mu**2) * across
    assert_close(p.variance, expected, rtol=1e-5, atol=1e-15)
    assert_close(p.mean, length * mu, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_angular_gaussian_on_the_circle(seed):
    p = AngularCentralGaussian(triangular(2, seed))
    theta = torch.arange(4096, dtype=torch.float64) * (2 * math.pi / 4096)
    circle = torch.stack((theta.cos(), theta.sin()), -1)
    log_prob = p.log_prob(circle)
    weight = log_prob.exp() * 2 * math.pi / 4096
    assert weight.sum().item() == pytest.approx(1, rel=1e-12)
    assert p.entropy().item() == pytest.approx(-(weight * log_prob).sum().item(), rel=1e-12)
    assert_close(p.variance, (weight.unsqueeze(-1) * circle**2).sum(0), rtol=1e-11, atol=0)
    eigenvalues = torch.linalg.svdvals(p.scale_tril)
    closed = math.log(2 * math.pi) + torch.log(2 * eigenvalues.prod().sqrt() / eigenvalues.sum()) * 2
    assert_close(p.entropy(), closed)


@pytest.mark.parametrize("ratio", [1.0 + 1e-9, 2.0, 1e3, 1e8])
def test_angular_gaussian_entropy_has_a_closed_form_for_paired_axes(ratio):
    """Σ = diag(a, a, b, b): |z|^2 adds two exponentials, E log = (a log a - b log b)/(a - b) + log 2 - γ."""
    a, b = 1.0, ratio
    scale = torch.tensor([a, a, b, b], dtype=torch.float64).sqrt()
    mean_log = (a * math.log(a) - b * math.log(b)) / (a - b) + math.log(2) - np.euler_gamma
    mean_log_white = 1 + math.log(2) - np.euler_gamma
    expected = log_sphere_area(4) + scale.log().sum().item() + 2 * (mean_log_white - mean_log)
    ours = AngularCentralGaussian(torch.diag(scale)).entropy().item()
    assert ours == pytest.approx(expected, rel=1e-12, abs=2e-7 if ratio < 1.1 else 1e-12)


def test_angular_gaussian_density_in_three_dimensions_integrates_to_one():
    p = AngularCentralGaussian(triangular(3))

    z, weight = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(100))
    phi = torch.arange(200, dtype=torch.float64) * (2 * math.pi / 200)
    s = (1 - z**2).sqrt().unsqueeze(-1)
    grid = torch.stack((s * phi.cos(), s * phi.sin(), z.unsqueeze(-1).expand(100, 200)), -1)
    log_prob = p.log_prob(grid)
    share = weight.unsqueeze(-1) * log_prob.exp() * (2 * math.pi / 200)
    mass, entropy = share.sum().item(), -(share * log_prob).sum().item()
    assert_close(p.variance, (share.unsqueeze(-1) * grid**2).sum((0, 1)))
    assert mass == pytest.approx(1, rel=1e-10)
    assert p.entropy().item() == pytest.approx(entropy, rel=1e-10)


@pytest.mark.parametrize("dim", DIMS)
def test_angular_gaussian_is_uniform_at_any_multiple_of_the_identity(dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    u = units(5, dim)
    for factor in (1e-3, 1.0, 7.0):
        p = AngularCentralGaussian(factor * torch.eye(dim, dtype=torch.float64))
        assert_close(p.log_prob(u), uniform.log_prob(u))
        assert_close(p.entropy(), uniform.entropy())
        assert_close(p.variance, uniform.variance)
        assert_close(p.mean, uniform.mean)


@axial
@pytest.mark.parametrize("dim", DIMS)
def test_no_concentration_is_the_uniform_law(law, dim):
    uniform, u = HypersphericalUniform(dim, dtype=torch.float64), units(5, dim)
    p = law(pole(dim), 0.0)
    assert_close(p.log_prob(u), uniform.log_prob(u))
    assert_close(p.log_prob(-pole(dim)), uniform.log_prob(pole(dim)))
    assert_close(p.entropy(), uniform.entropy())
    assert_close(p.variance, uniform.variance)
    assert_close(p.mean, uniform.mean)
    assert_close(p.mode, pole(dim))


def test_variances_of_every_law_add_up_to_one_less_the_squared_mean():
    laws = [
        HypersphericalUniform(8),
        PowerSpherical(units(8), 5.0),
        VonMisesFisher(units(8), 5.0),
        AngularCentralGaussian(triangular(8)),
    ]
    for p in laws:
        assert (p.variance.sum() + (p.mean**2).sum()).item() == pytest.approx(1, rel=1e-6)


# derivatives ---------------------------------------------------------------------------------------------


@axial
@pytest.mark.parametrize("dim", [2, 16])
def test_gradients_of_density_and_entropy(law, dim):
    u, weights = units(3, dim, seed=2), points(dim)
    z = points(3, dim).requires_grad_()
    kappa = torch.tensor([0.0, 0.7, 30.0], dtype=torch.float64, requires_grad=True)

    def density(z, kappa):
        return law(z / z.norm(dim=-1, keepdim=True), kappa, validate_args=False).log_prob(u)

    def moments(kappa):
        p = law(units(dim), kappa, validate_args=False)
        return p.entropy(), p.mean @ weights, p.variance @ weights, p.log_normalizer

    shifted = (kappa + 0.01).detach().requires_grad_()  # central differences must not leave kappa >= 0
    assert torch.autograd.gradcheck(density, (z, shifted))
    assert torch.autograd.gradcheck(moments, (shifted,))


def test_gradients_of_the_angular_gaussian():
    factor = triangular(4).requires_grad_()

    def quantities(factor):
        p = AngularCentralGaussian(factor.tril(), validate_args=False)
        return p.log_prob(units(3, 4)), p.entropy(), p.variance

    assert torch.autograd.gradcheck(quantities, (factor,))
    even = torch.eye(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(AngularCentralGaussian(even).entropy(), even)
    assert (gradient.abs() < 1e-12).all()


@axial
@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_every_edge(law, dim, kappa, dtype, device):
    for sign in (1.0, -1.0):
        mu = pole(dim, sign).to(device, dtype).requires_grad_()
        k = torch.tensor(kappa, dtype=dtype, device=device, requires_grad=True)
        p = law(mu, k)
        value = torch.stack((mu.detach(), -mu.detach(), pole(dim).roll(1).to(device, dtype))).requires_grad_()
        generator = torch.Generator(device).manual_seed(0)
        total = sum(
            quantity.sum()
            for quantity in (
                p.log_prob(value),
                p.entropy(),
                p.mean,
                p.variance,
                p.rsample((50,), generator) @ mu.detach().roll(1),
                kl_divergence(p, HypersphericalUniform(dim)),
            )
        )
        gradients = torch.autograd.grad(total, (mu, k, value))
        assert total.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


# precision -----------------------------------------------------------------------------------------------


def laws_in(dtype: torch.dtype, device: str = "cpu") -> dict:
    mu, kappa = units(5, 16).to(device, dtype), torch.linspace(0.5, 500, 5).to(device, dtype)
    return {
        "uniform": HypersphericalUniform(16, (5,), dtype=dtype, device=device),
        "power_spherical": PowerSpherical(mu, kappa),
        "von_mises_fisher": VonMisesFisher(mu, kappa),
        "angular_gaussian": AngularCentralGaussian(triangular(16).to(device, dtype).expand(5, 16, 16)),
    }


LAW_NAMES = list(laws_in(torch.float32))


@pytest.mark.parametrize("name", LAW_NAMES)
def test_autocast_changes_nothing(name, device):
    def everything():
        p = laws_in(torch.float32, device)[name]
        u = p.rsample((7,), torch.Generator(device).manual_seed(0))
        uniform = HypersphericalUniform(16, device=device)
        return u, p.log_prob(u), p.entropy(), p.mean, p.variance, kl_divergence(p, uniform)

    plain = everything()
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = everything()
    for one, other in zip(plain, cast, strict=True):
        assert one.dtype == torch.float32
        assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAW_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_to_float32(name, dtype):
    p = laws_in(dtype)[name]
    u = p.rsample((100,), torch.Generator().manual_seed(0))
    assert p.dtype == u.dtype == p.entropy().dtype == p.log_prob(u).dtype == torch.float32
    assert ((u.norm(dim=-1) - 1).abs() < 3e-7).all()
    assert p.log_prob(u.to(dtype)).isfinite().all()


@axial
def test_float32_densities_are_those_of_float64_at_large_concentration(law):
    mu, kappa = units(64, 16).float(), torch.full((64,), 1e6)
    p = law(mu, kappa)
    u = p.sample(generator=torch.Generator().manual_seed(0))
    exact = law(mu.double() / mu.double().norm(dim=-1, keepdim=True), kappa.double())
    precise = exact.log_prob(u.double() / u.double().norm(dim=-1, keepdim=True))
    assert_close(p.log_prob(u), precise.float(), rtol=1e-6, atol=1e-5)
    assert_close(p.entropy(), exact.entropy().float())


# bookkeeping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAW_NAMES)
def test_shapes_expand_and_dtype(name):
    p = laws_in(torch.float64)[name]
    wide = p.expand((3, 5))
    u = wide.sample((4,), torch.Generator().manual_seed(0))
    assert p.has_rsample
    assert (p.batch_shape, wide.batch_shape, wide.event_shape) == ((5,), (3, 5), (16,))
    assert u.shape == (4, 3, 5, 16)
    assert type(wide) is type(p)
    assert_close(wide.log_prob(u), p.log_prob(u))
    assert_close(wide.entropy()[0], p.entropy())
    assert wide.mean.shape == wide.variance.shape == (3, 5, 16)
    assert type(p).__name__ in repr(p)


@axial
def test_parameters_broadcast(law):
    p = law(units(3, 1, 8), torch.ones(4).double())
    assert p.batch_shape == (3, 4)
    assert law(units(8).float(), 2.0).dtype == torch.float32
    assert law(units(8).float(), torch.tensor([2.0]).double()).dtype == torch.float64
    assert p.log_prob(units(8)).shape == (3, 4)


def test_unit_sphere_tolerates_the_rounding_of_each_dtype_and_no_more():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        u = units(100, 64).to(dtype)
        assert unit_sphere.check(u).all()
        assert not unit_sphere.check(1.05 * u).any()
    assert not unit_sphere.check(torch.full((3,), math.nan))
    assert unit_sphere.event_dim == 1


# errors --------------------------------------------------------------------------------------------------


@axial
def test_errors_name_the_value_and_what_was_expected(law):
    with pytest.raises(ValueError, match=r"(?s)loc.*UnitSphere.*2"):
        law(torch.tensor([2.0, 0.0]), 1.0)
    with pytest.raises(ValueError, match=r"(?s)concentration.*GreaterThanEq.*-0\.5"):
        law(torch.tensor([1.0, 0.0]), -0.5)
    with pytest.raises(ValueError, match=r"(?s)concentration.*nan"):
        law(torch.tensor([1.0, 0.0]), math.nan)
    with pytest.raises(ValueError, match=r"dim >= 2, got dim = 1"):
        law(torch.tensor([1.0]), 1.0)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., dim\)"):
        _unchecked(law)


def _unchecked(law):
    """The constructor as a user without shape checking meets it."""
    instance = law.__new__(law)
    init = law.__init__
    while hasattr(init, "__wrapped__"):
        init = init.__wrapped__
    init(instance, torch.tensor(1.0), 1.0)


def test_errors_of_the_other_laws():
    with pytest.raises(ValueError, match="dim >= 2, got dim = 1"):
        HypersphericalUniform(1)
    with pytest.raises(ValueError, match=r"(?s)scale_tril.*LowerCholesky"):
        AngularCentralGaussian(-torch.eye(3))
    with pytest.raises(ValueError, match="dim >= 2, got dim = 1"):
        AngularCentralGaussian(torch.eye(1))


@pytest.mark.parametrize("name", LAW_NAMES)
def test_log_prob_refuses_what_is_no_point_of_the_sphere(name):
    p = laws_in(torch.float32)[name]
    with pytest.raises(ValueError, match="UnitSphere"):
        p.log_prob(torch.ones(5, 16))
    with pytest.raises(ValueError, match=r"must match event_shape|right-most size"):
        p.log_prob(units(5, 8).float())
