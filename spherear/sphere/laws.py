"""Base classes of the distributions ("laws") on the unit sphere; each density has its own file.

Densities are with respect to the surface measure of the unit sphere.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor
from torch.distributions import Distribution, constraints

from spherear.sphere.geometry import project, widen

ONE_DRAW = torch.Size()

P = ParamSpec("P")
R = TypeVar("R")
Law = TypeVar("Law", bound="SphericalLaw")
AxisLaw = TypeVar("AxisLaw", bound="AxialLaw")


class _UnitSphere(constraints.Constraint):
    """| |u| - 1 | <= eps^(3/4) with eps of u's dtype: 6e-6 in float32, 2e-12 in float64, 0.03 in bfloat16."""

    event_dim = 1

    def check(self, value: Float[Tensor, "*shape dim"]) -> Bool[Tensor, "*shape"]:
        length = torch.linalg.vector_norm(widen(value), dim=-1)
        return (length - 1).abs() <= torch.finfo(value.dtype).eps ** 0.75


unit_sphere = _UnitSphere()
LARGEST = 1e75  # of concentrations: the fourth power is finite in float64


class _FiniteGreaterThanEq(constraints.greater_than_eq):
    """0 <= kappa <= LARGEST; an infinite concentration is a point mass, which has no density."""

    def check(self, value: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (value >= self.lower_bound) & (value <= LARGEST)


def without_autocast(method: Callable[Concatenate[Law, P], R]) -> Callable[Concatenate[Law, P], R]:
    """The method with autocast turned off on the law's device: bfloat16 is too coarse for a density."""

    @wraps(method)
    def exact(self: Law, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return exact


def double(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x in float64; in float32 on mps devices, which have no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def unit_double(x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """x/|x| in float64, so that a large kappa does not amplify rounding errors in the length of x."""
    return project(double(x))


def renormalise(u: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """u/|u|, for u a unit vector up to rounding."""
    return u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)


def gaussian(like: Tensor, shape: Sequence[int], generator: Generator | None) -> Float[Tensor, "..."]:
    """Standard normal numbers of the given shape, in the dtype and on the device of `like`."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def uniform_direction(like: Tensor, shape: Sequence[int], generator: Generator | None) -> Float[Tensor, "..."]:
    """g/|g| with g ~ N(0, I): uniform on the sphere of the last axis (the pole e1 if g is 0)."""
    g = gaussian(like, shape, generator)
    g[..., 0] += (g == 0).all(-1)
    return project(g)


class SphericalLaw(Distribution):
    """A distribution of unit vectors u in R^dim, with reparameterised draws. Event shape (dim,).

    Subclasses define `log_prob`, `entropy`, `mean`, `variance` and `_draw`. Everything is computed in float32
    or better under any autocast (in float64 where precision matters) and returned in the dtype of the
    parameters (at least float32). Draws have length 1 up to the rounding of that dtype. dim < 2: ValueError.
    """

    support = unit_sphere
    has_rsample = True
    dtype: torch.dtype
    device: torch.device

    def __init__(self, batch_shape: torch.Size, dim: int, validate_args: bool | None = None) -> None:
        if dim < 2:
            raise ValueError(f"a law on the sphere needs dim >= 2, got dim = {dim}")
        super().__init__(batch_shape, torch.Size([dim]), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """Dimension of the space that contains the sphere S^{dim-1}."""
        return self.event_shape[0]

    @without_autocast
    def rsample(
        self, sample_shape: Sequence[int] = ONE_DRAW, generator: Generator | None = None
    ) -> Float[Tensor, "..."]:
        """u ~ p, shape sample_shape + batch_shape + (dim,), differentiable in the parameters.

        generator: on the law's device; torch's global one by default.
        """
        return self._draw(torch.Size(sample_shape) + self.batch_shape, generator)

    def sample(
        self, sample_shape: Sequence[int] = ONE_DRAW, generator: Generator | None = None
    ) -> Float[Tensor, "..."]:
        """u ~ p as in `rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def _draw(self, shape: torch.Size, generator: Generator | None) -> Float[Tensor, "..."]:
        raise NotImplementedError

    def _checked(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """value/|value| in float64; ValueError if validation is on and value is not on the unit sphere."""
        if self._validate_args:
            self._validate_sample(value)
        return unit_double(value)

    def _result(self, x: Float[Tensor, "..."], *others: Tensor) -> Float[Tensor, "..."]:
        """x in the widest dtype among the law's and those of `others`."""
        dtype = self.dtype
        for other in others:
            dtype = torch.promote_types(dtype, other.dtype)
        return x.to(dtype)

    def _expanded(self: Law, batch_shape: Sequence[int], instance: Any, **parameters: Tensor) -> Law:
        """A copy of this law with `parameters` that are already expanded to the new batch shape."""
        new: Law = self._get_checked_instance(type(self), instance)
        new.dtype, new.device = self.dtype, self.device
        for name, value in parameters.items():
            setattr(new, name, value)
        SphericalLaw.__init__(new, torch.Size(batch_shape), self.dim, validate_args=False)
        new._validate_args = self._validate_args
        return new


class AxialLaw(SphericalLaw):
    """A distribution whose density depends only on t = mu · u: axis `loc` = mu, concentration kappa >= 0.

    Shapes: loc (..., dim), unit vectors; concentration (...), broadcast against each other. kappa = 0 is the
    uniform distribution. ValueError, when validation is on, for a loc off the sphere or a concentration that is
    negative or not finite (above 1e75), and always for dim < 2. Subclasses define the moments of t, in float64.
    """

    arg_constraints = {"loc": unit_sphere, "concentration": _FiniteGreaterThanEq(0.0)}  # noqa: RUF012
    loc: Tensor
    concentration: Tensor

    def __init__(
        self,
        loc: Float[Tensor, "*#batch dim"],
        concentration: Float[Tensor, "*#batch"] | float,
        validate_args: bool | None = None,
    ) -> None:
        if loc.ndim < 1:
            raise ValueError(f"loc must have shape (..., dim), got {tuple(loc.shape)}")
        concentration = torch.as_tensor(concentration, device=loc.device)
        kappa = concentration if concentration.ndim else concentration.to(loc.dtype)
        self.dtype = torch.promote_types(torch.promote_types(loc.dtype, kappa.dtype), torch.float32)
        self.device = loc.device
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], kappa.shape)
        self.loc = _upcast(loc, self.dtype).expand(*batch_shape, loc.shape[-1])
        self.concentration = kappa.to(self.dtype).expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1], validate_args)

    def expand(self: AxisLaw, batch_shape: Sequence[int], _instance: Any = None) -> AxisLaw:
        """The same distribution with its batch shape broadcast to batch_shape."""
        return self._expanded(
            batch_shape,
            _instance,
            loc=self.loc.expand(*batch_shape, self.dim),
            concentration=self.concentration.expand(*batch_shape),
        )

    @property
    def mode(self) -> Float[Tensor, "*batch dim"]:
        """mu, the direction of highest density (at kappa = 0 the density is constant)."""
        return self.loc

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """E[u] = m mu, with m the mean length; a point inside the unit ball."""
        return self.mean_length.unsqueeze(-1) * self.loc

    @property
    @without_autocast
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Var[u_i] = mu_i^2 Var[t] + (1 - mu_i^2) E[1 - t^2]/(dim - 1), per coordinate."""
        along, across = self._axial_variance()
        squared = unit_double(self.loc) ** 2
        return self._result(squared * along.unsqueeze(-1) + (1 - squared) * across.unsqueeze(-1))

    @property
    @without_autocast
    def mean_length(self) -> Float[Tensor, "*batch"]:
        """m = E[t] = |E[u]|, the mean resultant length, in [0, 1)."""
        return self._result(self._mean_length())

    @property
    @without_autocast
    def log_normalizer(self) -> Float[Tensor, "*batch"]:
        """log C(kappa), the log of the normalising factor of the density."""
        return self._result(self._log_normalizer())

    @without_autocast
    def entropy(self) -> Float[Tensor, "*batch"]:
        """H = -E[log p(u)], in nats."""
        return self._result(self._entropy())

    @property
    def _kappa(self) -> Float[Tensor, "*batch"]:
        return double(self.concentration)

    def _mean_length(self) -> Float[Tensor, "*batch"]:
        raise NotImplementedError

    def _log_normalizer(self) -> Float[Tensor, "*batch"]:
        raise NotImplementedError

    def _entropy(self) -> Float[Tensor, "*batch"]:
        raise NotImplementedError

    def _axial_variance(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """(Var[t], E[1 - t^2]/(dim - 1)): variance along the axis and in each orthogonal direction; float64."""
        raise NotImplementedError


def _upcast(loc: Float[Tensor, "*shape dim"], dtype: torch.dtype) -> Float[Tensor, "*shape dim"]:
    """loc in a dtype at least as wide. If it is wider, unit vectors are normalised again in the new dtype."""
    wide = loc.to(dtype)
    if wide is loc:
        return loc
    return torch.where(unit_sphere.check(loc).unsqueeze(-1), project(wide), wide)
