"""Measurements of made-up latents whose answers are known."""

import math

import pytest
import torch
from scipy.linalg import eigh
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.analysis.diagnostics import (
    compare_norms,
    effective_rank,
    norm_profile,
    prediction_error,
    projection_jacobian,
    radial_share,
    repeated_shares,
    spread_histogram,
    variance_ratio,
)
from spherear.sampling.decode import trace
from spherear.sphere.geometry import project, split

F64 = torch.float64


def cloud(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_norms_by_position():
    lengths = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]], dtype=F64)  # (batch, tokens)
    tokens = lengths[..., None] * project(cloud(2, 3, 5))
    profile = norm_profile(tokens)
    assert_close(profile.mean, torch.tensor([2.0, 2.0, 5.0], dtype=F64))
    assert_close(profile.std, torch.tensor([math.sqrt(2), 0.0, math.sqrt(8)], dtype=F64), atol=1e-12, rtol=0)
    compared = compare_norms(1.5 * tokens, tokens)
    assert_close(compared.relative, torch.full((3,), 0.5, dtype=F64))
    assert_close(compared.real.mean, profile.mean)


def test_variance_ratio_of_scaled_latents():
    real = cloud(50, 4, 3) + 10 * cloud(4, 3, seed=1)  # every position has its own mean
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    by_dim = variance_ratio(scales * real, real)
    assert_close(by_dim.per_dim, scales**2)
    by_token = variance_ratio(torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=F64)[:, None] * real, real)
    assert_close(by_token.per_token, torch.tensor([1.0, 4.0, 9.0, 0.0], dtype=F64))
    assert variance_ratio(3 * real + 7, real).total == pytest.approx(9.0)


def test_radial_share_of_known_errors():
    at = cloud(30, 4, 6)
    radial, tangential = split(cloud(30, 4, 6, seed=1), at)
    assert radial_share(radial, at).mean == pytest.approx(1.0)
    assert radial_share(tangential, at).mean == pytest.approx(0.0, abs=1e-24)
    radial, tangential = (x / x.norm(dim=-1, keepdim=True) for x in (radial, tangential))
    mixed = radial_share(radial + 2 * tangential, at)
    assert_close(mixed.per_token, torch.full((4,), 0.2, dtype=F64))
    assert mixed.isotropic == pytest.approx(1 / 6)


def test_radial_share_of_noise_is_one_over_dim():
    """The mean of 40,000 draws of Beta(1/2, 5/2), within four standard errors."""
    share = radial_share(cloud(10_000, 4, 6, seed=2), cloud(10_000, 4, 6, seed=3))
    error = math.sqrt(2 * 5 / (6 * 6 * 8) / 40_000)
    assert share.mean == pytest.approx(1 / 6, abs=4 * error)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_effective_rank_of_as_many_equal_directions(rank):
    """Latents of `rank` orthogonal directions of equal variance, about a mean that does not count."""
    basis = torch.linalg.qr(cloud(6, 6)).Q[:, :rank]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * rank).reshape(-1, rank)
    tokens = (signs @ basis.T)[:, None] + 100 * cloud(1, 2, 6, seed=4)  # (2^rank, 2, 6)
    measured = effective_rank(tokens)
    assert measured.rank == pytest.approx(rank, rel=1e-9)
    assert_close(measured.spectrum[:rank], torch.full((rank,), 1 / rank, dtype=F64))


def test_early_and_late_are_the_first_and_last_quarter():
    """Ten positions, of which three are a quarter rounded up: (0 + 1 + 2)/3 and (7 + 8 + 9)/3 per cent."""
    real = cloud(4, 10, 3)
    compared = compare_norms((1 + torch.arange(10, dtype=F64) / 100)[:, None] * real, real)
    assert compared.early == pytest.approx(0.01)
    assert compared.late == pytest.approx(0.08)


def test_a_total_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    real = torch.tensor([[[1.0, 10.0]], [[-1.0, -10.0]]], dtype=F64)
    ratio = variance_ratio(real * torch.tensor([3.0, 1.0]), real)
    assert ratio.total == pytest.approx((9 * 1 + 1 * 100) / 101)
    error = torch.tensor([[[1.0, 0.0], [0.0, 10.0]]] * 2, dtype=F64)  # radial and small, tangential and large
    share = radial_share(error, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]] * 2, dtype=F64))
    assert share.mean == pytest.approx(1 / 101)


def test_effective_rank_of_unequal_directions_is_the_entropy_and_not_the_participation_ratio():
    """Variances 4 and 1: shares 0.8 and 0.2."""
    tokens = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64)[:, None]
    assert effective_rank(tokens).rank == pytest.approx(0.8**-0.8 * 0.2**-0.2)


