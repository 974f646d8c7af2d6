"""Ratios of gamma functions whose arguments differ by beta, for Power Spherical; the large logs are not subtracted.

Tensors are float64, alpha >= 0.5, beta >= 0.5. The recurrence of the gamma function leads up to arguments where
Stirling's series is exact to rounding (DLMF 5.5.1, 5.11.1). Plain operations: differentiable to any order.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SHIFT = 16  # arguments of the series are at least this
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)  # B_2k/(2k (2k - 1)), k = 1, 2, ...


def log_gamma_ratio(alpha: Float[Tensor, "*batch"], beta: float) -> Float[Tensor, "*batch"]:
    """R(alpha) = log Γ(alpha + beta) - log Γ(alpha). Error: 1e-14 (1 + |R|) at most, for any alpha."""
    low = alpha + SHIFT
    high = low + beta
    far = (low - 0.5) * torch.log1p(beta / low) + beta * (high.log() - 1)
    return far + _stirling(high) - _stirling(low) - torch.log1p(beta / _shifted(alpha)).sum(-1)


def digamma_difference(alpha: Float[Tensor, "*batch"], beta: float) -> Float[Tensor, "*batch"]:
    """R'(alpha) = ψ(alpha + beta) - ψ(alpha). Relative error: 1e-14 at most, for any alpha."""
    low = alpha + SHIFT
    high = low + beta
    far = torch.log1p(beta / low) + beta / (2 * low * high)
    near = _shifted(alpha)
    return far + _stirling_slope(high) - _stirling_slope(low) + (beta / near / (near + beta)).sum(-1)


def _shifted(alpha: Tensor) -> Tensor:
    """alpha, alpha + 1, ... on a new last axis: the arguments that the recurrence passes."""
    return alpha.unsqueeze(-1) + torch.arange(SHIFT, dtype=alpha.dtype, device=alpha.device)


def _stirling(z: Tensor) -> Tensor:
    """log Γ(z) - (z - 1/2) log z + z - log(2π)/2."""
    return sum((c * z ** (-2 * k - 1) for k, c in enumerate(SERIES)), torch.zeros_like(z))


def _stirling_slope(z: Tensor) -> Tensor:
    """ψ(z) - log z + 1/(2 z)."""
    return sum(((-2 * k - 1) * c * z ** (-2 * k - 2) for k, c in enumerate(SERIES)), torch.zeros_like(z))
