"""The angular central Gaussian distribution: the direction of a Gaussian with mean 0; elliptical, not axial.

With a nonzero mean (the posterior of the `normalized_gaussian` bottleneck) the direction follows another
distribution, which has no closed form.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from spherear.sphere.geometry import log_sphere_area, project
from spherear.sphere.laws import SphericalLaw, double, gaussian, without_autocast

STEP = 0.2  # largest step of the quadratures; their error is about dim e^(-π^2/STEP)
MARGIN = 40.0  # e^-40 is below float64's rounding


class _FiniteLowerCholesky(Constraint):
    """A finite lower triangular matrix with a positive diagonal."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return constraints.lower_cholesky.check(value) & value.isfinite().all(-1).all(-1)


class AngularCentralGaussian(SphericalLaw):
    """p(u) = |S^{dim-1}|^-1 |Σ|^-1/2 (u^T Σ^-1 u)^{-dim/2}: the density of z/|z| for z ~ N(0, Σ), Σ = L L^T.

    scale_tril (..., dim, dim): L, lower triangular with a positive diagonal (`torch.diag_embed(scale)` for axes
    along the coordinates). Scaling L changes nothing. L = I is the uniform distribution. u and -u are equally
    likely. ValueError, when validation is on, for any other matrix. (Tyler 1987; paper figure 5.)

    In float64, for dim up to 2048 and condition numbers of Σ up to 1e20: entropy and KL to the uniform distribution
    within 1e-12 (1 + KL) + 1e-11 nats and variance within 1e-12. Where L is not diagonal, its singular values have an
    error too: 1e-16 cond(L) in their logs.
    """

    arg_constraints = {"scale_tril": _FiniteLowerCholesky()}  # noqa: RUF012
    scale_tril: Tensor

    def __init__(self, scale_tril: Float[Tensor, "*batch dim dim"], validate_args: bool | None = None) -> None:
        if scale_tril.ndim < 2:
            raise ValueError(f"scale_tril must have shape (..., dim, dim), got {tuple(scale_tril.shape)}")
        self.dtype = torch.promote_types(scale_tril.dtype, torch.float32)
        self.device = scale_tril.device
        self.scale_tril = scale_tril.to(self.dtype)
        super().__init__(scale_tril.shape[:-2], scale_tril.shape[-1], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "AngularCentralGaussian":
        """The same distribution with its batch shape broadcast to batch_shape."""
        scale_tril = self.scale_tril.expand(*batch_shape, self.dim, self.dim)
        return self._expanded(batch_shape, _instance, scale_tril=scale_tril)

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """E[u] = 0, by symmetry."""
        return torch.zeros_like(self.scale_tril[..., 0])

    @property
    @without_autocast
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Var[u_i] = E[u_i^2] = sum_j V_ij^2 w_j: V the axes of Σ, w_j the mean square of u along axis j.

        The w_j come from a quadrature and sum to 1. Gradients need distinct axis lengths.
        """
        axes, lengths, _ = torch.linalg.svd(double(self.scale_tril))
        return self._result((axes**2 * _axis_shares(lengths).unsqueeze(-2)).sum(-1))

    @without_autocast
    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log p(u) = -log |S^{dim-1}| - log |L| - dim log |L^-1 u|, in nats.

        ValueError for a value off the sphere.
        """
        factor = double(self.scale_tril)
        identity = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        log_length = torch.linalg.vector_norm(_apply(inverse, self._checked(value)), dim=-1).log()
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self._result(-log_sphere_area(self.dim) - log_det - self.dim * log_length, value)

    @without_autocast
    def entropy(self) -> Float[Tensor, "*batch"]:
        """H = log |S^{dim-1}| - KL(p || uniform), in nats; see `divergence_from_uniform`."""
        divergence = divergence_from_uniform(double(self.scale_tril))
        return self._result(log_sphere_area(self.dim) - divergence)

    def _draw(self, shape: torch.Size, generator: Generator | None) -> Float[Tensor, "..."]:
        """u = L e/|L e| with e ~ N(0, I), pathwise in L."""
        e = gaussian(self.scale_tril, (*shape, self.dim), generator)
        return project(_apply(self.scale_tril, e))


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    """matrix v, with vectors on the last axis of v; one product for all draws that share a matrix."""
    return (v.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def divergence_from_uniform(factor: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch"]:
    """KL = (dim/2) ∫ [(1 + 2 e^x)^{-dim/2} - prod_i (1 + 2 l_i e^x)^{-1/2}] dx over all real x, in nats.

    KL(p || uniform) for p the angular central Gaussian with Σ = factor factor^T; l_i are the eigenvalues of Σ
    divided by their geometric mean. It equals (dim/2) (E log sum_i l_i e_i^2 - E log |e|^2), e ~ N(0, I), with
    log q = ∫ (e^-y - e^-qy) dy/y and y = e^x. The integrand is analytic for |Im x| < π, does not grow for |Im x| < π/2
    and decays exponentially along the axis: with steps of at most STEP, the error of the trapezoidal rule is below
    rounding. factor: float64, any invertible matrix.
    """
    spectrum = _centred_log_spectrum(torch.linalg.svdvals(factor))
    x, step = _grid(spectrum)
    dim = spectrum.shape[-1]
    uniform = torch.exp(-dim / 2 * _softplus(x + math.log(2)))
    return dim / 2 * step.squeeze(-1) * (uniform - _survival(x, spectrum)).sum(-1)


def _axis_shares(lengths: Tensor) -> Tensor:
    """w_j = E[l_j e_j^2/Σ l_i e_i^2] = ∫ (l_j e^x/(1 + 2 l_j e^x)) prod_i (1 + 2 l_i e^x)^{-1/2} dx."""
    spectrum = _centred_log_spectrum(lengths)
    x, step = _grid(spectrum)
    share = torch.sigmoid(_shifted(x, spectrum)) / 2
    return step * (share * _survival(x, spectrum).unsqueeze(-1)).sum(-2)


def _centred_log_spectrum(lengths: Tensor) -> Tensor:
    """log l_i = 2 log s_i minus its mean, from the singular values s_i."""
    log_spectrum = 2 * lengths.log()
    return log_spectrum - log_spectrum.mean(-1, keepdim=True)


def _grid(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced x over the support of the integrand (..., nodes), and the step (..., 1); no gradients.

    The widest spectrum of the batch decides how many nodes there are. A spectrum that is not finite gives NaN.
    """
    constant = spectrum.detach()
    start = -constant.amax(-1, keepdim=True) - MARGIN
    width = MARGIN - constant.amin(-1, keepdim=True) - start
    steps = math.ceil(max([2 * MARGIN, *width.nan_to_num(0.0, 0.0).flatten().tolist()]) / STEP)
    count = torch.arange(steps + 1, dtype=constant.dtype, device=constant.device)
    return start + width / steps * count, width / steps


def _shifted(x: Tensor, spectrum: Tensor) -> Tensor:
    """log(2 l_i e^x), (..., nodes, dim)."""
    return x.unsqueeze(-1) + spectrum.unsqueeze(-2) + math.log(2)


def _survival(x: Tensor, spectrum: Tensor) -> Tensor:
    """E exp(-e^x Σ l_i e_i^2) = prod_i (1 + 2 l_i e^x)^{-1/2}, (..., nodes)."""
    return torch.exp(-_softplus(_shifted(x, spectrum)).sum(-1) / 2)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's default drops e^-x from x = 20 on, where it is 2e-9."""
    return torch.nn.functional.softplus(x, threshold=MARGIN)
