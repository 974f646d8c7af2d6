"""Distances between generated and real images, from feature vectors of any network, in float64."""

from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spherear.models.config import require

CHUNK = 1024  # rows of a distance matrix held at a time


@dataclass(frozen=True)
class Moments:
    """Mean (f,) and covariance (f, f) of features, as a Frechet distance needs them."""

    mean: Float[Tensor, " f"]
    covariance: Float[Tensor, "f f"]

    @classmethod
    def of(cls, features: Float[Tensor, "n f"]) -> "Moments":
        """Sample moments (divisor n - 1) of at least two feature vectors."""
        x = _checked(features, at_least=2)
        centred = x - x.mean(dim=0)
        return cls(x.mean(dim=0), centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Float[Tensor, "n f"] | Moments, b: Float[Tensor, "m f"] | Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)): 0 for equal moments (Heusel et al. 2017).

    The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2), which avoids the
    root of an asymmetric matrix. Features of different widths, or not finite: ValueError.
    """
    a, b = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    widths = len(a.mean), len(b.mean)
    require(widths[0] == widths[1], f"features have widths {widths[0]} and {widths[1]}; expected equal ones")
    cross = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float((a.mean - b.mean).square().sum() + spread)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    """KID: unbiased squared MMD with the kernel (x . y / f + 1)^3, over all pairs (Binkowski et al. 2018).

    Its mean does not depend on the number of images, unlike that of a Frechet distance; it can be below 0.
    """
    a, b = _checked(a, at_least=2), _checked(b, at_least=2)
    widths = a.shape[1], b.shape[1]
    require(widths[0] == widths[1], f"features have widths {widths[0]} and {widths[1]}; expected equal ones")
    own = [(_kernel_sum(x, x) - float(_kernel(x, x).sum())) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return own[0] + own[1] - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of rows of equal index."""
    return ((x * y).sum(dim=-1) / x.shape[-1] + 1) ** 3


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum of the kernel over all pairs."""
    return float(sum(((chunk @ b.T / a.shape[1] + 1) ** 3).sum() for chunk in a.split(CHUNK)))


def saturation(images: Float[Tensor, "n 3 h w"]) -> float:
    """Mean over all pixels of the largest minus the smallest channel: 0 for grey images."""
    return float((images.amax(dim=1) - images.amin(dim=1)).double().mean())


def contrast(images: Float[Tensor, "n 3 h w"]) -> float:
    """Standard deviation of the values of an image, averaged over images: 0 for images of one tone."""
    return float(images.flatten(1).double().std(dim=1).mean())


def inception_score(probabilities: Float[Tensor, "n classes"]) -> float:
    """exp(mean KL(p(y|x) || p(y))): from 1 to the number of classes (Salimans et al. 2016).

    Rows must be probabilities (ValueError): not below 0, and summing to 1 within 1e-4.
    """
    p = _checked(probabilities, at_least=1)
    sums = p.sum(dim=1)
    off = float((sums - 1).abs().max())
    require(off < 1e-4 and float(p.min()) >= 0, f"rows sum to {sums[0]:.4f} ...; expected probabilities")
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, p.mean(dim=0))
    return float(divergence.sum(dim=1).mean().exp())


@dataclass(frozen=True)
class PrecisionRecall:
    """precision: share of generated images near a real one.  recall: share of real ones near a generated one."""

    precision: float
    recall: float


def precision_recall(real: Float[Tensor, "n f"], generated: Float[Tensor, "m f"], k: int = 3) -> PrecisionRecall:
    """Near: within the distance of a point to its k-th neighbour in its own set (Kynkaanniemi et al. 2019)."""
    real, generated = _checked(real, at_least=k + 1), _checked(generated, at_least=k + 1)
    require(k >= 1, f"k is {k}; expected at least 1")
    widths = real.shape[1], generated.shape[1]
    require(widths[0] == widths[1], f"features have widths {widths[0]} and {widths[1]}; expected equal ones")
    return PrecisionRecall(
        precision=_covered(generated, real, _radii(real, k)),
        recall=_covered(real, generated, _radii(generated, k)),
    )


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point to its k-th neighbour (itself not counted)."""
    rows = [torch.cdist(chunk, points).kthvalue(k + 1, dim=1).values for chunk in points.split(CHUNK)]
    return torch.cat(rows)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points inside at least one ball."""
    inside = [(torch.cdist(chunk, centres) <= radii).any(dim=1) for chunk in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def class_distances(features: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> dict[int, float]:
    """Mean distance between two different members of each class that has two or more."""
    x = _checked(features, at_least=2)
    require(len(x) == len(labels), f"there are {len(labels)} labels; expected {len(x)}, one per row")
    groups = {int(label): x[labels == label] for label in labels.unique()}
    return {label: float(torch.pdist(group).mean()) for label, group in groups.items() if len(group) > 1}


def pairwise_diversity(features: Float[Tensor, "n f"], labels: Int[Tensor, " n"]) -> float:
    """Mean distance between two different members of a class, averaged over classes of two or more."""
    means = list(class_distances(features, labels).values())
    require(bool(means), "no class has two members; expected at least one that does")
    return fmean(means)


def _checked(x: Tensor, at_least: int) -> Tensor:
    require(
        x.ndim == 2 and len(x) >= at_least,
        f"there are {tuple(x.shape)} values; expected {at_least} rows or more",
    )
    bad = int((~torch.isfinite(x)).sum())
    require(bad == 0, f"{bad} values are not finite; expected none")
    return x.double()