def test_repeated_shares_are_those_of_signal_and_noise():
    """Signals of variance 9, 1 and 0 with noise of variance 1, along axes that are turned and of unequal length."""
    signal = cloud(3000, 2, 3) * torch.tensor([3.0, 1.0, 0.0], dtype=F64)
    mixing = cloud(3, 3, seed=9)
    first, second = ((signal + cloud(3000, 2, 3, seed=seed)) @ mixing + 100 for seed in (1, 2))
    shares = repeated_shares(first, second)
    assert_close(shares, torch.tensor([0.9, 0.5, 0.0], dtype=F64), atol=0.03, rtol=0)
    x, y = ((tokens - tokens.mean(0)).flatten(0, 1).numpy() for tokens in (first, second))
    expected = eigh((x.T @ y + y.T @ x) / 2, (x.T @ x + y.T @ y) / 2, eigvals_only=True)
    assert_close(shares, torch.from_numpy(expected[::-1].copy()), atol=1e-9, rtol=0)
    assert_close(repeated_shares(first, first), torch.ones(3, dtype=F64))
    assert_close(repeated_shares(first, second), repeated_shares(second, first))
    flat = first.clone()
    flat[..., 0] = 0
    with pytest.raises(ValueError, match="tokens do not vary along every axis"):
        repeated_shares(flat, flat)


@pytest.mark.parametrize("radius", [1.0, 4.0])
@pytest.mark.parametrize("dim", [2, 16])
def test_the_projections_jacobian(dim, radius):
    z = 3 * cloud(dim)
    jacobian = projection_jacobian(lambda x: project(x, radius), z)
    assert jacobian.difference < 1e-14
    u = z / z.norm()
    assert_close(jacobian.measured @ u, torch.zeros(dim, dtype=F64), atol=1e-14, rtol=0)
    assert projection_jacobian(lambda x: x, z).difference > 0.1  # the identity is no projection


def test_spread_histogram():
    spread = torch.linspace(0, 10, 1001).reshape(7, 143)
    histogram = spread_histogram(spread, bins=10)
    assert int(histogram.counts.sum()) == 1001
    assert_close(histogram.edges, torch.linspace(0, 10, 11, dtype=F64), atol=1e-9, rtol=0)
    assert histogram.mean == pytest.approx(5.0)
    assert_close(histogram.quantiles, torch.tensor([0.5, 5.0, 9.5], dtype=F64), atol=1e-5, rtol=0)


def test_trace_keeps_what_the_decode_yields(tiny_vae, tiny_ar):
    pipeline = Pipeline(tiny_vae, tiny_ar)
    settings = SamplingSettings(guidance_scale=3.0, solver="euler", steps=2)
    kept = trace(pipeline.steps([1, 2], settings))
    assert_close(pipeline.images(kept.tokens), pipeline.sample([1, 2], settings), atol=0, rtol=0)
    assert_close(tiny_vae.project(kept.raw), kept.tokens, atol=1e-6, rtol=0)
    assert_close(kept.scales, 1 + 2 * torch.arange(16, dtype=F64) / 16)


def test_prediction_error_is_the_definition(tiny_ar):
    ar, tokens, noise = tiny_ar.double(), cloud(3, 16, 4), cloud(3, 16, 4, seed=1)
    labels = torch.tensor([1, 2, 3])
    error = prediction_error(ar, tokens, labels, 0.25, noise)
    condition = ar(tokens, labels)
    x = 0.75 * noise + 0.25 * tokens
    for position in (0, 9):
        velocity = ar.head(x[:, position], torch.full((3,), 0.25, dtype=F64), condition[:, position])
        assert_close(error[:, position], x[:, position] + 0.75 * velocity - tokens[:, position])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norm_profile(cloud(1, 4, 3)), "tokens are of 1 images; expected at least 2"),
        (lambda: norm_profile(cloud(2, 4, 3) / 0), "tokens hold 24 non-finite values"),
        (lambda: compare_norms(cloud(2, 4, 3), cloud(2, 5, 3)), r"tokens are \(4, 3\) and \(5, 3\); expected the same"),
        (lambda: variance_ratio(cloud(2, 4, 3), cloud(2, 4, 2)), r"tokens are \(4, 3\) and \(4, 2\)"),
        (lambda: radial_share(0 * cloud(2, 4, 3), cloud(2, 4, 3)), "the error of some token is 0"),
        (lambda: effective_rank(torch.ones(3, 4, 2)), "all images have the same tokens"),
        (lambda: spread_histogram(cloud(3), bins=0), "bins is 0; expected at least 1"),
        (lambda: trace([]), "there are no steps"),
    ],
)
@pytest.mark.usefixtures("as_users_do")
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_head_without_a_velocity_has_no_such_error():
    pipeline = Pipeline.from_pretrained("digits-vq")
    with pytest.raises(TypeError, match="the head is a CategoricalHead; expected a VelocityHead"):
        prediction_error(pipeline.ar, torch.zeros(2, 16, 8), torch.tensor([1, 2]), 0.5, torch.zeros(2, 16, 8))
