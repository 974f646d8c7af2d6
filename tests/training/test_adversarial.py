"""Losses beside pixels: each reduces what it claims to, from its start and not before."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spherear.train import train_vae
from spherear.training.adversarial import Critic, Extras, critic_loss
from spherear.training.checkpoint import read_state
from spherear.training.data.catalog import load_data
from tests.conftest import TINY_VAE
from tests.training.test_train import VAE_RECIPE

VAE_32 = replace(TINY_VAE, image_size=32)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 32)


class Features(nn.Module):
    """A stand-in for LPIPS with its interface: distance in the features of a random convolution, then dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, a, b):
        return (self.convolution(a) - self.convolution(b)).square().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture
def stand_in(monkeypatch):
    torch.manual_seed(0)
    network = Features()
    monkeypatch.setattr("spherear.training.adversarial.perceptual_network", lambda: network)
    return network


def test_the_perceptual_distance_falls_faster_with_its_weight(digits, stand_in):
    recipe = replace(VAE_RECIPE, steps=60, batch_size=8, learning_rate=3e-3, l1_weight=0.0, kl_weight=0.0)
    states = train_vae(VAE_32, digits, replace(recipe, lpips_weight=10.0))
    found = [state.metrics()["lpips"] for state in states]
    assert sum(found[-5:]) < 0.7 * sum(found[:5])


def test_the_perceptual_network_is_frozen_and_drops_nothing(digits, stand_in):
    before = {name: p.clone() for name, p in stand_in.state_dict().items()}
    images, _ = digits.batch(torch.arange(4))
    extras = Extras(replace(VAE_RECIPE, lpips_weight=2.0), 32, "cpu")
    losses = [extras.add({"loss": torch.tensor(1.0)}, images, 0.5 * images, 0) for _ in range(2)]
    assert losses[0]["lpips"] == losses[1]["lpips"] > 0
    assert_close(losses[0]["loss"], 1 + 2 * losses[0]["lpips"])
    list(train_vae(VAE_32, digits, replace(VAE_RECIPE, lpips_weight=1.0)))
    for name, p in stand_in.state_dict().items():
        assert torch.equal(p, before[name])


def test_lpips_without_torchvision_says_what_to_install(digits):
    pytest.importorskip("torchmetrics")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(ModuleNotFoundError, match=r"lpips_weight needs .*spherear\[train,eval\]"):
            next(train_vae(VAE_32, digits, replace(VAE_RECIPE, lpips_weight=1.0)))
    else:
        pytest.skip("torchvision is here")


def test_the_critic_is_untouched_before_its_start(digits, tmp_path):
    """Weights, statistics and optimiser, with a weight decay that would show."""
    recipe = replace(VAE_RECIPE, gan_weight=0.5, gan_start=4, weight_decay=0.5, save_every=1, steps=7)
    names, seen = [], []
    with closing(train_vae(VAE_32, digits, recipe, tmp_path)) as states:
        for state in states:
            if state.step == 7:
                break
            kept = read_state(tmp_path)
            names.append({name for name in kept.names() if name.startswith("optimizer-critic/")})
            seen.append({name: kept[name].clone() for name in kept.names() if name.startswith("critic/")})
            assert ("critic" in state.metrics()) == (state.step > 4)
    for later in seen[1:3]:
        for name, tensor in seen[0].items():
            assert torch.equal(later[name], tensor), name
    assert not names[2]
    assert len(names[5]) == 3 * len(list(Critic().parameters()))
    changed = [not torch.equal(seen[5][name], tensor) for name, tensor in seen[0].items()]
    assert all(changed)


def test_a_run_with_a_critic_resumes_exactly(digits, tmp_path):
    recipe = replace(VAE_RECIPE, gan_weight=0.5, gan_start=2)
    whole = [state.metrics() for state in train_vae(VAE_32, digits, recipe)]
    with closing(train_vae(VAE_32, digits, recipe, tmp_path)) as states:
        first = [next(states).metrics() for _ in range(5)]
    assert first + [state.metrics() for state in train_vae(VAE_32, digits, recipe, tmp_path)] == whole


def test_the_critic_learns_to_tell_and_the_vae_to_fool(digits):
    """The critic's loss falls on fixed images; the images' own term falls along its gradient."""
    torch.manual_seed(0)
    extras = Extras(replace(VAE_RECIPE, gan_weight=1.0, gan_start=0), 32, "cpu")
    images, _ = digits.batch(torch.arange(8))
    fake = (images.flip(3) * 0.5).requires_grad_(True)
    ((_, optimizer),) = extras.trained().values()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    found = []
    for _ in range(15):
        losses = extras.add({"loss": torch.zeros(())}, images, fake, 0)
        assert_close(losses["loss"], losses["gan"] + losses["critic"])
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        found.append(float(losses["critic"].detach()))
    assert found[-1] < 0.5 * found[0]
    fake.grad = None
    before = extras._generator_loss(fake)
    before.backward()
    assert all(p.requires_grad for p in extras.critic.parameters())
    after = extras._generator_loss(fake.detach() - 0.01 * fake.grad / fake.grad.abs().max())
    assert after < before


def test_the_critics_gradient_is_its_own_loss(digits):
    """The VAE's term leaves no gradient in the critic."""
    torch.manual_seed(0)
    extras = Extras(replace(VAE_RECIPE, gan_weight=3.0, gan_start=0), 32, "cpu")
    images, _ = digits.batch(torch.arange(4))
    fake = images.flip(2).requires_grad_(True)
    extras.add({"loss": torch.zeros(())}, images, fake, 0)["loss"].backward()
    ours = [p.grad.clone() for p in extras.critic.parameters()]
    extras.critic.zero_grad()
    critic_loss(extras.critic(images), extras.critic(fake.detach())).backward()
    for a, p in zip(ours, extras.critic.parameters(), strict=True):
        assert_close(a, p.grad)
    assert fake.grad.abs().max() > 0


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert_close(critic_loss(real, fake), torch.tensor(0.5 * (0.25 + 0.75)))


def test_images_too_small_for_a_critic_are_refused():
    with pytest.raises(ValueError, match="images have 16 px; expected at least 32 where gan_weight is not 0"):
        next(train_vae(TINY_VAE, load_data("digits", 16), replace(VAE_RECIPE, gan_weight=0.5)))
