"""The models as one graph: compiled whole and exported, with the numbers of the models as they are written."""

import pytest
import torch

from spherear.models.ar import check_labels
from spherear.models.vae import check_finite
from tests.conftest import as_users_run

MODELS = """
import torch
from torch.testing import assert_close
from spherear import SphereAR, VAE
from tests.conftest import TINY_AR, TINY_VAE, randomise

class Decode(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae
    def forward(self, tokens):
        return self.vae.decode(tokens)

ar, pixels = randomise(SphereAR(TINY_AR)), Decode(randomise(VAE(TINY_VAE)))
tokens, labels = torch.randn(3, 16, 4), torch.tensor([1, 10, 3])
for model, inputs in ((ar, (tokens, labels)), (pixels, (tokens,))):
    with torch.no_grad():
        expected = model(*inputs)
"""
COMPILED = (
    MODELS
    + """
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(*inputs)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
print("equal")
"""
)
EXPORTED = (
    MODELS
    + """
        batch = tuple({0: torch.export.Dim("batch", min=2)} for _ in inputs)
        exported = torch.export.export(model, inputs, dynamic_shapes=batch if len(inputs) > 1 else (batch[0],))
        found = exported.module()(*inputs)
        more = tuple(torch.cat((x, x)) for x in inputs)
        assert_close(exported.module()(*more), model(*more), atol=1e-5, rtol=1e-5)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
print("equal")
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("script", [COMPILED, EXPORTED], ids=["compiled", "exported"])
def test_models_are_one_graph(script):
    assert "equal" in as_users_run(script)


def test_what_is_not_compiled_is_checked():
    with pytest.raises(ValueError, match="label 10 is out of range; expected 0 to 9"):
        check_labels(torch.tensor([10]), 10)
    with pytest.raises(ValueError, match="tokens hold 1 non-finite values"):
        check_finite("tokens", torch.tensor([1.0, float("nan")]))
