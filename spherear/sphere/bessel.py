"""The Bessel functions of the von Mises-Fisher distribution, as two functions of the concentration.

With u uniform on the sphere in R^dim and t one of its coordinates, M(kappa) = log E[exp(kappa t)], and
A(kappa) = M'(kappa) = I_{dim/2}(kappa)/I_{dim/2-1}(kappa). Tensors are float64; any dim >= 2.

Both start at a high order, where the uniform (Debye) expansion of I is exact to rounding for every argument.
The three-term recurrence of I then leads down to the wanted order; it is stable in this direction. Nothing
overflows, underflows or cancels for any kappa >= 0. (DLMF 10.29.1, 10.41.3, 10.41.10.)
"""

from fractions import Fraction
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# The expansion is used from this order on, with this many terms: exact to rounding (measured against 50 digits).
START_ORDER = 24
TERMS = 10


def log_moment(kappa: Float[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch"]:
    """M(kappa) = log E[exp(kappa t)] for t a coordinate of a uniform unit vector in R^dim; M(0) = 0, M' = A.

    The log of 0F1(dim/2; kappa^2/4). kappa >= 0 in float64. Differentiable to any order.
    """
    return _LogMoment.apply(kappa, dim)


def scaled_ratio(kappa: Float[Tensor, "*batch"], dim: int) -> Float[Tensor, "*batch"]:
    """r(kappa) = A(kappa)/kappa = I_{dim/2}(kappa)/(kappa I_{dim/2-1}(kappa)); r(0) = 1/dim.

    Its derivative is r' = kappa r (r_+ - r), with r_+ the same ratio for dim + 2. This is equivalent to
    A' = 1 - A^2 - (dim - 1) A/kappa but does not divide by kappa. Differentiable to any order.
    """
    return _ScaledRatio.apply(kappa, dim)


class _LogMoment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _descend(kappa, dim)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return grad * kappa * scaled_ratio(kappa, ctx.dim), None


class _ScaledRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _descend(kappa, dim)[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        ratio, next_ratio = scaled_ratio(kappa, ctx.dim), scaled_ratio(kappa, ctx.dim + 2)
        return grad * kappa * ratio * (next_ratio - ratio), None


def _descend(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(M, r) at order dim/2 - 1, from the expansion at a high order n = dim/2 - 1 + an integer.

    With r_n = I_{n+1}/(x I_n): r_{n-1} = 1/(2n + x^2 r_n), M_{n-1} = M_n + log(1 + x^2 r_n/(2n)).
    """
    order = dim / 2 - 1
    steps = max(0, round(START_ORDER - order))
    moment, ratio = _debye(x, order + steps)
    squared = x * x
    for n in (order + k for k in range(steps, 0, -1)):
        product = squared * ratio
        moment = moment + torch.log1p(product / (2 * n))
        ratio = 1 / (2 * n + product)
    return moment, ratio


def _debye(x: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """(M, r) at order n by the uniform expansion I_n(x) ~ exp(s - n asinh(n/x)) S_n/sqrt(2π s), s = |(n, x)|.

    Differences of large numbers are simplified algebraically: the terms that remain vanish at x = 0 (in M) or
    stay of the order of n/x (in r).
    """
    squared = x * x
    s, s_next = (n * n + squared).sqrt(), ((n + 1) ** 2 + squared).sqrt()
    rise = squared / (s + n)  # s - n
    step = (2 * n + 1) / (s + s_next)  # s_{n+1} - s_n
    series = _debye_sum(s, n)
    moment = rise - n * torch.log1p(rise / (2 * n)) - torch.log1p(rise / n) / 2
    moment = moment + torch.log(series / _debye_sum(torch.full_like(s, n), n))
    log_ratio = step - (n + 1) * torch.log1p((1 + step) / (n + s)) - torch.log1p(step / s) / 2
    ratio = log_ratio.exp() / (n + s) * _debye_sum(s_next, n + 1) / series
    return moment, ratio


def _debye_sum(s: Tensor, n: float) -> Tensor:
    """S_n = sum_k U_k(p)/n^k with p = n/s; U_k(p) = p^k (a polynomial in p^2), so U_k(p)/n^k = (...)/s^k."""
    p_squared, inverse = (n / s) ** 2, 1 / s
    total = torch.zeros_like(s)
    for coefficients in reversed(_debye_coefficients()):
        term = torch.zeros_like(s)
        for c in reversed(coefficients):
            term = term * p_squared + c
        total = total * inverse + term
    return total


@cache
def _debye_coefficients() -> list[list[float]]:
    """The c in U_k(p) = p^k sum_j c[k][j] p^2j, computed exactly and rounded only at the end.

    U_0 = 1, U_{k+1} = p^2 (1 - p^2) U_k'/2 + ∫_0^p (1 - 5 q^2) U_k(q) dq/8.
    """
    rows = [[Fraction(1)]]
    for k in range(TERMS - 1):
        row = [Fraction(0)] * (k + 2)
        for j, c in enumerate(rows[-1]):
            power = k + 2 * j
            row[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            row[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        rows.append(row)
    return [[float(c) for c in row] for row in rows]
