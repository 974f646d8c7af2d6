"""Measurements of latents and of how a decode treats them: tensors in, dataclasses out.

Knows: tokens, traces of a decode, and what can be measured of them.  Does not know: pictures, files, training.

Shapes: tokens are (batch, tokens, dim); profiles by position are (tokens,). Numbers are float64.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """All steps of one decode. raw: as the solver left the tokens.  tokens: as they were handed on.

    scales: guidance scale by position.
    """

    raw: Float[Tensor, "batch tokens dim"]
    tokens: Float[Tensor, "batch tokens dim"]
    scales: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class NormProfile:
    """Length of tokens by position: mean and standard deviation of |z_i| over the batch."""

    mean: Float[Tensor, " tokens"]
    std: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class NormComparison:
    """Norms of generated tokens against real ones. relative: mean generated / mean real - 1, by position."""

    generated: NormProfile
    real: NormProfile
    relative: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class VarianceRatio:
    """Variance generated / real: below 1 is collapse, above 1 is inflation.

    per_dim: variance over batch and positions (each position about its own mean), dimension by dimension.
    per_token: variance over the batch, summed over dimensions, position by position.  total: all of it.
    """

    per_dim: Float[Tensor, " dim"]
    per_token: Float[Tensor, " tokens"]
    total: float


@dataclass(frozen=True)
class RadialShare:
    """|radial|^2 / |error|^2 of a prediction error at the true token: the part that a projection removes.

    per_token: ratio of the batch means of both squares, by position.  mean: the ratio over all of them.
    isotropic: 1 / dim, what an error without a preferred direction has.
    """

    per_token: Float[Tensor, " tokens"]
    mean: float
    isotropic: float


@dataclass(frozen=True)
class NormChange:
    """What guidance does to the length of a token before projection: |guided| / |unguided| - 1 by position.

    mean, std: over the batch, image by image from the same noise.
    """

    mean: Float[Tensor, " tokens"]
    std: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class EffectiveRank:
    """exp of the entropy of the covariance's normalised eigenvalues: from 1 to dim (Roy & Vetterli 2007).

    spectrum: those eigenvalues, largest first, summing to 1.
    """

    rank: float
    spectrum: Float[Tensor, " dim"]


@dataclass(frozen=True)
class ErrorGrowth:
    """What becomes of a perturbation of token `position`: root mean square change over the batch.

    kind: radial, tangential or turning.  size: length of the perturbation.
    latents: |change of the token handed on| by position, 0 before `position`.
    pixels: change of a pixel of the image.
    """

    kind: str
    position: int
    size: float
    projected: bool
    latents: Float[Tensor, " tokens"]
    pixels: float


@dataclass(frozen=True)
class ProjectionJacobian:
    """The derivative of the projection at z, by autograd, against (R/|z|) (I - u u^T), u = z/|z|.

    difference: the largest, entry by entry.
    """

    measured: Float[Tensor, "dim dim"]
    expected: Float[Tensor, "dim dim"]
    difference: float


@dataclass(frozen=True)
class SpreadHistogram:
    """Posterior spread over tokens. edges: of the bins (bins + 1).  counts: a bin.  quantiles: 5, 50, 95 %."""

    edges: Float[Tensor, " edges"]
    counts: Int[Tensor, " bins"]
    mean: float
    quantiles: Float[Tensor, " 3"]


@dataclass(frozen=True)
class ClassDiversity:
    """Mean pairwise distance within a class, generated / real; 0 is one picture over and over.

    labels: the classes.  ratio: class by class.  mean: over classes.
    """

    labels: Int[Tensor, " classes"]
    ratio: Float[Tensor, " classes"]
    mean: float
