"""Diagnostics of latents and decoded tokens: lengths, variances, radial errors and rank.

Shapes: tokens are (batch, tokens, dim); profiles by position are (tokens,). Numbers are float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.heads.velocity import VelocityHead
from spherear.models.vae import check_finite
from spherear.sphere.geometry import split


@dataclass(frozen=True)
class NormProfile:
    """Length of tokens by position: mean and standard deviation of |z_i| over the batch."""

    mean: Float[Tensor, " tokens"]
    std: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class NormComparison:
    """Lengths of generated and real tokens. relative: mean generated / mean real - 1, by position."""

    generated: NormProfile
    real: NormProfile
    relative: Float[Tensor, " tokens"]

    @property
    def early(self) -> float:
        """Mean relative difference over the first quarter of positions."""
        return float(self.relative[: math.ceil(len(self.relative) / 4)].mean())

    @property
    def late(self) -> float:
        """Mean relative difference over the last quarter of positions."""
        return float(self.relative[-math.ceil(len(self.relative) / 4) :].mean())


@dataclass(frozen=True)
class VarianceRatio:
    """Variance generated / real: below 1 is collapse, above 1 is inflation.

    per_dim: variance over batch and positions (each position about its own mean), by dimension.
    per_token: variance over the batch, summed over dimensions, by position.  total: summed over both.
    """

    per_dim: Float[Tensor, " dim"]
    per_token: Float[Tensor, " tokens"]
    total: float


@dataclass(frozen=True)
class RadialShare:
    """|radial|^2 / |error|^2 of an error at the true token: for a small error, the share that a projection removes.

    An estimate of the mean token lies inside the sphere, so its error points inwards even if the estimate is exact.

    per_token: ratio of the batch means of both squares, by position.  mean: the ratio over all positions.
    isotropic: 1 / dim, the share of an error without a preferred direction.
    """

    per_token: Float[Tensor, " tokens"]
    mean: float
    isotropic: float


@dataclass(frozen=True)
class EffectiveRank:
    """exp of the entropy of the covariance's normalised eigenvalues: from 1 to dim (Roy & Vetterli 2007).

    spectrum: those eigenvalues, largest first, summing to 1.
    """

    rank: float
    spectrum: Float[Tensor, " dim"]


@dataclass(frozen=True)
class ProjectionJacobian:
    """The derivative of the projection at z, by autograd, against (R/|z|) (I - u u^T), u = z/|z|.

    difference: the largest absolute difference of entries.
    """

    measured: Float[Tensor, "dim dim"]
    expected: Float[Tensor, "dim dim"]
    difference: float


@dataclass(frozen=True)
class SpreadHistogram:
    """Histogram of the posterior spread. edges: of the bins (bins + 1).  counts: per bin.  quantiles: 5, 50, 95 %."""

    edges: Float[Tensor, " edges"]
    counts: Int[Tensor, " bins"]
    mean: float
    quantiles: Float[Tensor, " 3"]


def norm_profile(tokens: Float[Tensor, "batch tokens dim"]) -> NormProfile:
    """Mean and standard deviation (divisor n - 1) of |z_i| over the batch. Fewer than two images: ValueError."""
    norms = torch.linalg.vector_norm(_checked("tokens", tokens), dim=-1)  # (batch, tokens)
    return NormProfile(norms.mean(dim=0), norms.std(dim=0))


def compare_norms(
    generated: Float[Tensor, "batch tokens dim"], real: Float[Tensor, "images tokens dim"]
) -> NormComparison:
    """relative = mean |generated| / mean |real| - 1, by position. Different token shapes: ValueError."""
    _check_alike(generated, real)
    generated_profile, real_profile = norm_profile(generated), norm_profile(real)
    return NormComparison(generated_profile, real_profile, generated_profile.mean / real_profile.mean - 1)


def variance_ratio(
    generated: Float[Tensor, "batch tokens dim"], real: Float[Tensor, "images tokens dim"]
) -> VarianceRatio:
    """Var(generated) / Var(real), each position about its own mean over images."""
    _check_alike(generated, real)
    generated_var, real_var = (_checked(n, z).var(dim=0) for n, z in (("generated", generated), ("real", real)))
    return VarianceRatio(
        per_dim=generated_var.sum(dim=0) / real_var.sum(dim=0),
        per_token=generated_var.sum(dim=1) / real_var.sum(dim=1),
        total=float(generated_var.sum() / real_var.sum()),
    )


@torch.no_grad()
def prediction_error(
    ar: SphereAR,
    tokens: Float[Tensor, "batch tokens dim"],
    labels: Int[Tensor, " batch"],
    time: float,
    noise: Float[Tensor, "batch tokens dim"],
) -> Float[Tensor, "batch tokens dim"]:
    """x_1 - z with x_1 = x_t + (1 - t) v(x_t, t) and x_t = (1 - t) noise + t z: the error of one step to the end.

    On the sphere, for a geodesic head, x_t lies on the great circle from noise to z, and the step follows one.
    All earlier tokens are the true ones. time: t in [0, 1). A head without a velocity: TypeError.
    """
    require(0 <= time < 1, f"time is {time}; expected 0 or more and below 1")
    if not isinstance(ar.head, VelocityHead):
        raise TypeError(f"the head is a {type(ar.head).__name__}; expected a VelocityHead")
    times, space = torch.full_like(tokens[..., 0], time), ar.head.space
    x, _ = space.path(noise, tokens, times[..., None])
    velocity = ar.head(x, times, ar(tokens, labels))
    return space.move(x, (1 - time) * velocity) - tokens


def radial_share(error: Float[Tensor, "batch tokens dim"], at: Float[Tensor, "batch tokens dim"]) -> RadialShare:
    """sum |(error · u) u|^2 / sum |error|^2 with u = at/|at|: by position, and over all."""
    _check_alike(error, at)
    radial, _ = split(_checked("error", error), _checked("at", at))
    radial_square, total_square = (x.double().square().sum(dim=(0, 2)) for x in (radial, error))  # (tokens,) each
    require(float(total_square.min()) > 0, "the error of some token is 0 in all images; expected a non-zero error")
    share = float(radial_square.sum() / total_square.sum())
    return RadialShare(radial_square / total_square, share, 1 / error.shape[-1])


def effective_rank(tokens: Float[Tensor, "batch tokens dim"]) -> EffectiveRank:
    """exp(-sum p log p), p the normalised eigenvalues of the covariance of tokens about the mean of their position."""
    centred = _checked("tokens", tokens)
    centred = (centred - centred.mean(dim=0)).flatten(0, 1)  # (batch * tokens, dim)
    values = torch.linalg.eigvalsh(centred.mT @ centred).clamp(min=0).flip(0)
    require(float(values.sum()) > 0, "all images have the same tokens; expected them to vary")
    spectrum = values / values.sum()
    return EffectiveRank(float(torch.special.entr(spectrum).sum().exp()), spectrum)


def repeated_shares(
    first: Float[Tensor, "batch tokens dim"], second: Float[Tensor, "batch tokens dim"]
) -> Float[Tensor, " dim"]:
    """How much of a token is about its image: shares of variance that two posterior samples of it have in common.

    Along the axes where they are largest, largest first: 1 where a token says the same in both, about 0 along an axis
    that holds noise alone. Axes above a half are busy. The eigenvalues of T^-1 C, with C the covariance between both
    samples and T that within, about the mean of each position.
    ValueError for tokens that do not vary along every axis.
    """
    pair = [_checked("tokens", tokens) for tokens in (first, second)]
    x, y = ((tokens - tokens.mean(dim=0)).flatten(0, 1) for tokens in pair)  # (batch * tokens, dim)
    between, within = (x.mT @ y + y.mT @ x) / 2, (x.mT @ x + y.mT @ y) / 2
    factor, failed = torch.linalg.cholesky_ex(within)
    require(not failed, "tokens do not vary along every axis; expected them to")
    left = torch.linalg.solve_triangular(factor, between, upper=False)
    return torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, left.mT, upper=False)).flip(0)


def projection_jacobian(project: Callable[[Tensor], Tensor], z: Float[Tensor, " dim"]) -> ProjectionJacobian:
    """d project(z) / dz, by autograd, against (R/|z|) (I - u u^T) with R = |project(z)|, u = z/|z|."""
    z = z.double()
    measured = torch.func.jacrev(project)(z)  # (dim, dim)
    u, scale = z / z.norm(), project(z).norm() / z.norm()
    expected = scale * (torch.eye(len(z), dtype=z.dtype, device=z.device) - torch.outer(u, u))
    return ProjectionJacobian(measured, expected, float((measured - expected).abs().max()))


def spread_histogram(spread: Float[Tensor, "*shape"], bins: int = 40) -> SpreadHistogram:
    """Counts of posterior spreads (concentrations or standard deviations) in bins of equal width from min to max."""
    require(bins >= 1, f"bins is {bins}; expected at least 1")
    values = spread.detach().double().flatten().cpu()
    check_finite("spread", values)
    counts, edges = torch.histogram(values, bins)
    quantiles = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    return SpreadHistogram(edges, counts.long(), float(values.mean()), quantiles)


def _checked(name: str, z: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """z in float64. Fewer than two images, or numbers that are not finite: ValueError."""
    require(len(z) >= 2, f"{name} are of {len(z)} images; expected at least 2")
    check_finite(name, z)
    return z.detach().double()


def _check_alike(a: Tensor, b: Tensor) -> None:
    require(a.shape[1:] == b.shape[1:], f"tokens are {tuple(a.shape[1:])} and {tuple(b.shape[1:])}; expected the same")
