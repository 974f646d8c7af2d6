"""Held-out scores: against the same computed in other ways, during a run and after it."""

import json
import math
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, Pipeline, SphereAR, cli, train
from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.held_out import HeldOut, held_out_loss, psnr, reconstruction_scores
from spherear.evaluation.metrics import frechet_distance
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.models.pretrained import fingerprint
from spherear.sampling.pixels import from_uint8, to_uint8
from spherear.training.data.catalog import load_data
from spherear.training.jobs import Execution
from spherear.validation import features_of, held_out_images, held_out_name
from spherear.world import World
from tests.conftest import TINY_AR, randomise
from tests.training.test_photographs import jpeg


@pytest.fixture(scope="module")
def images():
    return held_out_images("digits:test", 16, load_data("digits", 16).classes, 10, 100)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held") / "vae"
    seeded(0, VAE, preset("digits").vae).save_pretrained(folder)
    return folder


def test_psnr_is_that_of_its_formula():
    a = torch.rand(3, 3, 5, 7) * 2 - 1
    b = torch.rand(3, 3, 5, 7) * 2 - 1
    x, y = (to_uint8(t).numpy().astype(np.float64) for t in (a, b))
    expected = [20 * math.log10(255) - 10 * math.log10(((x[i] - y[i]) ** 2).mean()) for i in range(3)]
    assert psnr(a, b).tolist() == pytest.approx(expected)
    assert psnr(a, a).tolist() == [100.0] * 3


class Half(World):
    """One of two processes; adds what the other found."""

    size = 2

    def __init__(self, rank, others):
        self.rank, self.others = rank, others

    def total(self, counts):
        self.others.setdefault("total", []).append(list(counts))
        return [sum(values) for values in zip(*self.others["total"], strict=True)]


@pytest.mark.parametrize("head", ["geodesic", "mean_velocity"])
def test_a_held_out_loss_draws_all_it_needs_from_its_own_generator(head, images, tiny_vae):
    ar, few = randomise(SphereAR(replace(TINY_AR, head=head))), HeldOut(images.read, 4)
    found = [held_out_loss(tiny_vae, ar, few, 1) for _ in range(2)]
    assert found[0] == found[1]


def test_a_held_out_loss_is_the_mean_loss_and_processes_share_it(images, tiny_ar):
    pipeline = Pipeline.from_pretrained("digits-power_spherical", device="cpu")
    found = held_out_loss(pipeline.vae, pipeline.ar, images, 4)
    losses = []
    for place, rows in enumerate(torch.arange(100).split(32)):
        pictures, labels = images.read(rows)
        tokens = pipeline.vae.encode(pictures, torch.Generator().manual_seed(place)).sample
        with torch.no_grad():
            own = pipeline.ar.loss(tokens, labels, repeats=64, generator=torch.Generator().manual_seed(9))
        losses += [float(own)] * len(rows)
    assert found == pytest.approx(float(np.mean(losses)), rel=0.05)  # other times and noise
    assert found == held_out_loss(pipeline.vae, pipeline.ar, images, 4)
    wrong = HeldOut(lambda rows: (images.read(rows)[0], (images.read(rows)[1] + 1) % 10), 100)
    assert held_out_loss(pipeline.vae, pipeline.ar, wrong, 4) > found
    others: dict = {}
    for rank in (0, 1):
        shared = held_out_loss(pipeline.vae, pipeline.ar, images, 4, Half(rank, others))
    assert shared == pytest.approx(found, rel=1e-6)


