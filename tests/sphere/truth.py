"""What the tests of this wing compare with: points, quadrature, golden rows. No library code."""

import json
from collections.abc import Callable
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
