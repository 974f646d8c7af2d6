"""What scores are computed against: found, checked and named before anything is drawn."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch

from spherear import VAE, Pipeline, cli
from spherear.evaluation.scores import Pictures
from spherear.models.ar import SphereAR
from spherear.models.layers import seeded
from spherear.study.reference import Against, checked_reference, judge_of
from spherear.training.data.catalog import Digits, Shapes, load_data
from tests.conftest import TINY_AR, TINY_VAE
from tests.training.test_photographs import jpeg, picture


@pytest.fixture
def fidelity(monkeypatch):
    """A stand-in for torch-fidelity that knows one data set; returns what it was called with."""
    calls = []

    def calculate_metrics(**options):
        calls.append(options)
        return {"frechet_inception_distance": 1.0, "precision": 0.5, "recall": 0.25}

    for name in ("torch_fidelity", "torch_fidelity.registry"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torch_fidelity"].calculate_metrics = calculate_metrics
    sys.modules["torch_fidelity.registry"].DATASETS_REGISTRY = {"cifar10-train": None}
    return calls


@pytest.fixture
def pictures(tmp_path):
    """Class folders, mixed sizes and formats."""
    root = tmp_path / "real"
    for kind, size, ending in (("cat", (40, 30), "webp"), ("dog", (20, 50), "png"), ("dog", (16, 16), "jpg")):
        (root / kind).mkdir(parents=True, exist_ok=True)
        picture(len(ending), size=size).save(root / kind / f"{ending}.{ending}")
    return root


def test_pictures_of_a_reference_are_cropped_as_training_data_are(pictures):
    found, text = checked_reference(str(pictures), 16)
    trained = load_data(f"folder:{pictures}", 16)
    assert isinstance(found, Pictures)
    assert found.count == len(trained) == 3
    for index in range(3):
        (image,), _ = trained.batch(torch.tensor([index]))
        assert np.array_equal(found.read(index), np.asarray(((image + 1) * 127.5).round().permute(1, 2, 0)))
    assert text == f"3 pictures of {pictures}, cropped to the middle, 16 px"


def test_images_of_the_adm_suite_are_a_reference_and_its_statistics_are_not(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    found, text = checked_reference(str(tmp_path / "images.npz"), 16)
    assert isinstance(found, Pictures)
    assert np.array_equal(found.read(3), images[3])
    assert text.startswith("5 images of ")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(8), sigma=np.eye(8), mu_s=np.zeros(4), sigma_s=np.eye(4))
    np.savez(tmp_path / "floats.npz", images / 255.0)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    for name, message in (
        ("statistics", r"holds \['mu', 'sigma', 'mu_s', 'sigma_s'\], statistics by another network"),
        ("floats", r"is float64 \(5, 16, 16, 3\); expected bytes"),
        ("cut", "cannot be read"),
        ("none", "is not a file"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_reference(str(tmp_path / f"{name}.npz"), 16)


def test_a_bad_reference_stops_before_anything_is_drawn(tmp_path, pictures, fidelity, capsys):
    (pictures / "cat" / "cut.png").write_bytes(jpeg(1)[:100])
    args = ["evaluate", "digits-power_spherical", "--count", "20", "--out", str(tmp_path / "out")]
    for reference, message in ((str(pictures), "cat/cut.png"), ("cifar1-train", "one of ['cifar10-train']")):
        assert cli.main([*args, "--reference", reference]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert fidelity == []


def test_results_say_what_they_were_computed_against(tmp_path, pictures, fidelity, capsys):
    args = ["evaluate", "digits-power_spherical", "--count", "20", "--out", str(tmp_path / "out"), "--steps", "2",
            "--solver", "euler", "--reference", str(pictures)]  # fmt: skip
    assert cli.main(args) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["against"] == {
        "Inception (FID, IS) and VGG16 (precision, recall)": f"3 pictures of {pictures}, cropped to the middle, 16 px",
        "the judge of digits": "held-out images of digits, 16 px",
    }
    assert "against held-out images of digits" in capsys.readouterr().out
    assert len(fidelity[0]["input2"]) == 3
    assert fidelity[0]["input2"][0].shape == (3, 16, 16)


def test_the_judge_is_that_of_the_models_classes():
    def pipeline(size, classes):
        widths = {16: TINY_VAE.widths, 32: (*TINY_VAE.widths, 16)}[size]
        vae = replace(TINY_VAE, image_size=size, widths=widths)
        ar = replace(TINY_AR, tokens=vae.tokens, num_classes=len(classes) or TINY_AR.num_classes, classes=classes)
        return Pipeline(seeded(0, VAE, vae), seeded(0, SphereAR, ar))

    digits, shapes = Digits.classes, Shapes.classes
    assert judge_of(pipeline(16, digits)) == judge_of(pipeline(16, ())) == "digits"
    assert [judge_of(pipeline(32, names)) for names in (digits, tuple(shapes), ())] == ["mnist", "shapes", ""]
    cats = tuple(f"cat {i}" for i in range(10))
    with pytest.raises(ValueError, match="no judge is known for 32 px and the classes cat 0, cat 1"):
        Against.of(pipeline(32, cats), "auto", None)