def test_reconstructions_are_scored_as_saved(images):
    vae = Pipeline.from_pretrained("digits-power_spherical", device="cpu").vae
    features, source = features_of("digits", 16)
    assert source == "the digits judge"
    distance = reconstruction_scores(vae, images, features, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    classifier, real, made, errors = load_classifier("digits"), [], [], []
    with torch.no_grad():
        for place, rows in enumerate(torch.arange(100).split(32)):
            pictures, _ = images.read(rows)
            back = vae.decode(vae.encode(pictures, torch.Generator().manual_seed(place)).sample)
            errors += (pictures - back).abs().mean(dim=(1, 2, 3)).tolist()
            for kept, x in ((real, pictures), (made, back)):
                kept.append(classifier.features(from_uint8(to_uint8(x))))
    assert distance["frechet"] == pytest.approx(frechet_distance(torch.cat(real), torch.cat(made)), rel=1e-6)
    assert distance["lpips"] == pytest.approx(float(np.mean(errors)), rel=1e-6)
    assert 20 < distance["psnr"] < 40
    assert set(reconstruction_scores(vae, images)) == {"psnr"}


def test_what_cannot_be_held_out_is_refused_before_a_run_begins(vae, tmp_path, capsys):
    assert held_out_name("digits", "") == "digits:test"
    assert held_out_name("folder:x", "folder:y") == "folder:y"
    args = ["vae", "--run", str(tmp_path / "run"), "--validate-every", "2"]
    for options, message in (
        (["--held-out", "shapes:test"], "shapes:test have 10 classes, one disc, one square"),
        (["--held-out", "folder:/nowhere"], "/nowhere is not a folder"),
    ):
        assert train.main([*args, *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="validate_every is -1; expected 0 or more"):
        Execution(validate_every=-1)
    with pytest.raises(ValueError, match="folder:x has no test split; expected a data set such as folder:imagenet/val"):
        held_out_name("folder:x", "")
    assert not (tmp_path / "run").exists()


def lines(run):
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_validated_run_is_the_run_and_its_scores_resume(vae, tmp_path, capsys):
    args = ["ar", "--vae", str(vae), "--batch-size", "4", "--log-every", "2", "--save-every", "2", "--run"]
    assert train.main([*args, str(tmp_path / "plain"), "--steps", "5"]) == 0
    shown = [str(tmp_path / "shown"), "--steps", "5", "--validate-every", "2"]
    assert train.main([*args, *shown]) == 0
    plain, validated = (SphereAR.from_pretrained(tmp_path / name) for name in ("plain", "shown"))
    assert fingerprint(plain) == fingerprint(validated)
    found = lines(tmp_path / "shown")
    assert [line["step"] for line in found] == [2, 4, 5]
    digits = load_data("digits", 16)
    images = held_out_images("digits:test", 16, digits.classes, 10, 5000)
    expected = held_out_loss(VAE.from_pretrained(vae), validated, images, 4)
    assert found[-1]["loss"] == pytest.approx(expected, rel=1e-5)
    assert "step 4, held out: loss=" in capsys.readouterr().err
    (tmp_path / "shown" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found) + '{"st')
    from spherear.training.observers import validation
    from spherear.training.run import TrainState

    observe = validation(tmp_path / "shown", lambda model, world: {"loss": math.inf})
    observe(TrainState(4, 5, {}, 0.1, 1.0, validated))  # of a run that was resumed from step 2
    assert [(line["step"], line["loss"]) for line in lines(tmp_path / "shown")][1:] == [(4, None)]


def test_a_vae_is_validated_by_its_reconstructions(tmp_path):
    args = ["vae", "--run", str(tmp_path), "--steps", "3", "--batch-size", "4", "--validate-every", "3"]
    assert train.main(args) == 0
    (found,) = lines(tmp_path)
    assert set(found) == {"step", "psnr", "frechet"}
    assert found["psnr"] > 0
    assert_close(found["step"], 3)


@pytest.mark.slow
def test_evaluate_scores_held_out_images_too(tmp_path, capsys):
    args = ["evaluate", "digits-power_spherical", "--count", "4", "--steps", "1", "--device", "cpu", "--out"]
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "1.jpg").write_bytes(jpeg(3))
    assert cli.main([*args, str(tmp_path / "bad"), "--held-out", f"folder:{tmp_path / 'pets'}"]) == 2
    assert "have 2 classes, cat, dog ...; expected the 10 that the model was trained on" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    assert cli.main([*args, str(tmp_path / "out"), "--held-out", "digits:test"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"held_out_loss", "held_out_psnr", "held_out_frechet", "precision"} <= found["scores"].keys()
    assert found["against"]["held_out_loss"] == "355 images of digits:test, 16 px"
    assert "the digits judge" in found["against"]["held_out_frechet"]


@pytest.mark.slow
def test_curves_at_wandb_or_a_word_on_what_to_install(monkeypatch, tmp_path, capsys):
    args = [
        "vae",
        "--steps",
        "4",
        "--batch-size",
        "4",
        "--log-every",
        "2",
        "--validate-every",
        "4",
        "--wandb",
        "trials",
    ]
    assert train.main([*args, "--run", str(tmp_path / "none")]) == 2
    assert 'its curves need it: pip install "spherear[wandb]"' in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    asked, logged = [], []

    class Begun:
        def log(self, numbers, step):
            logged.append((step, numbers))

    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **options: asked.append(options) or Begun()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train.main([*args, "--run", str(tmp_path / "run")]) == 0
    assert (asked[0]["project"], asked[0]["resume"], len(asked)) == ("trials", "allow", 1)
    assert [step for step, _ in logged] == [2, 4, 4]
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert logged[1][1]["loss/loss"] == metrics["loss"]
    assert logged[1][1]["run/teraflops"] == pytest.approx(metrics["teraflops"], rel=0.5)
    assert logged[2][1]["held_out/psnr"] == lines(tmp_path / "run")[-1]["psnr"]
