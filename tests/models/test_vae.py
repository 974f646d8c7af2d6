"""The tokeniser: shapes, contracts, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE
from spherear.models.vae import Down, Up, VAEConfig
from spherear.sphere.bottlenecks import BOTTLENECKS
from tests.conftest import TINY_VAE

IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)


@pytest.mark.parametrize("bottleneck", sorted(BOTTLENECKS))
def test_round_trip_shapes_and_gradients(bottleneck, device):
    vae = VAE(replace(TINY_VAE, bottleneck=bottleneck)).to(device)
    images = IMAGES.to(device)
    reconstruction, latent = vae(images, torch.Generator(device).manual_seed(0))
    assert reconstruction.shape == images.shape
    assert latent.sample.shape == latent.mode.shape == (2, 16, 4)
    (reconstruction.square().mean() + latent.kl.mean()).backward()
    gradients = {name: p.grad for name, p in vae.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    assert gradients["encoder.stem.weight"].abs().sum() > 0


@pytest.mark.parametrize("bottleneck", ["power_spherical", "vmf", "normalized_gaussian"])
def test_tokens_lie_on_the_sphere(bottleneck, device):
    vae = VAE(replace(TINY_VAE, bottleneck=bottleneck)).to(device)
    latent = vae.encode(IMAGES.to(device))
    for tokens in (latent.sample, latent.mode, vae.project(torch.randn(2, 16, 4, device=device))):
        assert_close(tokens.norm(dim=-1), torch.full((2, 16), math.sqrt(4.0), device=device), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bottleneck", ["gaussian", "fixed_variance", "decoder_normalized", "vq"])
def test_tokens_without_a_radius_are_not_projected(bottleneck):
    vae = VAE(replace(TINY_VAE, bottleneck=bottleneck))
    tokens = torch.randn(2, 16, 4)
    assert vae.project(tokens) is tokens
    assert vae.bottleneck.radius is None


def test_draws_depend_on_the_generator_alone():
    vae = VAE(TINY_VAE)
    a, b, c = (vae.encode(IMAGES, torch.Generator().manual_seed(seed)).sample for seed in (1, 1, 2))
    assert_close(a, b, atol=0, rtol=0)
    assert (a - c).abs().max() > 1e-3


@pytest.mark.parametrize("bottleneck", sorted(BOTTLENECKS))
def test_a_generator_of_the_cpu_draws_the_same_wherever_the_model_is(bottleneck, device):
    vae = VAE(replace(TINY_VAE, bottleneck=bottleneck)).eval()
    expected = vae.encode(IMAGES, torch.Generator().manual_seed(0))
    vae.to(device)
    for found in (vae.encode(IMAGES.to(device), torch.Generator().manual_seed(0)).sample,
                  vae.draw(IMAGES.to(device), torch.Generator().manual_seed(0))):  # fmt: skip
        assert found.device.type == "cpu"
        assert_close(found, expected.sample, atol=1e-3, rtol=0)


def test_images_do_not_see_each_other(tiny_vae):
    together = tiny_vae.double().encode(IMAGES.double()).mode
    assert_close(together[1:], tiny_vae.encode(IMAGES[1:].double()).mode, atol=1e-12, rtol=0)


def test_blocks_halve_and_double():
    x = torch.randn(2, 16, 8, 8)
    assert Down(16, 32)(x).shape == (2, 32, 4, 4)
    assert Up(16, 8)(x).shape == (2, 8, 16, 16)


def test_a_larger_patch_makes_fewer_tokens():
    config = replace(TINY_VAE, widths=(16, 16, 16, 32))
    assert (config.patch, config.grid, config.tokens) == (8, 2, 4)
    assert VAE(config).encode(IMAGES).mode.shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (IMAGES[..., :8], ValueError, r"shape \(2, 3, 16, 8\); expected \(batch, 3, 16, 16\)"),
        (IMAGES[:, :1], ValueError, r"shape \(2, 1, 16, 16\)"),
        (IMAGES[0], ValueError, r"shape \(3, 16, 16\)"),
        (IMAGES.to(torch.uint8), TypeError, "dtype torch.uint8; expected floating point"),
        (IMAGES.index_put((torch.tensor(0),) * 4, torch.tensor(math.nan)), ValueError, r"first nan at \(0, 0, 0, 0\)"),
    ],
)  # fmt: skip
def test_bad_images(as_users_do, tiny_vae, images, error, message):
    with pytest.raises(error, match=message):
        tiny_vae.encode(images)


def test_bad_tokens(as_users_do, tiny_vae):
    with pytest.raises(ValueError, match=r"shape \(2, 9, 4\); expected \(batch, 16, 4\)"):
        tiny_vae.decode(torch.zeros(2, 9, 4))
    tokens = torch.zeros(2, 16, 4)
    tokens[1, 2, 3] = math.inf
    with pytest.raises(ValueError, match=r"1 non-finite values, the first inf at \(1, 2, 3\)"):
        tiny_vae.decode(tokens)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"bottleneck": "cube"},
            ValueError,
            "bottleneck is 'cube'; expected one of 'decoder_normalized', 'fixed_variance', 'gaussian'",
        ),
        ({"image_size": 18}, ValueError, "image_size is 18; expected a multiple of the patch, 4"),
        ({"latent_dim": 1}, ValueError, "latent_dim is 1"),
        ({"widths": (16, 30)}, ValueError, r"widths is \(16, 30\)"),
        ({"head_width": 24}, ValueError, "head_width is 24"),
        ({"registers": -1}, ValueError, "registers are 1, 1, -1"),
        ({"latent_dim": "8"}, TypeError, "VAEConfig.latent_dim is '8'; expected int"),
        ({"latent_dim": True}, TypeError, "VAEConfig.latent_dim is True"),
    ],
)
def test_bad_configs(as_users_do, changes, error, message):
    with pytest.raises(error, match=message):
        VAEConfig.from_dict({**TINY_VAE.to_dict(), **changes})
