"""Distributions of directions: Power Spherical, von Mises-Fisher and projected Gaussian (paper, figure 5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spherear.models.config import require
from spherear.sphere.distributions import PowerSpherical, VonMisesFisher
from spherear.sphere.geometry import angle, log_sphere_area, project
from spherear.sphere.laws import AxialLaw

AXIS = (0.0, 0.0, 1.0)
BINS = 18
NAMES = ("power_spherical", "vmf", "projected_gaussian")


@dataclass(frozen=True)
class DirectionLaws:
    """Densities over the unit sphere on a grid: polar angle (from the axis e3) by azimuth.

    points: (polar, azimuth, 3).  spherical, projected: densities at these points, each with integral 1.
    kappa: of Power Spherical.  mean, sigma: of the Gaussian before projection, (3,) each.
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
    """log p(u), p(u) = ∫_0^∞ r^2 N(r u; mean, diag sigma^2) dr: the density of y/|y| for y ~ N(mean, diag sigma^2).

    With q = |u/sigma|, m = (u/sigma) · (mean/sigma)/q, the integral is that of r^2 times a normal density:
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

    The axis of Power Spherical is e3.
    """
    polar = (torch.arange(resolution, dtype=torch.float64) + 0.5) * math.pi / resolution
    azimuth = (torch.arange(2 * resolution, dtype=torch.float64) + 0.5) * math.pi / resolution
    points = _unit_vectors(polar, azimuth)
    axis = torch.tensor(AXIS, dtype=torch.float64)
    law = PowerSpherical(axis, torch.tensor(kappa, dtype=torch.float64))
    gaussian = [torch.tensor(x, dtype=torch.float64) for x in (mean, sigma)]
    projected = projected_gaussian_log_density(points, *gaussian)
    return DirectionLaws(polar, azimuth, points, law.log_prob(points).exp(), projected.exp(), kappa, mean, sigma)


