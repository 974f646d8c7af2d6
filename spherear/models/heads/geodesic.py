"""The geodesic head: a velocity along the sphere, so that a state keeps length R at every moment of the flow."""

import math

from jaxtyping import Float
from torch import Tensor

from spherear.models.heads.velocity import Modulation, VelocityHead
from spherear.sphere.spaces import Sphere


class GeodesicHead(VelocityHead):
    """v(x, t | condition) with x · v = 0: Riemannian flow matching on the sphere of radius sqrt(latent_dim).

    Noise is uniform on the sphere, x_t lies on the great circle from noise to token, and the target is its velocity,
    of constant length R angle(noise, token). The network's output loses its part along x. Guidance combines tangent
    vectors at one point, which is a tangent vector; solvers move along great circles (`sphere.spaces`). So no
    projection is needed after a draw. (Chen & Lipman, Flow Matching on General Geometries, ICLR 2024, section 3.)
    """

    curved = True

    def __init__(self, latent_dim: int, condition_width: int, width: int, depth: int, groups: int) -> None:
        super().__init__(latent_dim, condition_width, width, depth, groups)
        self.space = Sphere(math.sqrt(latent_dim))

    def modulated_velocity(self, x: Float[Tensor, "*batch dim"], modulation: Modulation) -> Float[Tensor, "*rows dim"]:
        """Velocity at x, perpendicular to x; rows as in `VelocityHead.modulated_velocity`."""
        out = super().modulated_velocity(x, modulation)
        at = x.to(out.dtype)
        return self.space.tangent(out, at.repeat(2, 1) if len(out) == 2 * len(at) else at)
