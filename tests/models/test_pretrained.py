"""Saving, finding and refusing models; the published files; writes that are whole or not there."""

import argparse
import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from spherear import VAE, Pipeline, SphereAR, load_published, preset
from spherear.models.config import Config
from spherear.models.files import atomic_path, read_json, write_json
from spherear.models.presets import PRESETS
from spherear.models.published_weights import load_parts, to_published
from spherear.models.tensor_files import read_tensors, write_tensors
from tests.conftest import TINY_AR, TINY_VAE, randomise


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert_close(theirs[name], tensor, atol=0, rtol=0)


@pytest.fixture
def saved(tmp_path, tiny_ar):
    tiny_ar.save_pretrained(tmp_path / "ar")
    return tmp_path / "ar"


def test_round_trip(saved, tiny_ar, tiny_vae, tmp_path):
    loaded = SphereAR.from_pretrained(saved)
    assert loaded.config == tiny_ar.config
    assert not loaded.training
    assert_same(tiny_ar, loaded)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    Pipeline(tiny_vae, tiny_ar).save_pretrained(tmp_path / "pipeline")
    assert_same(tiny_vae, Pipeline.from_pretrained(tmp_path / "pipeline").vae)


def test_the_loaded_model_computes_the_same(saved, tiny_ar):
    tokens, labels = torch.randn(2, 16, 4), torch.tensor([0, 1])
    assert_close(SphereAR.from_pretrained(saved)(tokens, labels), tiny_ar(tokens, labels), atol=0, rtol=0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache as huggingface_hub lays it out; returns a function that files a snapshot in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(repository: str, commit: str, branch: str) -> "os.PathLike[str]":
        root = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / branch).write_text(commit)
        snapshot = root / "snapshots" / commit
        snapshot.mkdir(parents=True)
        return snapshot

    return add


def test_from_the_hub_at_a_revision(hub, tiny_vae, tiny_ar):
    newer = randomise(SphereAR(TINY_AR), seed=9)
    Pipeline(tiny_vae, tiny_ar).save_pretrained(hub("someone/tiny", "a" * 40, "v1"))
    Pipeline(tiny_vae, newer).save_pretrained(hub("someone/tiny", "b" * 40, "main"))
    assert_same(newer, Pipeline.from_pretrained("someone/tiny").ar)
    assert_same(tiny_ar, Pipeline.from_pretrained("someone/tiny", revision="v1").ar)


@pytest.mark.parametrize("name", ["no/such-repository", "nowhere", "./nowhere/at/all"])
def test_nothing_there(name):
    known = "expected a folder that exists, a hub repository 'owner/name', or one of digits-"
    with pytest.raises(FileNotFoundError, match=known):
        Pipeline.from_pretrained(name)


def test_another_models_folder(saved):
    with pytest.raises(ValueError, match="is of model 'SphereAR'; expected 'VAE'"):
        VAE.from_pretrained(saved)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights(saved, kept):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="model.safetensors is not a complete safetensors file"):
        SphereAR.from_pretrained(saved)


def test_config_that_does_not_fit_its_weights(saved):
    config = read_json(saved / "config.json")
    write_json(saved / "config.json", {**config, "layers": 3, "latent_dim": 5})
    with pytest.raises(ValueError, match=r"does not fit SphereAR.*expected.*and \d+ more"):
        SphereAR.from_pretrained(saved)


def test_foreign_config(saved):
    (saved / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds a list; expected a JSON object"):
        SphereAR.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        SphereAR.from_pretrained(saved)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fit_together_and_survive_json(name):
    row = preset(name)
    assert (row.vae.tokens, row.vae.latent_dim) == (row.ar.tokens, row.ar.latent_dim)
    for config in (row.vae, row.ar):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert preset(name, "gaussian").vae == replace(row.vae, bottleneck="gaussian")


def test_unknown_preset():
    with pytest.raises(ValueError, match="preset is 'digit'; expected one of 'digits'"):
        preset("digit")


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        TINY_VAE.latent_dim = 3
    assert isinstance(TINY_VAE, Config)


# --- the published files ------------------------------------------------------------------------------


@pytest.fixture
def published():
    """State dicts in the published layout: a VAE, an AR model, and both in one."""
    sizes = PRESETS["digits"]
    vae = randomise(VAE(replace(sizes.vae, widths=(16, 16, 64), concentration_gain=1.0)))
    ar = randomise(SphereAR(replace(sizes.ar, width=64, heads=1, head_width=64)))
    tables = {f"{side}.freqs_cis": torch.zeros(vae.config.tokens + 4, 32, 2) for side in ("encoder", "decoder")}
    vae_weights = {f"vae.{k}": v for k, v in {**to_published(vae), **tables}.items()}
    return vae, ar, vae_weights, to_published(ar)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"ema": w, "model": {}}])
def test_published_files(published, tmp_path, wrap):
    vae, ar, vae_weights, ar_weights = published
    path = tmp_path / "model.pt"
    for weights, expected in (
        (vae_weights, VAE),
        (ar_weights, SphereAR),
        (vae_weights | ar_weights, Pipeline),
    ):
        torch.save(wrap(weights), path)
        assert type(load_published(path)) is expected
    loaded = load_published(path)
    assert_same(vae, loaded.vae)
    assert_same(ar, loaded.ar)
    assert (loaded.vae.config, loaded.ar.config) == (vae.config, ar.config)


