"""Two laws of a direction in space: Power Spherical, and that of a Gaussian put on the sphere (paper, figure 5).

Knows: both densities on a grid of the sphere in three dimensions.  Does not know: how they are drawn.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.sphere.distributions import PowerSpherical
from spherear.sphere.geometry import log_sphere_area


@dataclass(frozen=True)
class DirectionLaws:
    """Densities over the unit sphere on a grid: polar angle (from the axis e3) by azimuth.

    points: (polar, azimuth, 3).  spherical, projected: densities there, each of total 1.
    kappa: of the Power Spherical law.  mean, sigma: of the Gaussian, (3,) each.
    """

    polar: Float[Tensor, " polar"]
    azimuth: Float[Tensor, " azimuth"]
    points: Float[Tensor, "polar azimuth 3"]
    spherical: Float[Tensor, "polar azimuth"]
    projected: Float[Tensor, "polar azimuth"]
    kappa: float
    mean: tuple[float, float, float]
    sigma: tuple[float, float, float]


def projected_gaussian_log_density(
    u: Float[Tensor, "*shape 3"], mean: Float[Tensor, " 3"], sigma: Float[Tensor, " 3"]
) -> Float[Tensor, "*shape"]:
    """log p(u), p(u) = ∫_0^∞ r^2 N(r u; mean, diag sigma^2) dr: the law of y/|y| for y ~ N(mean, diag sigma^2).

    With q = |u/sigma|, m = (u/sigma) · (mean/sigma)/q, the integral is that of r^2 under a normal law:
    q^-3 ((1 + m^2) Phi(m) + m phi(m)), all times exp((m^2 - |mean/sigma|^2)/2)/(2π prod sigma).
    """
    a, b = u / sigma, mean / sigma
    q = a.norm(dim=-1)
    m = (a * b).sum(-1) / q
    phi = torch.exp(-m.square() / 2) / math.sqrt(2 * math.pi)
    moment = (1 + m.square()) * torch.special.ndtr(m) + m * phi
    constant = math.log(2 * math.pi) + sigma.log().sum() + b.square().sum() / 2
    return moment.log() - 3 * q.log() + m.square() / 2 - constant


def direction_laws(
    kappa: float = 20.0,
    mean: tuple[float, float, float] = (0.0, 0.0, 1.0),
    sigma: tuple[float, float, float] = (0.5, 0.2, 0.3),
    resolution: int = 90,
) -> DirectionLaws:
    """Both densities on a grid of `resolution` polar by twice as many azimuth angles (midpoints).

    The Power Spherical law is about e3.
    """
    polar = (torch.arange(resolution, dtype=torch.float64) + 0.5) * math.pi / resolution
    azimuth = (torch.arange(2 * resolution, dtype=torch.float64) + 0.5) * math.pi / resolution
    theta, phi = torch.meshgrid(polar, azimuth, indexing="ij")
    points = torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), dim=-1)
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    law = PowerSpherical(axis, torch.tensor(kappa, dtype=torch.float64))
    wide = [torch.tensor(x, dtype=torch.float64) for x in (mean, sigma)]
    projected = projected_gaussian_log_density(points, *wide)
    return DirectionLaws(polar, azimuth, points, law.log_prob(points).exp(), projected.exp(), kappa, mean, sigma)


def uniform_density() -> float:
    """1/|S^2|, to compare with."""
    return math.exp(-log_sphere_area(3))
