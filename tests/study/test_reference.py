"""What scores are computed against: found, checked and named before anything is drawn."""

import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, Pipeline, SamplingSettings, cli, demo
from spherear.evaluation.adm import ADMReference
from spherear.evaluation.classifier import Classifier
from spherear.evaluation.inception import FEWEST
from spherear.evaluation.samples import read_samples
from spherear.models.ar import SphereAR
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.study import judges
from spherear.study.cell import measure_point, measure_vae
from spherear.study.design import GRIDS, Point
from spherear.study.reference import Against, PictureBytes, Reference, checked_reference, judge_of
from spherear.study.solver_errors import qualities, settings_of
from spherear.training.data.catalog import Digits, Shapes, load_data
from spherear.training.recipes import recipes
from tests.conftest import TINY_AR, TINY_VAE
from tests.evaluation import stand_ins
from tests.training.test_photographs import jpeg, picture

QUICK = ["--count", "20", "--steps", "2", "--solver", "euler", "--shard", "20"]


@pytest.fixture
def fidelity(monkeypatch):
    """A stand-in for torch-fidelity that knows one data set; returns what it was called with."""
    calls = []

    def calculate_metrics(**options):
        calls.append(options)
        return stand_ins.metrics(**options)

    stand_ins.install(monkeypatch, calculate=calculate_metrics)
    return calls


@pytest.fixture
def pictures(tmp_path):
    """Class folders, mixed sizes and formats."""
    root = tmp_path / "real"
    kinds = (("cat", (40, 30), "webp"), ("dog", (20, 50), "png"), ("dog", (16, 16), "jpg"), ("cat", (17, 33), "bmp"))
    for kind, size, ending in kinds:
        (root / kind).mkdir(parents=True, exist_ok=True)
        picture(len(ending), size=size).save(root / kind / f"{ending}.{ending}")
    return root


def evaluate(tmp_path, *args):
    return cli.main(["evaluate", "digits-power_spherical", *QUICK, "--out", str(tmp_path / "out"), *args])


def test_pictures_of_a_reference_are_cropped_as_training_data_are(pictures, fidelity):
    found, text = checked_reference(str(pictures), 16)
    trained = load_data(f"folder:{pictures}", 16)
    assert isinstance(found, PictureBytes)
    assert len(found) == len(trained) == 4
    for index in range(4):
        (image,), _ = trained.batch(torch.tensor([index]))
        assert np.array_equal(found[index], np.asarray(((image + 1) * 127.5).round()))
    assert text == f"4 pictures of {pictures}, cropped to the middle, 16 px"
    (pictures / "cat" / "webp.webp").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"cat/webp.webp: cannot identify"):
        found[1]


