"""What the tests of this wing compare with: points, quadrature, golden rows. No library code."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy import integrate, special, stats
from torch import Tensor

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "distributions.json").read_text())
DIMS = [2, 3, 8, 16, 64]


def points(*shape: int, seed: int = 0) -> Tensor:
    """Gaussian vectors in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(*shape: int, seed: int = 0) -> Tensor:
    z = points(*shape, seed=seed)
    return z / z.norm(dim=-1, keepdim=True)


def pole(dim: int, sign: float = 1.0) -> Tensor:
    return sign * torch.eye(dim, dtype=torch.float64)[0]


def at_angle(mu: Tensor, theta: Tensor) -> Tensor:
    """Points at angles theta from mu, (count, dim), all on one great circle."""
    aside = torch.roll(mu, 1) - (torch.roll(mu, 1) @ mu) * mu
    aside = aside / aside.norm()
    return theta.cos().unsqueeze(-1) * mu + theta.sin().unsqueeze(-1) * aside


leggauss = cache(np.polynomial.legendre.leggauss)


def rings(dim: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Angles from an axis and weights, so that (weight * f(theta)).sum() integrates f over S^{dim-1}.

    Gauss-Legendre in two pieces; scale: about how far from the axis the function matters.
    """
    middle = min(15 * scale, 3.0)
    pieces = [_gauss_legendre(0.0, middle), _gauss_legendre(middle, np.pi)]
    theta, weight = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*pieces, strict=True))
    log_ring = np.log(2) + (dim - 1) / 2 * np.log(np.pi) - special.gammaln((dim - 1) / 2)
    return theta, weight * np.exp(log_ring) * theta.sin() ** (dim - 2)


def _gauss_legendre(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = leggauss(300)
    return (high - low) / 2 * (nodes + 1) + low, (high - low) / 2 * weights


def power_spherical_cdf(dim: int, kappa: float) -> Callable[[np.ndarray], np.ndarray]:
    """P(mu · u <= t): (1 + t)/2 is Beta."""
    law = stats.beta((dim - 1) / 2 + kappa, (dim - 1) / 2)
    return lambda t: law.cdf((1 + t) / 2)


def von_mises_fisher_cdf(dim: int, kappa: float) -> Callable[[np.ndarray], np.ndarray]:
    """P(mu · u <= t), by Simpson's rule in the angle and a cubic through it."""
    reach = min(np.pi, 12 * np.sqrt(dim / (kappa + 1e-9)))
    theta = np.linspace(0, reach, 20001)
    density = np.exp(kappa * (np.cos(theta) - 1)) * np.sin(theta) ** (dim - 2)
    mass = integrate.cumulative_simpson(density, x=theta, initial=0)
    return lambda t: 1 - np.interp(np.arccos(np.clip(t, -1, 1)), theta, mass / mass[-1])


# 60 digits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bessel:
    """Of von Mises-Fisher, in 60 digits. M: log E[exp(kappa t)].  A = M'.  slope = A'."""

    M: Decimal
    A: Decimal
    slope: Decimal


@cache
def bessel(kappa: float, dim: int) -> Bessel:
    """M = log 0F1(dim/2; kappa^2/4), A = kappa/dim of its neighbour, A' = 1 - A^2 - (dim - 1) A/kappa, in 60 digits."""
    with localcontext(prec=60):
        x = Decimal(kappa)
        here, above = _log_series(x, dim), _log_series(x, dim + 2)
        mean = x / dim * (above - here).exp()
        return Bessel(here, mean, 1 - mean * mean - (dim - 1) * mean / x)


@dataclass(frozen=True)
class PowerSphericalTruth:
    """In 60 digits. information: KL to the uniform law.  slope: its derivative in kappa.  log_peak: log p(mu) |S|."""

    information: Decimal
    slope: Decimal
    log_peak: Decimal


def power_spherical(kappa: float, dim: int) -> PowerSphericalTruth:
    """For odd dim, where beta is an integer: Γ(alpha + beta)/Γ(alpha) = alpha (alpha + 1) ... (alpha + beta - 1)."""
    with localcontext(prec=60):
        x, beta = Decimal(kappa), (dim - 1) // 2
        assert dim % 2 == 1
        factors = [x + beta + k for k in range(beta)]
        log_peak = sum((factor.ln() - (factor - x).ln() for factor in factors), Decimal(0))
        mean_log, bend = (sum(factor**power for factor in factors) for power in (-1, -2))
        return PowerSphericalTruth(log_peak - x * mean_log, x * bend, log_peak)


def log_area(dim: int) -> Decimal:
    """log |S^{dim-1}| = log 2 + (dim/2) log π - log Γ(dim/2)."""
    with localcontext(prec=60):
        return Decimal(2).ln() + PI.ln() * dim / 2 - log_gamma(dim)


def _log_series(x: Decimal, dim: int) -> Decimal:
    """log 0F1(dim/2; x^2/4): the power series, or the asymptotic one (DLMF 10.40.1) where that converges far enough."""
    if x < max(100, dim * dim // 8):
        total = term = Decimal(1)
        k = 0
        while term > total * Decimal("1e-58"):
            term *= x * x / 2 / ((k + 1) * (dim + 2 * k))
            total, k = total + term, k + 1
        return total.ln()
    total = term = Decimal(1)
    for k in range(1, 200):
        following = term * ((2 * k - 1) ** 2 - (dim - 2) ** 2) / (8 * k * x)
        if abs(following) > abs(term) or abs(following) < Decimal("1e-58"):
            break
        term, total = following, total + following
    order = Decimal(dim) / 2 - 1
    return x - (2 * PI * x).ln() / 2 + total.ln() - order * (x / 2).ln() + log_gamma(dim)


def log_gamma(twice: int) -> Decimal:
    """log Γ(twice/2), from Γ(1) or Γ(1/2) upwards."""
    with localcontext(prec=60):
        value, start = (Decimal(0), 2) if twice % 2 == 0 else (PI.ln() / 2, 1)
        product = Decimal(1)
        for n in range(start, twice, 2):
            product *= Decimal(n) / 2
        return value + product.ln()


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
