"""The idea: points, laws and latents of fixed length."""

from spherear.sphere.bottlenecks import BOTTLENECKS, Bottleneck, Latent, bottleneck
from spherear.sphere.distributions import (
    AngularCentralGaussian,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    unit_sphere,
)
from spherear.sphere.geometry import project

__all__ = [
    "BOTTLENECKS",
    "AngularCentralGaussian",
    "Bottleneck",
    "HypersphericalUniform",
    "Latent",
    "PowerSpherical",
    "VonMisesFisher",
    "bottleneck",
    "project",
    "unit_sphere",
]
