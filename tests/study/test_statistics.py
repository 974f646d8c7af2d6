"""The tests of the study against scipy, and against what their definitions demand."""

import math

import numpy as np
import pytest
from scipy import stats

from spherear.study import statistics
from spherear.study.statistics import LEVEL, STUDENT, Difference, holm


def compare(left, right):
    return statistics.compare([float(x) for x in left], [float(x) for x in right])


def groups(seed, left=6, right=6, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, left), rng.normal(0, 1, right)


@pytest.mark.parametrize(("seed", "left", "right", "shift"), [(0, 6, 6, 0), (1, 6, 6, 2), (2, 3, 6, 1), (3, 4, 3, 0)])
def test_p_value_is_scipys(seed, left, right, shift):
    a, b = groups(seed, left, right, shift)
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), vectorized=True, n_resamples=np.inf
    )
    # scipy doubles the smaller tail; for equal sizes the distribution is symmetric, and both definitions agree
    if left == right:
        assert compare(a, b).p == pytest.approx(exact.pvalue, abs=1e-12)
    differences = exact.null_distribution
    assert compare(a, b).p == pytest.approx(np.mean(np.abs(differences) >= abs(a.mean() - b.mean()) - 1e-9))


def test_interval_holds_what_the_test_does_not_reject():
    a, b = groups(5, shift=1.5)
    result = compare(a, b)
    assert result.low < result.difference < result.high
    for bound, outward in ((result.low, -1), (result.high, 1)):
        assert compare(a - bound + outward * 1e-6, b).p > LEVEL
        assert compare(a - bound - outward * 1e-6, b).p <= LEVEL
    assert (result.low > 0 or result.high < 0) == (result.p <= LEVEL)


def test_interval_is_near_students_and_covers():
    a, b = groups(7, 8, 8, 1.0)
    student = stats.ttest_ind(a, b).confidence_interval(0.95)
    result = compare(a, b)
    width = student.high - student.low
    assert abs(result.low - student.low) < 0.15 * width
    assert abs(result.high - student.high) < 0.15 * width
    hits = [r.low <= 0.5 <= r.high for r in (compare(*groups(seed, shift=0.5)) for seed in range(100, 160))]
    assert np.mean(hits) >= 0.85  # 0.95 nominal; P(below 0.85 of 60) < 0.003


def test_a_shift_shifts_and_a_swap_mirrors():
    a, b = groups(9)
    plain, shifted, swapped = compare(a, b), compare(a + 3, b), compare(b, a)
    assert shifted.difference == pytest.approx(plain.difference + 3)
    assert (shifted.low, shifted.high) == pytest.approx((plain.low + 3, plain.high + 3), abs=1e-6)
    assert (swapped.low, swapped.high) == pytest.approx((-plain.high, -plain.low), abs=1e-6)
    assert swapped.p == plain.p


def test_small_groups_can_reject_nothing():
    result = compare([1.0, 2.0, 3.0], [100.0, 101.0, 102.0])
    assert result.p == result.smallest_p == pytest.approx(0.1)
    assert (result.low, result.high) == (-math.inf, math.inf)
    assert compare(range(6), range(10, 16)).smallest_p == pytest.approx(2 / 924)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, each at least the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [([], [1.0], "0 and 1 values"), ([math.nan], [1.0], "finite"), (range(20), range(20), "splits")],
)
def test_bad_groups(left, right, message):
    with pytest.raises(ValueError, match=message):
        compare(left, right)


def test_the_interval_of_pairs_is_scipys():
    a, b = [1.0, 1.3, 0.9, 1.4], [1.1, 1.0, 1.0, 1.2]
    found, expected = Difference.of(a, b), stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert found.mean == pytest.approx(0.075)
    for count, quantile in STUDENT.items():
        assert quantile == pytest.approx(stats.t.ppf(0.975, count - 1), abs=1e-3)
    for values in (a[:1], a[:3]):
        with pytest.raises(ValueError, match="values; expected as many, 2 to 10"):
            Difference.of(values, b[:1])
