"""Every family of latents: its law, its divergence, its projection, and what only it does."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch.distributions import Independent, Normal, kl_divergence
from torch.testing import assert_close

from spherear.sphere.bottlenecks import (
    BOTTLENECKS,
    PowerSphericalBottleneck,
    VectorQuantizedBottleneck,
    bottleneck,
    nearest_code,
)

DIM = 6


def features_of(name, batch=3, tokens=5, seed=0):
    channels = bottleneck(name, DIM).channels
    return torch.randn(batch, tokens, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["gaussian", "decoder_normalized", "normalized_gaussian"])
def test_gaussian_divergence_is_torchs(name):
    features = features_of(name)
    mean, log_variance = features.chunk(2, dim=-1)
    law = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    latent = bottleneck(name, DIM)(features)
    assert_close(latent.kl, kl_divergence(law, prior), atol=1e-12, rtol=0)
    assert_close(latent.spread, law.stddev, atol=1e-12, rtol=0)


def test_normalised_is_the_gaussian_put_on_the_sphere():
    features = features_of("gaussian")
    free = bottleneck("gaussian", DIM)(features, seeded())
    latent = bottleneck("normalized_gaussian", DIM)(features, seeded())
    for ours, theirs in ((latent.sample, free.sample), (latent.mode, free.mode)):
        assert_close(ours, math.sqrt(DIM) * theirs / theirs.norm(dim=-1, keepdim=True), atol=1e-12, rtol=0)


def test_decoder_normalised_keeps_lengths_from_all_but_the_decoder():
    features, family = features_of("gaussian"), bottleneck("decoder_normalized", DIM)
    latent = family(features, seeded())
    assert_close(latent.sample, bottleneck("gaussian", DIM)(features, seeded()).sample, atol=0, rtol=0)
    assert family.project(latent.sample) is latent.sample
    lengths = family.decoder_input(latent.sample).norm(dim=-1)
    assert_close(lengths, torch.full_like(lengths, math.sqrt(DIM)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["power_spherical", "vmf"])
def test_a_gain_scales_the_concentrations_feature_alone(name):
    features = features_of(name)
    scaled = torch.cat((features[..., :-1], 20 * features[..., -1:]), dim=-1)
    plain, gained = (
        bottleneck(name, DIM)(scaled, seeded()),
        bottleneck(name, DIM, concentration_gain=20.0)(features, seeded()),
    )
    for field in ("sample", "mode", "kl", "spread"):
        assert_close(getattr(gained, field), getattr(plain, field), atol=0, rtol=0)
    assert_close(gained.spread, torch.nn.functional.softplus(20 * features[..., -1]) + 1, atol=0, rtol=0)


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_a_draw_is_the_sample_of_the_latent(name):
    features, family = features_of(name), bottleneck(name, DIM).eval()
    assert_close(family.draw(features, seeded()), family(features, seeded()).sample, atol=0, rtol=0)
    with pytest.raises(ValueError, match="features have 2 channels"):
        family.draw(features[..., :2])


@pytest.mark.parametrize("name", ["power_spherical", "vmf"])
def test_a_draw_needs_no_divergence(name, monkeypatch):
    def refuse(*laws):
        raise AssertionError("a divergence that nobody reads")

    monkeypatch.setattr("torch.distributions.kl_divergence", refuse)
    family, features = bottleneck(name, DIM), features_of(name)
    assert family.draw(features, seeded()).shape == (3, 5, DIM)
    with pytest.raises(AssertionError, match="nobody reads"):
        family(features)


def test_a_law_of_ones_own_is_what_is_drawn():
    class Pole(PowerSphericalBottleneck):
        name = "pole"

        def constrain(self, features, generator):
            latent = super().constrain(features, generator)
            return replace(latent, sample=latent.mode)

    features, family = features_of("power_spherical"), Pole(DIM)
    assert_close(family.draw(features, seeded()), family(features).mode, atol=0, rtol=0)


def test_fixed_variance_divergence_is_torchs():
    mean = features_of("fixed_variance")
    latent = bottleneck("fixed_variance", DIM, noise_scale=0.3)(mean)
    law = Independent(Normal(mean, torch.full_like(mean, 0.3)), 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert_close(latent.kl, kl_divergence(law, prior), atol=1e-12, rtol=0)


def test_fixed_variance_has_one_scale_an_image():
    """Within an image, (z - mean)/s is N(0, 1) for one s; over images, s/noise_scale is N(0, 1)."""
    mean = torch.zeros(800, 200, DIM, dtype=torch.float64)
    noise = bottleneck("fixed_variance", DIM, noise_scale=0.3)(mean, seeded()).sample
    scales = noise.square().mean(dim=(1, 2)).sqrt()  # |s| to 2 %, from 1,200 numbers
    assert stats.kstest(scales / 0.3, stats.halfnorm.cdf).pvalue > 0.01
    standard = (noise / scales[:, None, None])[:, 0, 0]
    assert stats.kstest(standard, stats.norm.cdf).pvalue > 0.01


def test_codes_are_the_nearest():
    codebook = torch.randn(7, DIM, generator=seeded(1), dtype=torch.float64)
    z = features_of("vq")
    distances = (z[..., None, :] - codebook).square().sum(dim=-1)  # (batch, tokens, codes)
    assert torch.equal(nearest_code(z, codebook), distances.argmin(dim=-1))


def quantizer(codes=4) -> VectorQuantizedBottleneck:
    family = bottleneck("vq", 2, codes=codes)
    assert isinstance(family, VectorQuantizedBottleneck)
    return family.double()


CORNERS = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]], dtype=torch.float64)


def corners(step, count=64):
    """Points around four corners, in equal numbers."""
    noise = torch.randn(count, 4, 2, generator=seeded(step), dtype=torch.float64)
    return CORNERS + 0.2 * noise


def test_codes_are_the_means_of_what_takes_them():
    """Lloyd's condition at rest, with a code at least in every cluster."""
    family = quantizer(codes=8)
    for step in range(600):
        family(corners(step), seeded(step))
    assert torch.cdist(CORNERS, family.codebook).min(dim=1).values.max() < 0.5
    flat = corners(1000, count=20_000).flatten(0, 1)
    index = family.nearest(flat)
    means = torch.stack([flat[index == code].mean(dim=0) for code in range(8)])
    assert_close(family.codebook, means, atol=0.05, rtol=0)
    shares = torch.bincount(index, minlength=8) / len(flat)
    assert_close(family.usage / family.usage.sum(), shares.double(), atol=0.02, rtol=0)


