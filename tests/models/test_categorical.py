"""The categorical head: logits, loss, and drawing codes in the same token loop."""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import VAE, Pipeline, SamplingSettings, SphereAR
from spherear.models.presets import PRESETS, with_vae
from spherear.sampling.head_sampling import pick
from spherear.sampling.noise import seeded_noise
from tests.conftest import TINY_AR, TINY_VAE, randomise

CODES = 11
CODEBOOK = torch.randn(CODES, 4, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def pipeline():
    vae = randomise(VAE(replace(TINY_VAE, bottleneck="vq", codes=CODES)))
    vae.bottleneck.codebook.copy_(CODEBOOK)
    ar = randomise(SphereAR(replace(TINY_AR, codes=CODES)), seed=1)
    ar.head.set_codebook(vae.codebook)
    return Pipeline(vae, ar)


def test_loss_is_the_cross_entropy_of_the_codes(pipeline):
    index = torch.arange(32).view(2, 16) % CODES
    labels = torch.tensor([1, 2])
    logits = pipeline.ar.head(pipeline.ar(CODEBOOK[index], labels)).double()
    chosen = logits.log_softmax(-1).gather(-1, index[..., None])
    loss = pipeline.ar.loss(CODEBOOK[index], labels, label_dropout=0.0)
    assert_close(loss.double(), -chosen.mean(), atol=1e-6, rtol=0)


def test_every_token_is_a_code_and_streams_end_with_the_sample(pipeline):
    settings = SamplingSettings(guidance_scale=3.0)
    tokens = torch.stack([step.token for step in pipeline.steps([1, 2, 3], settings, seeds=4)], dim=1)
    assert torch.cdist(tokens, CODEBOOK).min(dim=-1).values.max() == 0
    frames = list(pipeline.stream([1, 2, 3], settings, seeds=4))
    assert_close(frames[-1].images, pipeline.sample([1, 2, 3], settings, seeds=4), atol=0, rtol=0)


def test_guided_decode_is_the_definition(pipeline):
    """Teacher-forced logits of both branches, guided, at the numbers the seeds give: the same codes."""
    settings, labels = SamplingSettings(guidance_scale=3.0, schedule="constant"), torch.tensor([1, 2])
    tokens = torch.stack([step.token for step in pipeline.steps(labels, settings, seeds=[8, 9])], dim=1)
    null = torch.full_like(labels, pipeline.ar.null_label)
    led, away = (pipeline.ar.head(pipeline.ar(tokens, rows)).detach().double() for rows in (labels, null))
    probabilities = (3 * led - 2 * away).softmax(-1)
    noise = seeded_noise([8, 9])
    for index in range(16):
        level = stats.norm.cdf(noise(index, (1, 2, 4))[0, :, 0].double().numpy())
        upto = probabilities[:, index].cumsum(-1).numpy()
        expected = [int((row < u).sum()) for row, u in zip(upto, level, strict=True)]
        assert_close(tokens[:, index], CODEBOOK[expected], atol=0, rtol=0)


def test_codes_are_drawn_in_proportion():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(40_000, 4)
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(pick(logits, noise, 2.0), minlength=4)
    expected = 40_000 * (logits[0].double() / 2.0).softmax(-1)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
    assert pick(logits[:3], noise[:3], 0.0).tolist() == [2, 2, 2]


def test_a_very_large_number_still_picks_a_code():
    logits = torch.zeros(2, 3)
    assert pick(logits, torch.tensor([50.0, -50.0]), 1.0).tolist() == [2, 0]


def test_a_codebook_of_another_size(pipeline):
    with pytest.raises(ValueError, match=r"codebook has shape \(3, 4\); expected \(11, 4\)"):
        pipeline.ar.head.set_codebook(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"the VAE makes \(16, 4, 11\).*expected \(16, 4, 0\)"):
        Pipeline(pipeline.vae, randomise(SphereAR(TINY_AR)))


def test_presets_fit_a_codebook():
    row = PRESETS["digits"]
    pair = with_vae(row, replace(row.vae, bottleneck="vq", codes=17))
    assert (pair.ar.codes, pair.vae.alphabet) == (17, 17)
    assert with_vae(row, row.vae).ar == row.ar


def test_save_and_load(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path)
    assert_close(again.sample([3], seeds=1), pipeline.sample([3], seeds=1), atol=0, rtol=0)