def cosine_density(law: AxialLaw, t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Density of t = mu . u: |S^{m-2}| (1 - t^2)^((m-3)/2) p(u), for one distribution on the sphere in m dimensions."""
    mu = law.loc.double()
    basis = torch.zeros_like(mu)
    basis[int(mu.abs().argmin())] = 1.0
    tangent = basis - (basis @ mu) * mu
    u = t[:, None] * mu + (1 - t.square()).sqrt()[:, None] * tangent / tangent.norm()  # (n, m)
    ring = log_sphere_area(law.dim - 1) + (law.dim - 3) / 2 * torch.log1p(-t.square())
    return (ring + law.log_prob(u)).exp()


@dataclass(frozen=True)
class AngleLaw:
    """One distribution about the axis e3. parameter: kappa, or sigma of the Gaussian N(e3, sigma^2 I) to be projected.

    density: per unit of area of the sphere, by angle from the axis.  by_angle: density of the angle,
    2π sin(angle) density.  samples: unit vectors.  mean_cosine: of the angle.
    """

    name: str
    parameter: float
    mean_cosine: float
    density: Float[Tensor, " angles"]
    by_angle: Float[Tensor, " angles"]
    samples: Float[Tensor, "n 3"]


@dataclass(frozen=True)
class AngleLaws:
    """The three distributions in NAMES, on one grid of angles."""

    angles: Float[Tensor, " angles"]
    laws: tuple[AngleLaw, AngleLaw, AngleLaw]


def angle_laws(
    concentration: float | int, matched: bool = True, samples: int = 300, seed: int = 0, resolution: int = 181
) -> AngleLaws:
    """Power Spherical with that concentration, von Mises-Fisher and the projected Gaussian.

    matched: all three have the same mean cosine, so that only their shapes differ; otherwise von Mises-Fisher has
    the same kappa and the Gaussian sigma = kappa^(-1/2). A concentration of 0 or less, or above 10,000: ValueError.
    """
    kappa = float(concentration)
    require(0 < kappa <= 1e4, f"concentration is {concentration}; expected a number above 0, 10,000 at most")
    angles = torch.linspace(0, math.pi, resolution, dtype=torch.float64)
    cosine = kappa / (kappa + 2)  # mean cosine of Power Spherical in three dimensions
    vmf_kappa = solve(vmf_cosine, cosine, 1e-6, 2e4) if matched else kappa
    sigma = solve(gaussian_cosine, cosine, 1e-3, 1e4) if matched else kappa**-0.5
    axis = torch.tensor(AXIS, dtype=torch.float64)
    power = PowerSpherical(axis, torch.tensor(kappa, dtype=torch.float64))
    von_mises = VonMisesFisher(axis, torch.tensor(vmf_kappa, dtype=torch.float64))
    points = torch.stack((angles.sin(), torch.zeros_like(angles), angles.cos()), dim=-1)
    spread = torch.full((3,), sigma, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    gaussian = projected_gaussian_log_density(points, axis, spread).nan_to_num(-math.inf)  # underflows below e^-700
    densities = (power.log_prob(points), von_mises.log_prob(points), gaussian)
    draws = (
        power.rsample((samples,), generator=generator.manual_seed(seed)),
        von_mises.rsample((samples,), generator=generator.manual_seed(seed)),
        project(axis + sigma * noise),
    )
    cosines = (cosine, vmf_cosine(vmf_kappa), gaussian_cosine(sigma))
    laws = [
        AngleLaw(name, parameter, mean, log.exp(), 2 * math.pi * angles.sin() * log.exp(), drawn)
        for name, parameter, mean, log, drawn in zip(
            NAMES, (kappa, vmf_kappa, sigma), cosines, densities, draws, strict=True
        )
    ]
    return AngleLaws(angles, (laws[0], laws[1], laws[2]))


def angle_histogram(samples: Float[Tensor, "n 3"], bins: int = BINS) -> tuple[Tensor, Tensor]:
    """Histogram of the angles from the axis: bin centres, and the share of samples per radian."""
    axis = torch.tensor(AXIS, dtype=samples.dtype)
    counts, edges = torch.histogram(angle(samples, axis.expand_as(samples)), bins, range=(0.0, math.pi))
    return (edges[1:] + edges[:-1]) / 2, counts * bins / (math.pi * len(samples))


def vmf_cosine(kappa: float) -> float:
    """Mean cosine of the angle from the axis, for von Mises-Fisher in three dimensions."""
    axis = torch.tensor(AXIS, dtype=torch.float64)
    return float(VonMisesFisher(axis, torch.tensor(kappa, dtype=torch.float64), validate_args=False).mean_length)


def gaussian_cosine(sigma: float) -> float:
    """E[y_3/|y|] for y ~ N(e3, sigma^2 I) in three dimensions: (1 - s^2) erf(1/(s√2)) + s √(2/π) exp(-1/(2 s^2)).

    For sigma above 30 the terms cancel numerically; the expansion √(8/π)/(3 sigma) (1 - 1/(10 sigma^2)) replaces them.
    """
    if sigma > 30:
        return math.sqrt(8 / math.pi) / (3 * sigma) * (1 - 1 / (10 * sigma**2))
    tail = sigma * math.sqrt(2 / math.pi) * math.exp(-1 / (2 * sigma**2))
    return (1 - sigma**2) * math.erf(1 / (sigma * math.sqrt(2))) + tail


def solve(rising_or_falling: Callable[[float], float], value: float, low: float, high: float) -> float:
    """The x in [low, high] where a monotone function equals `value`, by bisection on a logarithmic scale."""
    a, b = math.log(low), math.log(high)
    rising = rising_or_falling(high) > rising_or_falling(low)
    while a < (middle := (a + b) / 2) < b:
        if (rising_or_falling(math.exp(middle)) < value) == rising:
            a = middle
        else:
            b = middle
    return math.exp((a + b) / 2)


def sphere_mesh(rings: int = 24) -> tuple[Float[Tensor, "vertices 3"], Tensor]:
    """Triangle mesh of the unit sphere: (rings + 1) x (2 rings + 1) vertices, and the vertex indices per triangle."""
    polar = torch.linspace(0, math.pi, rings + 1, dtype=torch.float64)
    azimuth = torch.linspace(0, 2 * math.pi, 2 * rings + 1, dtype=torch.float64)
    columns = 2 * rings + 1
    corner = (torch.arange(rings)[:, None] * columns + torch.arange(2 * rings)).reshape(-1)
    first = torch.stack((corner, corner + columns, corner + 1), dim=-1)
    second = torch.stack((corner + 1, corner + columns, corner + columns + 1), dim=-1)
    return _unit_vectors(polar, azimuth).reshape(-1, 3), torch.cat((first, second))


def _unit_vectors(polar: Float[Tensor, " p"], azimuth: Float[Tensor, " a"]) -> Float[Tensor, "p a 3"]:
    """Unit vectors by polar angle (from the axis e3) and azimuth."""
    theta, phi = torch.meshgrid(polar, azimuth, indexing="ij")
    return torch.stack((theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()), dim=-1)
