"""What drawing and evaluating do unless asked otherwise, and what is found out before an image is drawn."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from spherear import ARConfig, Pipeline, SamplingSettings, SphereAR, cli
from spherear.evaluation.defaults import Drawing, default_count
from spherear.evaluation.inception import ImageBytes, picture_scores
from spherear.evaluation.samples import draw_samples, images_drawn
from spherear.models.presets import PRESETS
from tests.conftest import TINY_AR
from tests.evaluation import stand_ins
from tests.evaluation.stand_ins import pictures


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_guidance_is_the_presets_for_its_sizes(name):
    ar = PRESETS[name].ar
    assert Drawing().of(ar) == SamplingSettings(guidance_scale=PRESETS[name].guidance_scale)
    assert Drawing().of(replace(ar, classes=tuple(map(str, range(ar.num_classes))))).guidance_scale == (
        PRESETS[name].guidance_scale
    )
    assert Drawing().of(replace(ar, num_classes=3)).guidance_scale == PRESETS[name].guidance_scale  # one's own classes
    assert Drawing(guidance_scale=1.5, steps=7).of(ar) == SamplingSettings(guidance_scale=1.5, steps=7)
    assert default_count(ar) == (50_000 if name.startswith("imagenet") else 2000)


def test_other_sizes_have_guidance_2_and_bad_settings_are_refused():
    assert Drawing(solver="heun").of(TINY_AR) == SamplingSettings(guidance_scale=2.0, solver="heun")
    with pytest.raises(ValueError, match="steps is 0; expected at least 1"):
        Drawing(steps=0)
    with pytest.raises(ValueError, match="guidance_scale is nan; expected"):
        Drawing(guidance_scale=float("nan"))


def test_evaluate_takes_the_presets_guidance_and_imagenets_count(tmp_path, tiny_vae, monkeypatch, capsys):
    """Of a tiny model with 1,000 classes, whose sizes a preset has; it stops where it would draw."""
    config = ARConfig(**{**TINY_AR.to_dict(), "num_classes": 1000})
    Pipeline(tiny_vae, SphereAR(config)).save_pretrained(tmp_path / "model")
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["imagenet256-L"], ar=config))
    np.savez(tmp_path / "ref.npz", arr_0=pictures(5, 16))
    stand_ins.install(monkeypatch)
    drawn = []

    def draw(folder, pipeline, count, settings, *rest):
        drawn.append((count, settings.guidance_scale))
        raise ValueError("enough")

    monkeypatch.setattr("spherear.evaluation.samples.draw_samples", draw)
    args = ["evaluate", str(tmp_path / "model"), "--reference", str(tmp_path / "ref.npz"), "--out", str(tmp_path / "o")]
    assert cli.main(args) == 2
    assert "50,000 images at guidance scale 4.6" in capsys.readouterr().err
    assert cli.main([*args, "--guidance-scale", "2.0", "--count", "20"]) == 2
    assert drawn == [(50_000, 4.6), (20, 2.0)]


def test_networks_that_are_not_here_stop_it_before_an_image_is_drawn(tmp_path, monkeypatch, capsys):
    stand_ins.install(monkeypatch)
    monkeypatch.setattr(Pipeline, "sample", lambda *args: pytest.fail("an image was drawn"))

    def offline(name, features, cuda, verbose):
        raise OSError("the weights cannot be downloaded")

    sys.modules["torch_fidelity.utils"].create_feature_extractor = offline
    np.savez(tmp_path / "ref.npz", arr_0=pictures(5, 16))
    args = ["evaluate", "digits-power_spherical", "--count", "20", "--reference", str(tmp_path / "ref.npz")]
    assert cli.main([*args, "--out", str(tmp_path / "out")]) == 2
    assert "the weights cannot be downloaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_vgg16s_precision_is_that_of_the_generated_images(monkeypatch):
    """torch-fidelity 0.4 takes its first input for the real ones: by a stand-in that computes as it does."""

    def share(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres[None], axis=-1), axis=1)[:, 3]
        near = np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii
        return float(near.any(axis=1).mean())

    def calculate(input1, input2, **options):
        first, second = (
            stand_ins.features(np.stack([x[i].permute(1, 2, 0).numpy() for i in range(len(x))]))
            for x in (input1, input2)
        )
        found = {"precision": share(second, first), "recall": share(first, second)}
        return {"frechet_inception_distance": 0.0, "inception_score_mean": 1.0, "inception_score_std": 0.0, **found}

    stand_ins.install(monkeypatch, calculate=calculate)
    real = pictures(30, 8, seed=1)
    alike = np.concatenate([real[:1]] * 12)  # one real picture, again and again
    scores = picture_scores(alike, ImageBytes(real), "thirty pictures").values
    assert scores["vgg16_precision"] == 1.0
    assert scores["vgg16_recall"] < 0.1


def test_a_later_torch_fidelity_is_refused_until_it_is_tested(monkeypatch):
    stand_ins.install(monkeypatch, "0.5.0")
    with pytest.raises(ImportError, match=r"torch-fidelity is 0.5.0; expected 0.4: which of its inputs are the real"):
        picture_scores(pictures(3, 8), "cifar10-train", "x")


def test_progress_counts_the_images_of_all_processes(tmp_path, tiny_vae, tiny_ar, capsys, monkeypatch):
    pipeline, settings = Pipeline(tiny_vae, tiny_ar), SamplingSettings(solver="euler", steps=1)
    assert images_drawn(tmp_path / "set") == 0
    both = [draw_samples(tmp_path / "set", pipeline, 10, settings, shard=4, rank=rank, size=2) for rank in (0, 1)]
    next(both[0])
    next(both[1])
    assert images_drawn(tmp_path / "set") == 8
    list(both[0])
    assert images_drawn(tmp_path / "set") == 10
    monkeypatch.setattr("spherear.training.progress.INTERVAL", 0.0)
    args = ["evaluate", "digits-power_spherical", "--count", "8", "--shard", "4", "--steps", "1", "--device", "cpu"]
    assert cli.main([*args, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err
    assert "drawing: 8 of 8" in shown
    assert "image/s" in shown
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["labels"] == "i modulo 10"


def test_a_vaes_own_folder_beside_a_run_of_its_ar_model(tmp_path, tiny_vae, tiny_ar):
    tiny_vae.save_pretrained(tmp_path / "one" / "vae")
    tiny_ar.save_pretrained(tmp_path / "two" / "ar")
    expected = Pipeline(tiny_vae, tiny_ar).sample([3], seeds=1)
    for ar in ("two", "two/ar"):
        for vae in ("one", "one/vae"):
            found = Pipeline.from_pretrained(tmp_path / ar, vae=tmp_path / vae, device="cpu")
            np.testing.assert_array_equal(found.sample([3], seeds=1).numpy(), expected.numpy())
    (tmp_path / "two" / "ar" / "run.json").write_text('{"vae": "0123456789abcdef"}')
    with pytest.raises(ValueError, match="was trained on the tokens of another VAE"):
        Pipeline.from_pretrained(tmp_path / "two", vae=tmp_path / "one")
