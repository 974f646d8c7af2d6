"""Surroundings in which nothing may crash or change: autocast, numpy's integers, narrow encodings, wrappers."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spherear import VAE, Pipeline, SamplingSettings, cli
from spherear.console import exit_status, home_hint, import_library
from spherear.models.ar import SphereAR
from spherear.models.files import user_path
from spherear.models.layers import seeded
from spherear.models.pretrained import shipped
from spherear.models.published_weights import load_parts, to_published
from spherear.sampling.engines import engine_named
from spherear.training.data.hub import parse_hub
from spherear.training.data.tar import read_index
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_photographs import jpeg, tar_of

SETTINGS = SamplingSettings(guidance_scale=2.0, solver="euler", steps=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("digits-")])
def test_autocast_around_sampling_changes_nothing(name, dtype):
    pipeline = Pipeline.from_pretrained(name)
    for engine in ("eager", "numpy", "packed"):
        pipeline.engine = engine_named(engine)
        expected = pipeline.sample([3, 4], SETTINGS)
        with torch.autocast("cpu", dtype):
            found = pipeline.sample([3, 4], SETTINGS)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "seeds", [np.int64(3), torch.tensor(3), np.array([3, 4]), torch.tensor([3, 4]), (np.uint8(3), 4), range(3, 5)]
)
def test_seeds_of_any_library(as_users_do, seeds):
    pipeline = Pipeline(seeded(0, VAE, TINY_VAE), seeded(1, SphereAR, TINY_AR))
    assert torch.equal(pipeline.sample([1, 2], SETTINGS, seeds), pipeline.sample([1, 2], SETTINGS, 3))
    with pytest.raises(TypeError, match="integer"):
        pipeline.sample([1, 2], SETTINGS, [1.5, 2])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_weights_saved_from_a_wrapped_model_load(prefix):
    model = seeded(1, SphereAR, TINY_AR)
    wrapped = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    again = SphereAR.from_weights(TINY_AR, wrapped)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    inside = {name.replace("layers.0.", f"layers.0.{prefix}"): t for name, t in model.state_dict().items()}
    assert SphereAR.from_weights(TINY_AR, inside).config == TINY_AR
    wide = replace(TINY_AR, width=64, heads=1)
    published = {prefix + name: tensor for name, tensor in to_published(seeded(1, SphereAR, wide)).items()}
    _, found = load_parts({"model": published})
    assert found is not None
    assert found.config == wide


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp1252"])
def test_help_in_a_narrow_encoding(encoding):
    surroundings = os.environ | {"PYTHONIOENCODING": encoding}
    for words in ((), *((word,) for word in cli.COMMANDS), ("train", "vae"), ("train", "ar")):
        command = [sys.executable, "-m", "spherear.cli", *words, "--help"]
        done = subprocess.run(command, capture_output=True, env=surroundings, check=False)
        assert done.returncode == 0, done.stderr
        assert b"--help" in done.stdout


def test_a_library_built_for_another_torch_is_one_sentence(monkeypatch):
    broken = ModuleType("torchvision")
    broken.__spec__ = ModuleSpec("torchvision", None)

    def load(name):
        raise RuntimeError("operator torchvision::nms does not exist\nand a long trace")

    monkeypatch.setitem(sys.modules, "torchvision", broken)
    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(ImportError, match=r"^torchvision is installed and cannot be loaded beside torch .*nms does not "
                       r"exist\); LPIPS needs it, in versions that fit.*spherear\[eval\]\"$"):  # fmt: skip
        import_library("torchvision", "eval", "LPIPS needs it")


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ("owner/name", ("owner/name", "", "", False)),
        ("owner/name@v1#train[:10]?stream", ("owner/name", "v1", "train[:10]", True)),
        ("owner/name#a@b", ("owner/name", "", "a@b", False)),
        ("{}", ("{}", "", "", False)),
        ("{}@v1#test?stream", ("{}", "v1", "test", True)),
    ],
)
def test_what_is_a_folder_is_a_name_whatever_is_in_it(tmp_path, rest, parts):
    folder = tmp_path / "a@b#c?d"
    folder.mkdir()
    *texts, stream = parts
    assert parse_hub(rest.format(folder), "hub:x") == (*(text.format(folder) for text in texts), stream)
    with pytest.raises(ValueError, match="expected \\?stream or nothing after the split, not 'flow'"):
        parse_hub("owner/name#train?flow", "hub:owner/name#train?flow")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs folders that cannot be written")
def test_a_home_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "x.tar"
    path.write_bytes(tar_of({"a/1.jpg": jpeg(1)}))
    (tmp_path / "data").chmod(0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data" / "cache"))
    with pytest.raises(OSError, match="XDG_CACHE_HOME names another cache"):
        read_index(path)


def test_a_home_that_is_a_file_names_the_variable(tmp_path, monkeypatch):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a/1.jpg": jpeg(1)}))
    monkeypatch.setattr("os.access", lambda place, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(OSError, match="XDG_CACHE_HOME names another cache"):
        read_index(path)


def test_a_broken_command_is_still_one_line(capsys):
    assert cli.main(["sample", "--run", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "variable"),
    [
        ("{home}/.cache/huggingface/hub", "HF_HOME"), ("{home}/.cache/torch/hub/checkpoints", "TORCH_HOME"),
        ("{home}/.cache/spherear", "XDG_CACHE_HOME"), ("{home}/.jupyter/lab", "JUPYTER_CONFIG_DIR"),
        ("{home}/.ipython", "IPYTHONDIR"), ("{home}/elsewhere", "HOME"), ("{home}-of-another/x", ""),
        ("/somewhere", ""),
    ],
)  # fmt: skip
def test_the_variable_that_cures_it(monkeypatch, capsys, path, variable):
    monkeypatch.setenv("HOME", "/home/someone")
    error = PermissionError(errno.EACCES, "Permission denied", path.format(home="/home/someone"))

    def work():
        raise error

    assert exit_status(work) == 2
    hint = f"; set {variable} to a folder that can be written" if variable else ""
    assert capsys.readouterr().err == f"error: {error}{hint}\n"
    assert home_hint(OSError(errno.ENOSPC, "No space left", path.format(home="/home/someone"))) == ""


@pytest.mark.slow
def test_a_model_of_the_hub_with_a_home_that_is_a_file(tmp_path):
    (tmp_path / "home").write_text("a file")
    hidden = ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")
    surroundings = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "spherear.cli", "sample", "--run", "some/body"]
    done = subprocess.run(command, capture_output=True, env=surroundings | {"HF_HUB_OFFLINE": "0"}, check=False)
    assert done.returncode == 2
    assert b"; set HF_HOME to a folder that can be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_value_of_the_wrong_type_is_one_line_and_a_mistake_is_not(capsys):
    def refuse():
        raise TypeError("ARConfig.layers is 'x'; expected int")

    assert exit_status(refuse) == 2
    assert capsys.readouterr().err == "error: ARConfig.layers is 'x'; expected int\n"
    with pytest.raises(TypeError, match="unsupported operand"):
        exit_status(lambda: 1 + None)


def test_a_home_that_is_nobodys():
    with pytest.raises(ValueError, match="path is '~nobody-has-this-name/x'; expected a home that exists"):
        user_path("~nobody-has-this-name/x")
    assert user_path("~/x") == Path(os.path.expanduser("~")) / "x"
