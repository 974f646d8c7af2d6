"""Models out of checkpoints: of unfinished runs, of earlier steps."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, Pipeline, SphereAR, cli
from spherear.export import export
from spherear.train import train_ar, train_vae
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_train import AR_RECIPE, VAE_RECIPE, same_weights


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


def test_an_unfinished_run_gives_the_models_it_had(digits, tmp_path, capsys):
    """Of step 4, and of the newest: the weights that the loop showed."""
    run, out = tmp_path / "run", tmp_path / "out"
    list(train_vae(TINY_VAE, digits, VAE_RECIPE, run / "vae"))
    vae, shown = VAE.from_pretrained(run / "vae"), {}
    recipe = replace(AR_RECIPE, steps=20, save_every=2)
    with closing(train_ar(TINY_AR, vae, digits, recipe, run / "ar", execution=Execution(keep_every=4))) as states:
        for state in states:
            shown[state.step] = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
            if state.step == 11:
                break
    assert cli.main(["export", str(run), "--out", str(out), "--step", "4"]) == 0
    assert "step 4 of 20" in capsys.readouterr().out
    for name, tensor in SphereAR.from_pretrained(out / "ar").state_dict().items():
        assert torch.equal(tensor, shown[4][name])
    assert Pipeline.from_pretrained(out).sample([3], seeds=0).shape == (1, 3, 16, 16)
    same_weights(VAE.from_pretrained(out / "vae"), vae)
    assert export(run / "ar", tmp_path / "newest") == {"": 11}
    for name, tensor in SphereAR.from_pretrained(tmp_path / "newest").state_dict().items():
        assert torch.equal(tensor, shown[11][name])
    with pytest.raises(ValueError, match=r"has no checkpoint of step 7; it has \[4, 8, 10, 11\]"):
        export(run / "ar", tmp_path / "seven", step=7)
    with pytest.raises(ValueError, match="out/vae holds a model; expected a new folder"):
        export(run, out)
    with pytest.raises(ValueError, match="has no run in vae, ar"):
        export(tmp_path, tmp_path / "x")
    assert not (tmp_path / "seven").exists()


def test_a_vae_without_a_length_is_exported_with_its_scale(digits, tmp_path):
    config = replace(TINY_VAE, bottleneck="gaussian")
    with closing(train_vae(config, digits, replace(VAE_RECIPE, batch_size=16), tmp_path / "run")) as states:
        for _ in range(3):
            next(states)
    export(tmp_path / "run", tmp_path / "out")
    images, _ = digits.batch(torch.arange(len(digits)))
    tokens = VAE.from_pretrained(tmp_path / "out").encode(images, torch.Generator().manual_seed(5)).sample
    assert_close(tokens.std(), torch.tensor(1.0), atol=0.02, rtol=0)
