"""What a run, a cache and a model were made from: content, class names, and whether they are finished."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import VAE, Pipeline
from spherear.models.ar import SphereAR
from spherear.models.files import read_json
from spherear.train import train_ar, train_vae
from spherear.training.data.cached import encode_all
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_layouts import pack
from tests.training.test_train import AR_RECIPE, VAE_RECIPE

AR3 = replace(TINY_AR, num_classes=3)


def paint(root, classes, count=12, shade=0):
    """Folders of plain pictures; a class's colour depends on its name and the shade."""
    for kind in classes:
        (root / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = ((37 * ord(kind[0]) + shade) % 256, (11 * i) % 256, 90)
            Image.fromarray(np.full((16, 16, 3), colour, dtype=np.uint8)).save(root / kind / f"{i:02}.bmp")
    return root


@pytest.fixture
def root(tmp_path):
    return paint(tmp_path / "data", "abc")


def swap(root):
    (root / "a").rename(root / "x")
    (root / "b").rename(root / "a")
    (root / "x").rename(root / "b")


CHANGES = {
    "folders swapped": swap,
    "one repainted, sizes and names as before": lambda root: paint(root, "c", shade=100),
    "a picture more": lambda root: shutil.copy(root / "a" / "00.bmp", root / "a" / "99.bmp"),
    "a class renamed": lambda root: (root / "c").rename(root / "d"),
    "one picture renamed": lambda root: (root / "a" / "00.bmp").rename(root / "a" / "0a.bmp"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_the_fingerprint_is_that_of_the_content(root, tmp_path, change, kind):
    def look(path):
        return load_data(f"folder:{path}" if kind == "folder" else f"tar:{pack(path, tmp_path / 'x.tar')}", 16).facts()

    before = look(root)
    copied = shutil.copytree(root, tmp_path / "copy")
    assert look(copied) == before == look(root)  # neither the place nor the times count
    CHANGES[change](root)
    assert look(root)["fingerprint"] != before["fingerprint"]


@pytest.mark.parametrize("change", ["folders swapped", "one repainted, sizes and names as before"])
def test_cached_posteriors_of_other_pictures_are_refused(root, tmp_path, change):
    vae = VAE(TINY_VAE)
    first = encode_all(vae, load_data(f"folder:{root}", 16), folder=tmp_path / "cache")
    again = encode_all(vae, load_data(f"folder:{root}", 16), folder=tmp_path / "cache")
    assert torch.equal(first.features, again.features)
    CHANGES[change](root)
    with pytest.raises(
        ValueError, match=r"cache holds other posteriors \(data.fingerprint: expected '\w{16}', got '\w{16}'\)"
    ):
        encode_all(vae, load_data(f"folder:{root}", 16), folder=tmp_path / "cache")


def test_a_cache_with_a_fact_more_is_another(root, tmp_path):
    data, vae = load_data(f"folder:{root}", 16), VAE(TINY_VAE)
    encode_all(vae, data, folder=tmp_path / "cache")
    path = tmp_path / "cache" / "posteriors.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "crop": None}))
    with pytest.raises(ValueError, match=r"holds other posteriors \(crop: expected None, got nothing\)"):
        encode_all(vae, data, folder=tmp_path / "cache")


def test_a_run_goes_on_with_the_pictures_it_began_with(root, tmp_path):
    run = tmp_path / "run"
    states = train_vae(TINY_VAE, load_data(f"folder:{root}", 16), VAE_RECIPE, run)
    next(states)
    states.close()
    shutil.rmtree(root)
    paint(root, "bdz", count=18)
    data = load_data(f"folder:{root}", 16)
    with pytest.raises(ValueError, match=r"dataset.classes: expected \['a', 'b', 'c'\], got \['b', 'd', 'z'\].*"
                       r"dataset.fingerprint.*dataset.images: expected 36, got 54"):  # fmt: skip
        next(train_vae(TINY_VAE, data, VAE_RECIPE, run))
    states = train_vae(TINY_VAE, data, VAE_RECIPE, run, execution=Execution(override=True))
    assert next(states).step == 2
    states.close()
    assert read_json(run / "run.json")["dataset"]["images"] == 54


def test_names_of_classes_stay_with_run_model_and_images(root, tmp_path):
    data = load_data(f"folder:{root}", 16)
    (*_,) = train_vae(TINY_VAE, data, VAE_RECIPE, tmp_path / "vae")
    (*_,) = train_ar(AR3, VAE.from_pretrained(tmp_path / "vae"), data, AR_RECIPE, tmp_path / "ar")
    assert read_json(tmp_path / "ar" / "run.json")["dataset"]["classes"] == ["a", "b", "c"]
    assert json.loads((tmp_path / "ar" / "config.json").read_text())["classes"] == ["a", "b", "c"]
    pipeline = Pipeline.from_pretrained(tmp_path)
    assert torch.equal(pipeline.sample(["c", "a"]), pipeline.sample([2, 0]))
    assert [pipeline.ar.config.name_of(i) for i in range(4)] == ["a", "b", "c", "none"]
    with pytest.raises(ValueError, match="class is 'bb'; expected one of 'b', 'a', 'c'"):
        pipeline.sample(["bb"])
    with pytest.raises(ValueError, match="class is 'a'; expected a number: this model has no names"):
        Pipeline(VAE(TINY_VAE), SphereAR(AR3)).sample(["a"])


def test_an_ar_model_of_another_vae_is_no_pipeline(root, tmp_path):
    """A VAE that was trained on after its AR model: the tokens that the AR model knows are no longer its own."""
    data = load_data(f"folder:{root}", 16)
    (*_,) = train_vae(TINY_VAE, data, VAE_RECIPE, tmp_path / "vae")
    (*_,) = train_ar(AR3, VAE.from_pretrained(tmp_path / "vae"), data, AR_RECIPE, tmp_path / "ar")
    Pipeline.from_pretrained(tmp_path).save_pretrained(tmp_path / "copy", torch.bfloat16)
    Pipeline.from_pretrained(tmp_path / "copy")  # of other precision, and no run
    longer = replace(VAE_RECIPE, steps=VAE_RECIPE.steps + 2)
    (*_,) = train_vae(TINY_VAE, data, longer, tmp_path / "vae", execution=Execution(override=True))
    with pytest.raises(ValueError, match=r"was trained on the tokens of another VAE \(\w{16}\); expected the one"):
        Pipeline.from_pretrained(tmp_path)


def test_a_number_that_names_another_class_has_to_say_which(as_users_do):
    config = replace(AR3, classes=("10", "2", "9"))
    assert [config.label_of(x) for x in (1, "#1", "10", "1")] == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="class '2' has number 1; expected '#2' or '#1'"):
        config.label_of("2")
    with pytest.raises(ValueError, match="there are 2 names of classes; expected 3 different ones"):
        replace(AR3, classes=("a", "b"))


def test_a_model_of_fewer_steps_does_not_pass_for_the_whole_run(root, tmp_path):
    """A finished run that is given more steps is unfinished until these are done."""
    data, run = load_data(f"folder:{root}", 16), tmp_path / "vae"
    (*_,) = train_vae(TINY_VAE, data, VAE_RECIPE, run)
    before = VAE.from_pretrained(run).state_dict()
    longer = replace(VAE_RECIPE, steps=VAE_RECIPE.steps + 4)
    states = train_vae(TINY_VAE, data, longer, run, execution=Execution(override=True))
    next(states)
    states.close()
    with pytest.raises(FileNotFoundError):
        VAE.from_pretrained(run)
    (*_,) = train_vae(TINY_VAE, data, longer, run)
    assert any(not torch.equal(before[name], x) for name, x in VAE.from_pretrained(run).state_dict().items())


def test_a_finished_model_outlives_its_checkpoints(root, tmp_path):
    """As when they were deleted to save room: the model is there, and nothing to go on from."""
    data, run = load_data(f"folder:{root}", 16), tmp_path / "vae"
    (*_,) = train_vae(TINY_VAE, data, VAE_RECIPE, run)
    shutil.rmtree(run / "checkpoints")
    model = (run / "model.safetensors").read_bytes()
    assert list(train_vae(TINY_VAE, data, VAE_RECIPE, run)) == []
    assert (run / "model.safetensors").read_bytes() == model
    facts = (run / "run.json").read_bytes()
    longer = replace(VAE_RECIPE, steps=VAE_RECIPE.steps + 4)
    with pytest.raises(ValueError, match=r"vae holds another run \(recipe.steps: expected 8, got 12\)") as error:
        next(train_vae(TINY_VAE, data, longer, run, execution=Execution(override=True)))
    assert error.value.__notes__ == [
        f"{run} holds a trained model and no checkpoint, from which other steps could go on"
    ]
    assert (run / "run.json").read_bytes() == facts
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match=r"vae holds a trained model without its run\.json; expected an empty folder"):
        next(train_vae(TINY_VAE, data, VAE_RECIPE, run))
    assert (run / "model.safetensors").read_bytes() == model
    assert VAE.from_pretrained(run).config.latent_dim == TINY_VAE.latent_dim


def test_a_second_start_of_a_run_is_refused_and_a_killed_one_leaves_no_lock(root, tmp_path):
    run, data = tmp_path / "run", load_data(f"folder:{root}", 16)
    code = (
        "import sys, time; from spherear.training.run_file import locked_run; from pathlib import Path; "
        f"lock = locked_run(Path({str(run)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="run is being trained by another process"):
            next(train_vae(TINY_VAE, data, VAE_RECIPE, run))
        assert not (run / "run.json").exists()
        other.kill()
    states = train_vae(TINY_VAE, data, VAE_RECIPE, run)
    next(states)
    with pytest.raises(ValueError, match="being trained by another process"):
        next(train_vae(TINY_VAE, data, VAE_RECIPE, run))
    states.close()
    assert len(list(train_vae(TINY_VAE, data, VAE_RECIPE, run))) == VAE_RECIPE.steps - 1
    assert SphereAR(AR3).config.classes == ()
