"""The Kullback-Leibler divergences: exact ones between the distributions on the unit sphere, and of a Gaussian latent.

Importing this module registers the former with `torch.distributions.kl_divergence`. They are in nats, with the shape
to which the two batch shapes broadcast. Pairs without an exact formula (von Mises-Fisher to Power Spherical, two Power
Sphericals) are not registered.
"""

from collections.abc import Callable
from functools import wraps

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import register_kl

from spherear.sphere.angular_central_gaussian import AngularCentralGaussian, divergence_from_uniform
from spherear.sphere.bessel import gap, log_moment, peak
from spherear.sphere.gamma import digamma_difference
from spherear.sphere.geometry import inner, widen
from spherear.sphere.laws import AxialLaw, SphericalLaw, double, unit_double
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.uniform import HypersphericalUniform
from spherear.sphere.von_mises_fisher import VonMisesFisher


def gaussian_kl(
    mean: Float[Tensor, "batch tokens dim"], log_variance: Float[Tensor, "batch tokens dim"]
) -> Float[Tensor, "batch tokens"]:
    """KL(N(mean, sigma^2) || N(0, I)) = 1/2 sum(mean^2 + sigma^2 - 1 - log sigma^2), in nats.

    Half precision gives float32.
    """
    mean, log_variance = widen(mean), widen(log_variance)
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1)


def _divergence(p_type: type[SphericalLaw], q_type: type[SphericalLaw]) -> Callable[[Callable], Callable]:
    """Register KL(p || q), computed in float64 without autocast, returned in p's and q's dtype and shape."""

    def register(formula: Callable) -> Callable:
        @register_kl(p_type, q_type)
        @wraps(formula)
        def checked(p: SphericalLaw, q: SphericalLaw) -> Tensor:
            if p.dim != q.dim:
                raise ValueError(f"the laws live in different dimensions: {p.dim} and {q.dim}")
            with torch.autocast(p.device.type, enabled=False):
                divergence = formula(p, q)
            shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
            return divergence.expand(shape).to(torch.promote_types(p.dtype, q.dtype))

        return formula

    return register


@_divergence(HypersphericalUniform, HypersphericalUniform)
def _uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Float[Tensor, "..."]:
    """KL = 0."""
    return torch.zeros((), dtype=p.dtype, device=p.device)


@_divergence(PowerSpherical, HypersphericalUniform)
def _power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Float[Tensor, "..."]:
    """KL = log |S^{dim-1}| - H(p): the KL term of the S-VAE."""
    return p._information()


@_divergence(VonMisesFisher, HypersphericalUniform)
def _von_mises_fisher_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Float[Tensor, "..."]:
    """KL = log |S^{dim-1}| - H(p) = kappa A - M."""
    return p._information()


@_divergence(AngularCentralGaussian, HypersphericalUniform)
def _angular_gaussian_uniform(p: AngularCentralGaussian, q: HypersphericalUniform) -> Float[Tensor, "..."]:
    """KL by the quadrature of `divergence_from_uniform`."""
    return divergence_from_uniform(double(p.scale_tril))


@_divergence(HypersphericalUniform, PowerSpherical)
def _uniform_power_spherical(p: HypersphericalUniform, q: PowerSpherical) -> Float[Tensor, "..."]:
    """KL = kappa_q (ψ(2 beta) - ψ(beta)) - log p_q(mu) - log |S^{dim-1}|, the mean of log(2/(1 + t)) at kappa = 0."""
    mean = digamma_difference(torch.full_like(q._kappa, q._beta), q._beta)
    return q._kappa * mean - q._log_peak(q._kappa)


@_divergence(HypersphericalUniform, VonMisesFisher)
def _uniform_von_mises_fisher(p: HypersphericalUniform, q: VonMisesFisher) -> Float[Tensor, "..."]:
    """KL = -log |S^{dim-1}| - log C_q = M(kappa_q), since E[t] = 0."""
    return log_moment(q._kappa, q.dim)


@_divergence(HypersphericalUniform, AngularCentralGaussian)
def _uniform_angular_gaussian(p: HypersphericalUniform, q: AngularCentralGaussian) -> Float[Tensor, "..."]:
    """KL as between two angular central Gaussians, the first with L = I."""
    return divergence_from_uniform(torch.linalg.inv(double(q.scale_tril)))


@_divergence(VonMisesFisher, VonMisesFisher)
def _von_mises_fisher_pair(p: VonMisesFisher, q: VonMisesFisher) -> Float[Tensor, "..."]:
    """KL = (1 - A_p)(kappa_q - kappa_p) + P_p - P_q + A_p kappa_q (1 - mu_p · mu_q), with P = kappa - M."""
    narrower = gap(p._kappa, p.dim) * (q._kappa - p._kappa) + peak(p._kappa, p.dim) - peak(q._kappa, q.dim)
    return narrower + p._mean_length() * q._kappa * _one_minus_cosine(p, q)


@_divergence(PowerSpherical, VonMisesFisher)
def _power_spherical_von_mises_fisher(p: PowerSpherical, q: VonMisesFisher) -> Float[Tensor, "..."]:
    """KL = KL(p || uniform) - P_q + kappa_q (1 - m_p mu_p · mu_q), with m_p the mean length of p and P = kappa - M."""
    off_axis = p._mean_gap() + p._mean_length() * _one_minus_cosine(p, q)
    return p._information() - peak(q._kappa, q.dim) + q._kappa * off_axis


@_divergence(AngularCentralGaussian, AngularCentralGaussian)
def _angular_gaussian_pair(p: AngularCentralGaussian, q: AngularCentralGaussian) -> Float[Tensor, "..."]:
    """KL(p || q) = KL(p' || uniform) for p' with factor L_q^-1 L_p: a common linear map leaves the KL unchanged."""
    factor = torch.linalg.solve_triangular(double(q.scale_tril), double(p.scale_tril), upper=False)
    return divergence_from_uniform(factor)


def _one_minus_cosine(p: AxialLaw, q: AxialLaw) -> Float[Tensor, "..."]:
    """1 - mu_p · mu_q = |mu_p - mu_q|^2/2, without cancellation when the axes are close."""
    difference = unit_double(p.loc) - unit_double(q.loc)
    return inner(difference, difference) / 2