def test_dead_codes_are_revived_as_features():
    family = quantizer(codes=4)
    family(corners(0), seeded(0))
    family.codebook[0] = 1e6
    family.usage[0] = 0.0
    features = corners(1)
    family(features, seeded(1))
    assert family.codebook[0].abs().max() < 5  # back among the features
    assert family.usage[0] > 0.1 * 64


def test_a_codebook_at_rest():
    family = quantizer()
    family(corners(0), seeded(0))
    before = {name: value.clone() for name, value in family.state_dict().items()}
    family.eval()(corners(5))
    for name, value in family.state_dict().items():
        assert_close(value, before[name], atol=0, rtol=0)


def test_gradients_pass_straight_through_and_commitment_pulls():
    family = quantizer()
    family(corners(0), seeded(0))
    family.eval()
    features = corners(3).requires_grad_()
    latent = family(features)
    assert_close(latent.sample, family.codebook[family.nearest(features)], atol=1e-12, rtol=0)
    weight = torch.randn(latent.sample.shape, generator=seeded(2), dtype=torch.float64)
    (through,) = torch.autograd.grad((latent.sample * weight).sum(), features, retain_graph=True)
    assert_close(through, weight, atol=0, rtol=0)
    (pull,) = torch.autograd.grad(latent.penalty.sum(), features)
    assert_close(pull, 0.25 * 2 / 2 * (features - latent.mode).detach(), atol=1e-12, rtol=0)
    assert_close(latent.kl, torch.full_like(latent.kl, math.log(4)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(BOTTLENECKS.keys() - {"vq"}))
def test_draws_come_from_the_generator(name):
    features = features_of(name)
    first, again, other = (bottleneck(name, DIM)(features, seeded(seed)).sample for seed in (1, 1, 2))
    assert_close(first, again, atol=0, rtol=0)
    assert (first - other).abs().max() > 1e-3


def test_revival_comes_from_the_generator():
    first, again, other = (quantizer() for _ in range(3))
    for family, seed in ((first, 1), (again, 1), (other, 2)):
        family(corners(0), seeded(seed))
    assert_close(first.codebook, again.codebook, atol=0, rtol=0)
    assert (first.codebook - other.codebook).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_autocast_changes_nothing(name):
    features = features_of(name).float()
    plain = bottleneck(name, DIM)(features, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        cast = bottleneck(name, DIM)(features, seeded())
    assert_close(cast.sample, plain.sample, atol=0, rtol=0)
    assert_close(cast.kl, plain.kl, atol=0, rtol=0)


def test_scaled_is_the_same_latent_in_other_units():
    latent = bottleneck("gaussian", DIM)(features_of("gaussian"), seeded())
    scaled = latent.scaled(2.5)
    assert_close(scaled.sample, 2.5 * latent.sample)
    assert_close(scaled.spread, 2.5 * latent.spread)
    assert_close(scaled.kl, latent.kl)


def test_wrong_features():
    with pytest.raises(ValueError, match="features have 5 channels; expected 12"):
        bottleneck("gaussian", DIM)(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="bottleneck is 'cube'; expected one of"):
        bottleneck("cube", DIM)


# the constants -------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_ones():
    mean = features_of("fixed_variance")
    assert_close(bottleneck("fixed_variance", DIM)(mean).spread, torch.full_like(mean, 0.2))
    assert bottleneck("vq", DIM).codebook.shape == (64, DIM)
    features = features_of("power_spherical")
    expected = torch.nn.functional.softplus(features[..., -1]) + 1
    for name in ("power_spherical", "vmf"):
        assert_close(bottleneck(name, DIM)(features).spread, expected)


@pytest.mark.parametrize("name", ["power_spherical", "vmf", "normalized_gaussian"])
def test_every_token_has_the_root_of_its_dimension_as_length(name):
    for dim in (2, DIM, 16):
        family = bottleneck(name, dim)
        features = torch.randn(3, 5, family.channels, generator=seeded(), dtype=torch.float64)
        latent, lengths = family(features), torch.full((3, 5), math.sqrt(dim), dtype=torch.float64)
        for z in (latent.sample, latent.mode, family.project(features[..., :dim])):
            assert_close(z.norm(dim=-1), lengths, atol=1e-12, rtol=0)
        assert family.radius == math.sqrt(dim)


def test_the_least_concentration_costs_the_published_divergence():
    """softplus goes to 0 and leaves kappa = 1: 0.0322 nats per token in 16 dimensions."""
    features = torch.randn(2, 3, 17, dtype=torch.float64)
    features[..., -1] = -200.0
    latent = bottleneck("power_spherical", 16)(features)
    assert_close(latent.spread, torch.ones_like(latent.spread))
    assert_close(latent.kl, torch.full_like(latent.kl, 0.0322), atol=5e-5, rtol=0)


def test_a_direction_is_normalised_down_to_a_length_of_1e_7():
    features = features_of("power_spherical")
    unit = features[..., :-1] / features[..., :-1].norm(dim=-1, keepdim=True)
    for length, expected in ((1e-5, 1.0), (1e-6, 1.0), (1e-8, 0.1)):
        small = torch.cat((length * unit, features[..., -1:]), dim=-1)
        lengths = bottleneck("power_spherical", DIM)(small).mode.norm(dim=-1)
        assert_close(lengths, torch.full_like(lengths, expected * math.sqrt(DIM)), atol=1e-9, rtol=0)


def test_the_log_variance_of_a_gaussian_is_kept_from_minus_30_to_20():
    features = torch.zeros(1, 5, 2 * DIM, dtype=torch.float64)
    features[..., DIM:] = torch.tensor([-100.0, -29.0, 0.0, 19.0, 100.0]).double()[:, None]
    expected = torch.tensor([-15.0, -14.5, 0.0, 9.5, 10.0]).double().exp()
    assert_close(bottleneck("gaussian", DIM)(features).spread[0], expected[:, None].expand(5, DIM))


def test_a_step_of_the_codebook_by_hand():
    """usage and sums move by a hundredth towards the batch's; a code is their quotient."""
    family = quantizer()
    family.codebook.copy_(CORNERS)
    usage = torch.tensor([10.0, 20.0, 30.0, 40.0]).double()
    family.usage.copy_(usage)
    family.sums.copy_(usage[:, None] * CORNERS)
    features = CORNERS[[0, 0, 1, 2]].reshape(1, 4, 2) + 0.5
    family(features, seeded())
    counts, sums = torch.tensor([2.0, 1.0, 1.0, 0.0]).double(), torch.zeros(4, 2).double()
    sums[:3] = torch.stack((features[0, :2].sum(0), features[0, 2], features[0, 3]))
    assert_close(family.usage, 0.99 * usage + 0.01 * counts)
    assert_close(family.sums, 0.99 * usage[:, None] * CORNERS + 0.01 * sums)
    assert_close(family.codebook, family.sums / family.usage[:, None])


def test_a_code_below_a_tenth_of_its_share_is_replaced():
    family, features = quantizer(), corners(1)  # 256 features, 4 codes: a share of 64
    family.codebook.copy_(CORNERS + 100)
    family.usage.copy_(torch.tensor([6.3, 6.5, 64.0, 200.0]).double())
    family.sums.copy_(family.usage[:, None] * family.codebook)
    family._replace_unused(features.flatten(0, 1), seeded())
    assert (family.codebook[0].abs() < 5).all()
    assert family.usage[0] == 64
    assert_close(family.codebook[1:], CORNERS[1:] + 100, atol=0, rtol=0)
