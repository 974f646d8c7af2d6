"""Comparison of two groups of seeds: exact permutation test, interval by its inversion, Holm's correction.

Groups of families are unpaired: that seed 0 of one family was trained with the same random numbers as seed 0 of another
means nothing. Runs of one family and seed are pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from statistics import fmean, stdev

import numpy as np

from spherear.models.config import require

LEVEL = 0.05  # of all tests and intervals
MAX_SPLITS = 200_000
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t for so many pairs."""


@dataclass(frozen=True)
class Comparison:
    """left - right, the difference of two means.

    low, high: its 95 % interval, all shifts of one group that the test does not reject; infinite if it rejects none.
    p: two-sided p-value.  smallest_p: the smallest one that groups of this size can reach.
    """

    difference: float
    low: float
    high: float
    p: float
    smallest_p: float


def compare(left: Sequence[float], right: Sequence[float]) -> Comparison:
    """Compare two groups by the exact permutation test of their means' difference.

    Errors: ValueError for an empty group, values that are not finite, or over 200,000 splits into two groups.
    """
    a, b = (np.asarray(group, dtype=np.float64) for group in (left, right))
    require(min(len(a), len(b)) > 0, f"groups have {len(a)} and {len(b)} values; expected at least one each")
    require(bool(np.isfinite([*a, *b]).all()), f"groups are {a} and {b}; expected finite values")
    splits = comb(len(a) + len(b), len(a))
    require(splits <= MAX_SPLITS, f"groups of {len(a)} and {len(b)} have {splits} splits; expected up to {MAX_SPLITS}")
    test, difference = _Permutations(a, b), fmean(a) - fmean(b)
    smallest = (2 if len(a) == len(b) else 1) / splits
    low, high = (_bound(test, difference, sign) if smallest <= LEVEL else sign * np.inf for sign in (-1, 1))
    return Comparison(difference, low, high, test.p(0.0), smallest)


class _Permutations:
    """The differences of all splits of two groups, as linear functions of a shift of the left group."""

    def __init__(self, a: np.ndarray, b: np.ndarray) -> None:
        pooled = np.concatenate((a, b))
        left = _splits(len(a), len(b))
        self.scale = 1e-9 * (float(np.abs(pooled).max()) + 1e-300)  # rounding: sums in another order
        self.at_zero = _differences(pooled, left)
        self.slope = _differences((np.arange(len(pooled)) < len(a)).astype(float), left)

    def p(self, shift: float) -> float:
        """Share of splits at least as extreme as the first, which is the observed one, after left - shift."""
        differences = np.abs(self.at_zero - shift * self.slope)
        return float((differences >= differences[0] - self.scale).mean())


@cache
def _splits(left: int, right: int) -> np.ndarray:
    """The left group of every split, as rows of indices."""
    return np.array([*combinations(range(left + right), left)])


def _differences(pooled: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Mean of the left group - mean of the others, per split."""
    sums, size = pooled[left].sum(axis=1), left.shape[1]
    return sums / size - (pooled.sum() - sums) / (len(pooled) - size)


def _bound(test: _Permutations, difference: float, sign: int) -> float:
    """The farthest shift on one side that is not rejected, by bisection."""
    inside, step = difference, max(abs(difference), 1e6 * test.scale)
    while test.p(outside := difference + sign * step) > LEVEL:
        step *= 2
    for _ in range(60):
        middle = 0.5 * (inside + outside)
        if test.p(middle) > LEVEL:
            inside = middle
        else:
            outside = middle
    return inside


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing them all: rejecting those up to 0.05 keeps the family-wise error (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs, such as blocks of images with the same labels and seeds, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> "Difference":
        """values - others, by Student's t of the differences of pairs. ValueError unless there are 2 to 10 pairs."""
        count = len(values)
        require(
            count == len(others) and count in STUDENT,
            f"there are {count} and {len(others)} values; expected as many, 2 to {max(STUDENT)}",
        )
        differences = [a - b for a, b in zip(values, others, strict=True)]
        mean, half = fmean(differences), STUDENT[count] * stdev(differences) / count**0.5
        return cls(mean, mean - half, mean + half)


def contrast(groups: Sequence[Sequence[float]], weights: Sequence[int]) -> Difference:
    """The weighted sum of the groups' means, and its 95 % interval for unpaired groups of unequal variance.

    By Student's t with the degrees of freedom of Welch and Satterthwaite, rounded down, and at most those of the table.
    ValueError unless every group has two values or more, and for groups that do not vary at all.
    """
    sizes = [len(group) for group in groups]
    require(min(sizes) > 1, f"groups have {sizes} values; expected at least 2 each")
    parts = [w * w * stdev(group) ** 2 / len(group) for group, w in zip(groups, weights, strict=True)]
    variance = sum(parts)
    require(variance > 0, "no group varies; expected different values, for an interval")
    freedom = variance**2 / sum(part**2 / (size - 1) for part, size in zip(parts, sizes, strict=True))
    mean = sum(w * fmean(group) for group, w in zip(groups, weights, strict=True))
    half = STUDENT[min(max(STUDENT), 1 + int(freedom + 1e-9))] * variance**0.5
    return Difference(mean, mean - half, mean + half)
