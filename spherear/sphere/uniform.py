"""The uniform distribution on the unit sphere: the prior of every posterior on the sphere."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from spherear.sphere.geometry import log_sphere_area
from spherear.sphere.laws import ONE_DRAW, SphericalLaw, uniform_direction


class HypersphericalUniform(SphericalLaw):
    """p(u) = 1/|S^{dim-1}|, the same density everywhere on the unit sphere in R^dim.

    Draws are normalised Gaussians, in dtype (default: torch's, at least float32) on device. ValueError for
    dim < 2. (Paper section 3: the prior of the S-VAE.)
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        dim: int,
        batch_shape: Sequence[int] = ONE_DRAW,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        origin = torch.empty(0, dtype=dtype, device=device)
        self.dtype = torch.promote_types(origin.dtype, torch.float32)
        self.device = origin.device
        super().__init__(torch.Size(batch_shape), dim, validate_args)

    def __repr__(self) -> str:
        return f"HypersphericalUniform(dim: {self.dim}, batch_shape: {tuple(self.batch_shape)})"

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "HypersphericalUniform":
        """The same distribution with its batch shape broadcast to batch_shape."""
        return self._expanded(batch_shape, _instance)

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """E[u] = 0: no direction is preferred."""
        return self._filled(0.0, *self.batch_shape, self.dim)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Var[u_i] = 1/dim, since the squares of the coordinates sum to 1."""
        return self._filled(1 / self.dim, *self.batch_shape, self.dim)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(u) = -log |S^{dim-1}|, in nats; value (..., dim). ValueError for a value off the sphere."""
        self._checked(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return self._result(self._filled(-log_sphere_area(self.dim), *shape), value)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """H = log |S^{dim-1}|, in nats: the maximum over all distributions on the sphere."""
        return self._filled(log_sphere_area(self.dim), *self.batch_shape)

    def _filled(self, number: float, *shape: int) -> Float[Tensor, "..."]:
        return torch.full(shape, number, dtype=self.dtype, device=self.device)

    def _draw(self, shape: torch.Size, generator: Generator | None) -> Float[Tensor, "..."]:
        return uniform_direction(self._filled(0.0), (*shape, self.dim), generator)