def test_files_of_the_adm_suite_are_a_reference(tmp_path, fidelity):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images)
    found, _ = checked_reference(str(tmp_path / "images.npz"), 16)
    assert isinstance(found, ADMReference)
    assert np.array_equal(found.images[3], images[3])
    assert found.describe_images() == f"5 images of {tmp_path / 'images.npz'}, 16 x 16 px"
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(9), sigma=np.eye(9), mu_s=np.zeros(4), sigma_s=np.eye(4))
    np.savez(tmp_path / "floats.npz", images / 255.0)
    np.savez(tmp_path / "few.npz", images[:3])
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    for name, message in (
        ("statistics", r"holds mu \(9,\) and sigma \(9, 9\).*statistics of another network"),
        ("floats", r"is float64 \(5, 16, 16, 3\); expected bytes"),
        ("few", "few.npz has 3 images; expected at least 4"),
        ("cut", "cannot be read"),
        ("none", "is not a file"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_reference(str(tmp_path / f"{name}.npz"), 16)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--reference", "{real}"], "cat/cut.png"),
        (["--reference", "cifar1-train"], "one of ['cifar10-train']"),
        (["--reference", "{real}/dog"], "real/dog has 2 images; expected at least 4"),
        (["--reference", "{real}/empty"], "has no images"),
        (["--reference", "{real}/nowhere.npz"], "nowhere.npz is not a file"),
        (["--reference", "~nobody-has-this-name/x"], "expected a home that exists"),
        (["--reference", "cifar10-train", "--count", "9"], f"count is 9; expected at least {FEWEST} images to score"),
        (["--count", "3"], "count is 3; expected at least 4 images to score"),
        (["--data", "shapes"], "images have 16 px; expected at least 32 for the judge of shapes"),
    ],
)
def test_a_bad_reference_stops_before_anything_is_drawn(
    tmp_path, pictures, fidelity, capsys, monkeypatch, args, message
):
    monkeypatch.setattr(Pipeline, "sample", lambda *args: pytest.fail("an image was drawn"))
    (pictures / "cat" / "cut.png").write_bytes(jpeg(1)[:100])
    (pictures / "empty").mkdir()
    assert evaluate(tmp_path, *(arg.format(real=pictures) for arg in args)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert fidelity == []


@pytest.mark.parametrize(
    ("version", "message"), [(None, "FID needs it"), ("0.3.0", "torch-fidelity is 0.3.0; expected 0.4")]
)
def test_without_a_torch_fidelity_that_fits_nothing_is_drawn(tmp_path, pictures, capsys, monkeypatch, version, message):
    monkeypatch.setattr(Pipeline, "sample", lambda *args: pytest.fail("an image was drawn"))
    if version is None:
        monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    else:
        stand_ins.install(monkeypatch, version)
    assert evaluate(tmp_path, "--reference", str(pictures)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_score_says_against_what(tmp_path, pictures, fidelity, capsys):
    assert evaluate(tmp_path, "--reference", str(pictures)) == 0
    results, out = json.loads((tmp_path / "out" / "results.json").read_text()), capsys.readouterr().out
    scores, against = results["scores"], results["against"]
    assert scores.keys() == against.keys()
    assert (scores["vgg16_precision"], scores["vgg16_recall"]) == (0.25, 0.75)
    assert 0 <= scores["precision"] <= 1  # the judge's own, under the plain name
    real = f"4 pictures of {pictures}, cropped to the middle, 16 px"
    assert against["vgg16_recall"] == f"{real}, in features of VGG16 (torch-fidelity's vgg16)"
    assert against["frechet_inception_distance"].startswith(f"{real}, in features of Inception")
    assert against["precision"] == "355 held-out images of digits, 16 px, in features of the digits judge"
    assert against["accuracy"] == "the requested labels, by the digits judge"
    assert "their reconstructions" in against["reconstruction_frechet"]
    for name, text in against.items():
        assert any(line.startswith(name) and line.endswith(f"against {text}") for line in out.splitlines()), name
    assert len(fidelity[0]["input2"]) == 4
    assert fidelity[0]["input2"][0].shape == (3, 16, 16)


def test_statistics_of_the_adm_suite_and_what_they_do_not_give(tmp_path, fidelity, capsys):
    width = stand_ins.WIDTH
    np.savez(tmp_path / "ref.npz", mu=np.zeros(width), sigma=np.eye(width))
    assert evaluate(tmp_path, "--reference", str(tmp_path / "ref.npz")) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["absent"].keys() == {"sfid", "inception_precision, inception_recall"}
    assert {"frechet_inception_distance", "inception_score_mean", "precision"} <= results["scores"].keys()
    assert "mu and sigma of" in results["against"]["frechet_inception_distance"]
    assert "run its evaluator on this file and samples.npz" in capsys.readouterr().out


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
        Against.of(pipeline(32, cats), "auto", None, 20)


def test_a_model_of_other_classes_is_not_judged(tiny_vae):
    pipeline = Pipeline(tiny_vae, SphereAR(replace(TINY_AR, num_classes=7)))
    with pytest.raises(ValueError, match="the model has 7 classes; expected 10, as the judge of digits has"):
        Against.of(pipeline, "digits", None, 20)


def _seen_by_judges(monkeypatch):
    """Every batch of images that a classifier is given from now on."""
    seen, features = [], Classifier.features

    def watched(self, images):
        seen.append(images.clone())
        return features(self, images)

    monkeypatch.setattr(Classifier, "features", watched)
    return seen


def judged_by_evaluate(pipeline, folder):
    pipeline.save_pretrained(folder / "model")
    args = ["evaluate", str(folder / "model"), "--data", "digits", *QUICK, "--out", str(folder / "out")]
    assert cli.main(args) == 0
    return read_samples(folder / "out" / "samples.npz")


def judged_by_study(pipeline, folder):
    grid, real = replace(GRIDS["full"], images=20, solver_steps=1), Reference.of("digits")
    measure_point(grid, pipeline, Point(2.0), real, torch.randn(20, 16, 4), 7)
    measure_vae(pipeline.vae, real, 0)


def judged_by_demo(pipeline, folder):
    list(demo.sample_and_judge(pipeline, (1.0,), 0))


def judged_by_quality(pipeline, folder):
    next(qualities("x", pipeline, Reference.of("digits"), set(), "test", (settings_of("euler", 1),)))


@pytest.mark.parametrize("path", [judged_by_evaluate, judged_by_study, judged_by_demo, judged_by_quality])
def test_scores_see_bytes_whoever_scores(path, tmp_path, monkeypatch, tiny_vae, tiny_ar):
    """What a file would hold: from 0 to 255, whole numbers. The model's own images are far outside of [-1, 1]."""
    with torch.no_grad():
        tiny_vae.decoder.output[-1].weight *= 30
    pipeline, drawn, images = Pipeline(tiny_vae, tiny_ar), [], Pipeline.images

    def watched(self, tokens):
        drawn.append(images(self, tokens))
        return drawn[-1]

    monkeypatch.setattr(Pipeline, "images", watched)
    monkeypatch.setattr(demo, "SamplingSettings", lambda guidance_scale: SamplingSettings(guidance_scale, steps=1))
    seen = _seen_by_judges(monkeypatch)
    filed = path(pipeline, tmp_path)
    assert torch.cat(drawn).abs().max() > 1.5
    for batch in seen:
        levels = 127.5 * batch.double() + 127.5
        assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert levels.min() >= -1e-4
        assert levels.max() <= 255 + 1e-4
    shown = torch.cat([batch for batch in seen if batch.shape[2:] == (16, 16)])
    bytes_ = (127.5 * torch.cat(drawn).double() + 128).clamp(0, 255).floor()  # as `evaluate` files them
    rows = {tuple(row) for row in (127.5 * shown.double() + 127.5).round().flatten(1).tolist()}
    assert {tuple(row) for row in bytes_.flatten(1).tolist()} <= rows
    if filed is not None:
        assert {tuple(row) for row in torch.from_numpy(filed.copy()).permute(0, 3, 1, 2).flatten(1).tolist()} <= rows


class Brightness:
    """A judge that is no torch module."""

    def features(self, images):
        return torch.stack((images.mean((1, 2, 3)), images.std((1, 2, 3))), dim=1)

    def classify(self, features):
        return torch.cat((features, -features), dim=1)


def test_images_are_judged_on_another_device_alike(device):
    """Scores of real digits, on the CPU and on `device`; a judge that is no module stays where it is."""
    data = load_data("digits", 16)
    images, labels = data.batch(torch.arange(200))
    here = Reference.of("digits")
    expected = asdict(here.judge(images, labels))
    there = here.on(device)
    assert there.side.features.device.type == device
    assert asdict(there.judge(images, labels)) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    own = Reference(here.images, here.labels, Brightness())
    assert own.on(device) is own
    assert own.side.features.device.type == "cpu"


def test_images_smaller_than_the_shipped_judge_can_see_have_one_trained_on_them(tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "LIMIT", 40)
    monkeypatch.setattr(judges, "TESTED", 20)
    trained = judges.find_judge("auto", "shapes", 16, tmp_path)
    assert trained.network.view.native == 16
    assert trained.facts["image_size"] == 16
    again = judges.find_judge("auto", "shapes", 16, tmp_path)
    images = load_data("shapes:test", 16).batch(torch.arange(4))[0]
    assert_close(again.network.features(images), trained.network.features(images))
    for size in (32, 64):
        assert judges.find_judge("auto", "shapes", size, tmp_path).title == "the shapes judge"


def test_lengths_differ_in_the_sequence_alone():
    grids = {16: GRIDS["length16"], 64: GRIDS["length64"], 256: GRIDS["length256"]}
    for tokens, grid in grids.items():
        sizes = preset(grid.preset)
        assert sizes.ar.tokens == tokens
        assert replace(sizes.ar, tokens=64) == preset("shapes").ar
        assert replace(sizes.vae, image_size=32) == preset("shapes").vae
        assert replace(recipes(grid.preset), data="shapes") == recipes("shapes")
        same = ("variants", "vae_steps", "ar_steps", "batch_size", "images", "solver", "solver_steps", "scales", "half")
        assert [getattr(grid, name) for name in same] == [getattr(GRIDS["length64"], name) for name in same]
    for dim in (2, 8):
        like = replace(GRIDS["length64"], name=f"dim{dim}", latent_dim=dim, variants=("S-02", "N-02", "G-04"))
        assert GRIDS[f"dim{dim}"] == replace(like, scales=(1.0, 4.5, 12.0))
