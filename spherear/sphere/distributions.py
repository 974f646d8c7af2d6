"""The distributions on the unit sphere.

Import them from here: it also registers their divergences with `torch.distributions.kl_divergence` (see `divergences`).
"""

from spherear.sphere import divergences as divergences
from spherear.sphere.angular_central_gaussian import AngularCentralGaussian
from spherear.sphere.laws import unit_sphere
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.uniform import HypersphericalUniform
from spherear.sphere.von_mises_fisher import VonMisesFisher

__all__ = [
    "AngularCentralGaussian",
    "HypersphericalUniform",
    "PowerSpherical",
    "VonMisesFisher",
    "unit_sphere",
]
