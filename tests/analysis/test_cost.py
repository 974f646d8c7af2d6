"""Costs are counted twice: by formula, and by torch's own counter over shapes without numbers."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spherear import ARConfig, Pipeline, SamplingSettings, SphereAR, VAEConfig, load_published
from spherear.analysis.cost import cost, head_flops, made_up_checkpoint, transformer_flops
from spherear.models.presets import PRESETS, Preset


def counted(work):
    """Operations that torch counts while `work` runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def on_meta(config):
    with torch.device("meta"):
        return SphereAR(config)


CONFIGS = [PRESETS["digits"].ar, replace(PRESETS["imagenet256-B"].ar, layers=2, tokens=64)]


@pytest.mark.parametrize("config", CONFIGS, ids=["digits", "like B"])
def test_transformer_flops_are_torchs(config):
    model = on_meta(config)
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    token = torch.zeros(1, config.latent_dim, device="meta")

    def decode():
        cache = model.kv_cache(1)
        model.start(labels, cache)
        for _ in range(config.tokens - 1):
            model.step(token, cache)

    assert transformer_flops(config) == counted(decode)


def test_without_a_cache_every_token_pays_for_all_before_it():
    config = PRESETS["digits"].ar
    model = on_meta(config)
    labels = torch.zeros(1, dtype=torch.long, device="meta")

    def decode():
        for drawn in range(config.tokens):
            inputs = model._classes(labels)
            if drawn:
                tokens = torch.zeros(1, drawn, config.latent_dim, device="meta")
                inputs = torch.cat((inputs, model._inputs(tokens)), dim=1)
            model._transform(inputs, model.rotary(inputs.shape[1]), [None] * len(model.layers))

    assert transformer_flops(config, cached=False) == counted(decode)


@pytest.mark.parametrize("config", CONFIGS, ids=["digits", "like B"])
def test_head_flops_are_torchs(config):
    head = on_meta(config).head
    x, embedded = (torch.zeros(1, n, device="meta") for n in (config.latent_dim, config.head_width))
    assert head_flops(config) == counted(lambda: head.velocity(x, embedded, embedded))


def test_costs_of_the_published_sizes():
    published = {"B": 204_499_216, "L": 476_380_176, "H": 943_854_096}
    for size, parameters in published.items():
        row = cost(f"imagenet256-{size}")
        assert (row.parameters, row.vae_parameters) == (parameters, 75_393_297)
        assert row.weight_bytes == 2 * parameters
        assert row.training_bytes == 20 * parameters


def test_cost_of_the_cache_is_what_is_allocated():
    config = PRESETS["digits"].ar
    assert cost("digits", bytes_each=4).cache_bytes == SphereAR(config).kv_cache(2).nbytes


def test_guidance_and_solver_have_their_price():
    free, guided = (cost("digits", SamplingSettings(guidance_scale=s, solver="euler", steps=10)) for s in (1.0, 3.0))
    assert guided.transformer_flops == 2 * free.transformer_flops
    assert guided.head_flops == 2 * free.head_flops
    config, per_token = PRESETS["digits"].ar, 2 * 96 * 96
    assert free.head_flops == 16 * (10 * head_flops(config) + per_token)
    heun = cost("digits", SamplingSettings(guidance_scale=1.0, solver="heun", steps=5))
    assert heun.head_flops == free.head_flops
    with pytest.raises(ValueError, match="bytes_each is 3; expected 2"):
        cost("digits", bytes_each=3)


def test_a_made_up_checkpoint_loads_as_published_ones_do():
    vae = VAEConfig(image_size=32, widths=(64, 64, 128), encoder_layers=1, decoder_layers=2)
    ar = ARConfig(tokens=64, num_classes=10, class_tokens=4, width=128, layers=3, heads=2, head_width=64, head_depth=4)
    sizes = Preset(vae, ar, guidance_scale=2.0)
    pipeline = load_published(made_up_checkpoint(sizes, seed=1))
    assert isinstance(pipeline, Pipeline)
    assert pipeline.ar.config == sizes.ar
    assert pipeline.vae.config == sizes.vae
    again, other = (made_up_checkpoint(sizes, seed=s)["proj_in.weight"] for s in (1, 2))
    torch.testing.assert_close(pipeline.ar.proj_in.weight, again, atol=0, rtol=0)
    assert not torch.equal(again, other)