def test_a_gain_is_folded_into_the_published_weights(published):
    """The published layout has no gain: the loaded model has gain 1 and the same posterior."""
    plain, _, vae_weights, ar_weights = published
    vae = randomise(VAE(replace(plain.config, concentration_gain=20.0)))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    renamed = {f"vae.{name}": tensor for name, tensor in to_published(vae).items()}
    loaded = load_published(vae_weights | renamed | ar_weights).vae
    assert loaded.config == plain.config
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for field in ("sample", "kl", "spread"):
            a, b = (getattr(m.eval().encode(images, torch.Generator().manual_seed(1)), field) for m in (vae, loaded))
            assert_close(a, b, atol=1e-4, rtol=1e-4)
    for name, tensor in vae.state_dict().items():  # the model itself is unchanged
        assert_close(tensor, before[name], atol=0, rtol=0)


def test_training_checkpoint_with_its_arguments(published, tmp_path):
    _, ar, _, ar_weights = published
    torch.save({"ema": ar_weights, "args": argparse.Namespace(lr=3e-4), "steps": 5}, tmp_path / "run.pt")
    assert_same(ar, load_published(tmp_path / "run.pt"))


def test_published_from_the_hub(published, hub):
    vae, _, vae_weights, _ = published
    torch.save({"ema": vae_weights}, hub("guolinke/SphereAR", "c" * 40, "main") / "vae.pt")
    assert_same(vae, load_published("vae.pt"))


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_is_unpickled_but_tensors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.zeros(1)}, "args": Malicious()}, "evil.pt")
    with pytest.raises(ValueError, match="is not a complete checkpoint of plain tensors"):
        load_published("evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        load_published("raw.pt")
    assert not (tmp_path / "executed").exists()


def test_truncated_and_foreign_published_files(published, tmp_path):
    _, _, vae_weights, _ = published
    path = tmp_path / "vae.pt"
    torch.save(vae_weights, path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"vae\.pt is not a complete checkpoint"):
            load_published(path)
    torch.save({"some.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds \['some.weight'\]; expected a published S-VAE"):
        load_published(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list; expected a dict of tensors"):
        load_published(path)
    with pytest.raises(FileNotFoundError, match=r"'other\.pt' is not a file; expected one, or one of vae\.pt"):
        load_published("other.pt")


def test_published_weights_that_miss_a_part(published):
    _, _, vae_weights, _ = published
    without = {k: v for k, v in vae_weights.items() if not k.endswith("conv_out.0.bias")}
    with pytest.raises(ValueError, match=r"decoder\.output\.0\.bias is missing"):
        load_parts(without)


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae.quant_proj.weight": torch.zeros(2)}, r"quant_proj.weight has shape \(2,\); expected 2 axes"),
        ({"vae.encoder.conv_in.weight": torch.zeros(())}, r"conv_in.weight has shape \(\); expected 4 axes"),
        ({"vae.post_quant_proj.weight": torch.zeros(0, 4)}, r"has shape \(0, 4\); expected 2 axes, none of them empty"),
        ({"cls_embedding.weight": torch.zeros(3, 3, 3)}, r"has shape \(3, 3, 3\); expected 2 axes"),
        ({1: torch.zeros(1)}, "the checkpoint holds a dict; expected a dict of tensors"),
    ],
)
def test_published_weights_of_other_shapes(published, change, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        load_published({**published[2], **published[3], **change})


def test_sizes_that_no_model_has_are_refused_before_they_are_built(as_users_do):
    for config, field, message in (
        (TINY_AR, "width", "width is 1073741824; expected at most 16777216"),
        (TINY_AR, "layers", "layers is 1073741824; expected at most 4096"),
        (TINY_VAE, "latent_dim", "a size is 1073741824; expected at most"),
        (TINY_VAE, "encoder_layers", "there are 1073741824 layers; expected at most 4096"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, **{field: 2**30})


def test_json_nested_too_deeply_is_no_object(tmp_path):
    for text in ("[" * 99_000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}"):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"x\.json is not JSON"):
            read_json(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})

    def fill_the_disk():
        with atomic_path(path) as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"could not write .*f\.json: .*No space left"):
        fill_the_disk()
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from spherear import SphereAR
sys.path.insert(0, {root!r})
from tests.conftest import TINY_AR
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    SphereAR(TINY_AR).save_pretrained({folder!r})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_full_disk(saved, tiny_ar, request):
    """The operating system refuses to write past 20 kB: the old model is still there, and nothing else."""
    script = FULL_DISK.format(root=str(request.config.rootpath), folder=str(saved))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "could not write" in done.stdout
    assert "what it held before is unchanged" in done.stdout
    assert_same(tiny_ar, SphereAR.from_pretrained(saved))
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_tensors_and_metadata(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).t(), "b": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"step": "3"})
    found, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"step": "3"}
    assert_close(found, {"a": tensors["a"].contiguous(), "b": tensors["b"]})
    assert load_file(tmp_path / "t.safetensors").keys() == tensors.keys()
    with pytest.raises(FileNotFoundError, match="expected a safetensors file there"):
        read_tensors(tmp_path / "none.safetensors")


def test_foreign_safetensors(saved):
    save_file({"x": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"is missing"):
        SphereAR.from_pretrained(saved)
