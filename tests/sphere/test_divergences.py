"""Every registered divergence against its definition, E_p[log p - log q], and the closed forms there are."""

import math

import pytest
import torch
from torch.distributions import kl_divergence
from torch.testing import assert_close

from spherear.sphere.angular_central_gaussian import AngularCentralGaussian
from spherear.sphere.divergences import gaussian_kl
from spherear.sphere.geometry import log_sphere_area
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.uniform import HypersphericalUniform
from spherear.sphere.von_mises_fisher import VonMisesFisher
from tests.sphere.truth import at_angle, points, rings, units

DIM = 5
COUNT = 50_000


def uniform() -> HypersphericalUniform:
    return HypersphericalUniform(DIM, dtype=torch.float64)


def power_spherical(seed: int = 0) -> PowerSpherical:
    return PowerSpherical(units(DIM, seed=seed), torch.tensor(6.0 + seed, dtype=torch.float64))


def von_mises_fisher(seed: int = 0) -> VonMisesFisher:
    return VonMisesFisher(units(DIM, seed=seed), torch.tensor(4.0 + seed, dtype=torch.float64))


def angular_gaussian(seed: int = 0) -> AngularCentralGaussian:
    below = torch.tril(points(DIM, DIM, seed=seed), -1) / 2
    return AngularCentralGaussian(below + torch.diag(0.5 + points(DIM, seed=seed + 9).abs()))


PAIRS = {
    "uniform, uniform": (uniform(), uniform()),
    "power spherical, uniform": (power_spherical(), uniform()),
    "von mises-fisher, uniform": (von_mises_fisher(), uniform()),
    "angular gaussian, uniform": (angular_gaussian(), uniform()),
    "uniform, power spherical": (uniform(), power_spherical()),
    "uniform, von mises-fisher": (uniform(), von_mises_fisher()),
    "uniform, angular gaussian": (uniform(), angular_gaussian()),
    "von mises-fisher, von mises-fisher": (von_mises_fisher(), von_mises_fisher(1)),
    "power spherical, von mises-fisher": (power_spherical(), von_mises_fisher(1)),
    "angular gaussian, angular gaussian": (angular_gaussian(), angular_gaussian(1)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_is_the_mean_of_the_log_ratio(pair):
    p, q = PAIRS[pair]
    u = p.sample((COUNT,), torch.Generator().manual_seed(0))
    log_ratio = p.log_prob(u) - q.log_prob(u)
    divergence = kl_divergence(p, q)
    assert divergence.shape == ()
    assert divergence.item() >= 0
    assert abs(log_ratio.mean() - divergence) <= 4 * log_ratio.std() / math.sqrt(COUNT)


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("law", [PowerSpherical, VonMisesFisher])
@pytest.mark.parametrize("kappa", [0.0, 1.0, 50.0])
def test_to_and_from_the_uniform_law_by_quadrature(law, dim, kappa):
    p, u = law(units(dim), torch.tensor(kappa, dtype=torch.float64)), HypersphericalUniform(dim)
    theta, weight = rings(dim)
    log_p = p.log_prob(at_angle(p.loc, theta))
    log_u = -log_sphere_area(dim)
    there = (weight * log_p.exp() * (log_p - log_u)).sum().item()
    back = (weight * math.exp(log_u) * (log_u - log_p)).sum().item()
    assert kl_divergence(p, u).item() == pytest.approx(there, rel=1e-9, abs=1e-9)
    assert kl_divergence(u, p).item() == pytest.approx(back, rel=1e-5 if dim == 2 else 1e-7, abs=1e-9)


def test_power_spherical_at_the_least_concentration_of_the_model():
    """kappa = 1 in 16 dimensions costs 0.0322 nats: the floor of the S-VAE's KL."""
    p = PowerSpherical(units(16), torch.tensor(1.0, dtype=torch.float64))
    assert kl_divergence(p, HypersphericalUniform(16)).item() == pytest.approx(0.0322, abs=5e-5)


@pytest.mark.parametrize("make", [uniform, von_mises_fisher, angular_gaussian])
def test_of_a_law_from_itself_is_zero_with_zero_gradient(make):
    p, q = make(), make()
    for name in q.arg_constraints:
        setattr(q, name, getattr(q, name).clone().requires_grad_())
    divergence = kl_divergence(p, q)
    assert divergence.item() == pytest.approx(0, abs=1e-12)
    for name in q.arg_constraints:
        (gradient,) = torch.autograd.grad(divergence, getattr(q, name), retain_graph=True)
        assert (gradient.abs() < 1e-12).all()


def test_von_mises_fisher_pair_keeps_its_digits_for_close_and_narrow_laws():
    """Close to the flat limit, (kappa/2) |difference of the means|^2."""
    mu = units(3)
    moved = mu + 1e-6 * units(3, seed=1)
    moved = moved / moved.norm()
    kappa = torch.tensor(1e6, dtype=torch.float64)
    divergence = kl_divergence(VonMisesFisher(mu, kappa), VonMisesFisher(moved, kappa))
    assert divergence.item() == pytest.approx(5e5 * ((mu - moved) ** 2).sum().item(), rel=1e-4)


def test_a_common_linear_map_changes_no_divergence_between_angular_gaussians():
    p, q, r = (angular_gaussian(seed).scale_tril for seed in range(3))
    mapped = kl_divergence(AngularCentralGaussian(r @ p), AngularCentralGaussian(r @ q))
    assert_close(mapped, kl_divergence(AngularCentralGaussian(p), AngularCentralGaussian(q)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gaussian_divergence_of_half_precision_is_that_of_the_same_numbers_in_float64(dtype):
    mean, log_variance = (300 * points(2, 3, 8)).to(dtype), points(2, 3, 8, seed=1).to(dtype)
    ours = gaussian_kl(mean, log_variance)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), gaussian_kl(mean.double(), log_variance.double()), rtol=1e-6, atol=0)


def test_shapes_and_dtypes_follow_both_laws():
    p = PowerSpherical(units(4, 1, 8).float(), torch.ones(3))
    assert kl_divergence(p, HypersphericalUniform(8)).shape == (4, 3)
    assert kl_divergence(p, HypersphericalUniform(8)).dtype == torch.float32
    assert kl_divergence(p, HypersphericalUniform(8, (5, 4, 3), dtype=torch.float64)).shape == (5, 4, 3)
    assert kl_divergence(HypersphericalUniform(8, (2, 1, 1)), p).shape == (2, 4, 3)
    q = VonMisesFisher(units(8), torch.ones(2, 1, 1).double())
    assert kl_divergence(p, q).shape == (2, 4, 3)
    assert kl_divergence(p, q).dtype == torch.float64


def test_refuses_laws_of_different_dimensions_and_pairs_without_a_formula():
    with pytest.raises(ValueError, match="different dimensions: 5 and 8"):
        kl_divergence(power_spherical(), HypersphericalUniform(8))
    with pytest.raises(NotImplementedError):
        kl_divergence(power_spherical(), power_spherical(1))
