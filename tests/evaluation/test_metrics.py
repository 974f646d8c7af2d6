"""Metrics against scipy, scikit-learn and closed forms."""

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors
from torch.testing import assert_close

from spherear.evaluation.metrics import (
    Moments,
    class_distances,
    contrast,
    frechet_distance,
    inception_score,
    kernel_distance,
    pairwise_diversity,
    precision_recall,
    saturation,
)


def features(rows, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix + shift


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(3, 40))
def test_frechet_is_scipys(seed, width, rows):
    """Also where there are fewer rows than the covariance needs for full rank."""
    a, b = features(rows + width, width, seed), features(40, width, seed + 1, shift=0.5)
    covariances = [np.cov(x.numpy(), rowvar=False).reshape(width, width) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = (a.mean(0) - b.mean(0)).square().sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert_close(frechet_distance(a, b), float(expected), atol=1e-6, rtol=1e-6)


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    """Diagonal covariances: |mu|^2 + sum (sqrt a - sqrt b)^2."""
    a = Moments(torch.tensor([1.0, 2.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    b = Moments(torch.tensor([0.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 16.0]).double()))
    assert_close(frechet_distance(a, b), 1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2.0)


def test_frechet_invariances():
    a, b = features(200, 5, 0), features(100, 5, 1, shift=1.0)
    rotation = torch.linalg.qr(features(5, 5, 2)).Q
    assert abs(frechet_distance(a, a)) < 1e-6
    assert_close(frechet_distance(a, b), frechet_distance(b, a))
    assert_close(frechet_distance(a @ rotation, b @ rotation), frechet_distance(a, b))
    assert_close(frechet_distance(a, a + 2.0), 4.0 * 5, atol=1e-6, rtol=0)


def test_frechet_of_a_single_direction():
    """Rank-one covariances along the same line: (sigma_a - sigma_b)^2."""
    line = torch.tensor([[0.6, 0.8]]).double()
    a, b = (scale * torch.linspace(-1, 1, 9).double()[:, None] * line for scale in (1.0, 3.0))
    spread = torch.linspace(-1, 1, 9).double().std()
    assert_close(frechet_distance(a, b), float((2 * spread) ** 2), atol=1e-7, rtol=0)


def test_inception_score_by_hand():
    assert_close(inception_score(torch.full((7, 4), 0.25)), 1.0)
    assert_close(inception_score(torch.eye(4)), 4.0)
    p = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).double()
    marginal = [0.6, 0.4]
    kl = sum(v * math.log(v / marginal[j]) for row in p.tolist() for j, v in enumerate(row)) / 2
    assert_close(inception_score(p), math.exp(kl))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_scikit_learns(k):
    real, generated = features(300, 4, 0), features(200, 4, 0)[:200] * 0.7 + 0.3

    def share(points, centres):
        radii = NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
        distances = np.linalg.norm(points[:, None] - centres[None], axis=-1)
        return (distances <= radii).any(axis=1).mean()

    found = precision_recall(real, generated, k)
    assert_close(found.precision, float(share(generated.numpy(), real.numpy())))
    assert_close(found.recall, float(share(real.numpy(), generated.numpy())))


def test_precision_and_recall_of_extremes():
    real = features(100, 3, 0)
    same, apart = precision_recall(real, real), precision_recall(real, real + 1e4)
    assert (same.precision, same.recall) == (1.0, 1.0)
    assert (apart.precision, apart.recall) == (0.0, 0.0)
    collapsed = precision_recall(real, real[:1] + 1e-6 * torch.randn(50, 3).double())
    assert collapsed.precision == 1.0
    assert collapsed.recall <= 0.05


def test_diversity_is_scipys():
    x, labels = features(60, 4, 0), torch.arange(60) % 3
    expected = np.mean([pdist(x[labels == c].numpy()).mean() for c in range(3)])
    assert_close(pairwise_diversity(x, labels), float(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x, x[:, :2]), "features have widths 3 and 2; expected equal ones"),
        (lambda x: frechet_distance(x[:1], x), r"there are \(1, 3\) values; expected 2 rows or more"),
        (lambda x: frechet_distance(x / 0, x), "15 values are not finite; expected none"),
        (lambda x: precision_recall(x, x[:3]), r"there are \(3, 3\) values; expected 4 rows or more"),
        (lambda x: precision_recall(x, x[:, :2]), "features have widths 3 and 2"),
        (lambda x: inception_score(x), "expected probabilities"),
        (lambda x: pairwise_diversity(x, torch.arange(5)), "no class has two members"),
        (lambda x: pairwise_diversity(x, torch.zeros(4).long()), "there are 4 labels; expected 5"),
    ],
)
def test_bad_input(as_users_do, call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(15.0).view(5, 3) + 1)


def test_kernel_distance_by_its_definition():
    """All pairs in two loops; more rows than a chunk do not matter."""
    a, b = features(7, 3, 0), features(5, 3, 1, shift=0.3)

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    def own(x):
        return fmean(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)

    expected = own(a) + own(b) - 2 * fmean(kernel(x, y) for x in a for y in b)
    assert_close(kernel_distance(a, b), expected, atol=1e-9, rtol=1e-9)
    assert_close(kernel_distance(b, a), expected, atol=1e-9, rtol=1e-9)


def test_kernel_distance_has_no_bias_of_size_and_a_frechet_distance_has():
    """Two samples of one law: the mean KID is 0 within its error, at 20 rows as at 200."""
    pools = [torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in range(200)]
    for rows in (20, 200):
        values = np.array([kernel_distance(a[:rows], b[:rows]) for a, b in pools])
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    frechet = [fmean(frechet_distance(a[:rows], b[:rows]) for a, b in pools[:20]) for rows in (20, 200)]
    assert frechet[0] > 3 * frechet[1] > 0


def test_three_neighbours_are_the_default():
    real, generated = features(100, 4, 0), features(100, 4, 1)
    results = {k: precision_recall(real, generated, k) for k in (2, 3, 4, 5)}
    assert len({(r.precision, r.recall) for r in results.values()}) == 4
    assert precision_recall(real, generated) == results[3]


def test_diversity_is_the_mean_over_classes_of_whatever_size():
    """Distances 1, 2 and 9 in classes of 2, 2 and 3 members: (1 + 2 + 6)/3, the last as the mean of 9, 3 and 6."""
    x = torch.tensor([[0.0], [1.0], [0.0], [2.0], [0.0], [9.0], [3.0]])
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    assert class_distances(x, labels) == {0: 1.0, 1: 2.0, 2: 6.0}
    assert pairwise_diversity(x, labels) == 3.0


@pytest.mark.parametrize("excess", [2e-4, 1e-3, -2e-4])
def test_rows_that_do_not_sum_to_one_have_no_inception_score(excess):
    p = torch.full((3, 2), 0.5).double()
    p[1, 0] += excess
    with pytest.raises(ValueError, match="expected probabilities"):
        inception_score(p)
    p[1, 0] -= 0.9 * excess
    assert inception_score(p) == pytest.approx(1.0, abs=1e-6)


def test_saturation_and_contrast():
    grey = torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    assert saturation(grey) == 0
    assert_close(contrast(grey), float(np.std(np.tile(np.linspace(-1, 1, 16), 3), ddof=1)))
    red = torch.full((1, 3, 2, 2), -1.0)
    red[:, 0] = 0.5
    assert saturation(red) == 1.5
    assert_close(contrast(0.5 * red), 0.5 * contrast(red))
    assert contrast(torch.full((3, 3, 2, 2), 0.7)) < 1e-9
