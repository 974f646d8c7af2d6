"""What a run says about its speed, and what may change the order of memory or the precision, but not the loss."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from spherear import VAE, SphereAR
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.train import train_ar, train_vae
from spherear.training.adversarial import Critic, Extras, critic_loss
from spherear.training.data.catalog import load_data
from spherear.training.flops import training_flops
from spherear.training.jobs import Execution
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_train import AR_RECIPE, VAE_RECIPE


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


def counted(work) -> int:
    """Operations as PyTorch counts them, of a forward pass, times three."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        work()
    return 3 * counter.get_total_flops()


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_operations_per_image_are_those_that_pytorch_counts(name):
    vae, ar = VAE(preset(name).vae), SphereAR(preset(name).ar)
    images, tokens = torch.zeros(1, 3, vae.config.image_size, vae.config.image_size), ar.config.tokens
    assert training_flops(vae) == counted(lambda: vae(images, torch.Generator().manual_seed(0)))
    codes = torch.zeros(1, tokens, ar.config.latent_dim)
    label = torch.zeros(1, dtype=torch.int64)
    assert training_flops(ar, 3) == counted(lambda: ar.loss(codes, label, repeats=3))
    assert training_flops(torch.nn.Linear(2, 2)) == 0


def test_operations_of_discrete_tokens_too():
    config = replace(TINY_VAE, bottleneck="vq", codes=9)
    vae, ar = seeded(0, VAE, config), SphereAR(replace(TINY_AR, codes=9))
    ar.head.set_codebook(vae.codebook)
    label = torch.zeros(1, dtype=torch.int64)
    tokens = vae.encode(torch.zeros(1, 3, 16, 16)).sample.detach()
    assert training_flops(ar, 4) == counted(lambda: ar.loss(tokens, label))


def test_utilisation_is_what_is_done_over_what_can_be_done(digits, tmp_path):
    vae = VAE(TINY_VAE)
    execution = Execution(peak_teraflops=2.0)
    list(train_ar(TINY_AR, vae, digits, AR_RECIPE, tmp_path, execution=execution))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    flops = training_flops(SphereAR(TINY_AR), AR_RECIPE.repeats)
    assert lines
    for line in lines:
        assert line["teraflops"] == pytest.approx(flops * line["images_per_second"] / 1e12)
        assert line["utilisation"] == pytest.approx(line["teraflops"] / 2)
    list(train_vae(TINY_VAE, digits, VAE_RECIPE, tmp_path / "plain"))
    last = json.loads((tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "utilisation" not in last  # of a CPU, whose peak nobody said
    with pytest.raises(ValueError, match="peak_teraflops is -1.0; expected"):
        Execution(peak_teraflops=-1.0)


def losses(states):
    return torch.tensor([state.metrics()["loss"] for state in states])


def test_channels_last_is_the_same_training(digits):
    recipe = replace(VAE_RECIPE, steps=4)
    plain, last = (
        losses(train_vae(TINY_VAE, digits, recipe, execution=Execution(channels_last=flag))) for flag in (False, True)
    )
    assert_close(plain, last, atol=1e-4, rtol=0)


def test_critic_and_perceptual_network_run_under_autocast(digits, monkeypatch):
    """In bfloat16 where the run is, and their losses are float32 means close to those of float32."""
    seen = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 4, 3)

        def forward(self, a, b):
            out = self.layer(a) - self.layer(b)
            seen.append(out.dtype)
            return out.square().mean(dim=(1, 2, 3))

    network = seeded(0, Network)
    monkeypatch.setattr("spherear.training.adversarial.perceptual_network", lambda: network)
    data, config = load_data("digits", 32), replace(TINY_VAE, image_size=32)
    recipe = replace(VAE_RECIPE, steps=2, lpips_weight=1.0, gan_weight=0.5, gan_start=0)
    real = Critic.forward
    monkeypatch.setattr(Critic, "forward", lambda self, x: seen.append((y := real(self, x)).dtype) or y)
    found = {}
    for precision in ("float32", "bfloat16"):
        seen.clear()
        states = train_vae(config, data, replace(recipe, precision=precision))
        found[precision] = [state.metrics() for state in states]
        assert set(seen) == {getattr(torch, precision)}
    for name in ("lpips", "gan", "critic"):
        assert found["bfloat16"][0][name] == pytest.approx(found["float32"][0][name], abs=0.02)
    assert critic_loss(torch.ones(3, dtype=torch.bfloat16), -torch.ones(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert Extras(VAE_RECIPE, 16, "cpu").network is None
