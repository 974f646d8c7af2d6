"""Numbers about tokens as a population, against closed forms."""

import pytest
import torch
from torch.testing import assert_close

from spherear.analysis.latents import token_variances, wrong_length
from spherear.sampling.pipeline import cached_pipeline

F64 = torch.float64


@pytest.fixture
def pipeline():
    return cached_pipeline("digits-power_spherical")


def test_token_variances_are_those_of_the_numbers():
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tokens = torch.randn(40_000, 2, 2, generator=torch.Generator().manual_seed(0)) * scale
    found = token_variances(tokens)
    assert_close(found.per_dim, torch.tensor([5.0, 10.0], dtype=F64), rtol=0.05, atol=0)
    assert_close(found.per_token, torch.tensor([2.5, 12.5], dtype=F64), rtol=0.05, atol=0)
    assert found.unevenness == pytest.approx(2, rel=0.05)
    with pytest.raises(ValueError, match="of 1 images; expected at least 2"):
        token_variances(tokens[:1])


def test_wrong_length_scales_tokens_before_they_are_decoded(pipeline):
    image = torch.zeros(3, 16, 16)
    wrong = wrong_length(pipeline.vae, image, (0.5, 1.0))
    tokens = pipeline.vae.encode(image[None]).mode
    assert_close(wrong.images[0], pipeline.vae.decode(tokens / 2)[0], atol=1e-5, rtol=0)
    assert wrong.errors[1] == 0 < wrong.errors[0]
    with pytest.raises(ValueError, match=r"factors are \[0.0\]; expected numbers above 0"):
        wrong_length(pipeline.vae, image, (0.0,))
