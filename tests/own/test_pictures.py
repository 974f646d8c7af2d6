"""A folder of one's own pictures: one command to a sheet, and everything that a run is good for after that."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import VAE, Pipeline, SamplingSettings, cli, tile, train
from spherear.live import GuidanceExplorer
from spherear.live.picture import read_picture
from spherear.models.files import read_json, write_json
from spherear.models.sizes import VAEConfig
from spherear.training.data.catalog import held_out_spec, load_data, training_part
from spherear.training.data.propose import look_at, propose_sizes, widths_for
from spherear.training.jobs.arguments import parse_job
from tests.live.test_panels import settled
from tests.own.made import CLASSES, command, write_pictures

SHORT = ["--vae-steps", "4", "--ar-steps", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The two folders of the issue."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "grey", 24, True, 100)
    write_pictures(folder / "colour", 64, False, 10)
    return folder


@pytest.fixture(scope="module")
def run(place):
    """A run of the grey pictures, made by one command."""
    done = command("train", "all", "--data", "folder:grey", "--run", "runs/grey", *SHORT, cwd=place)
    return place / "runs" / "grey", done


@pytest.mark.parametrize(
    ("name", "size", "channels", "patch", "dim"), [("grey", 24, 1, 4, 3), ("colour", 64, 3, 8, 16)]
)
def test_sizes_are_those_of_the_pictures(place, name, size, channels, patch, dim):
    vae = propose_sizes(look_at(f"folder:{place / name}")).vae
    assert (vae.image_size, vae.channels, vae.patch, vae.latent_dim) == (size, channels, patch, dim)


@pytest.mark.parametrize(
    ("given", "found"),
    [({"image_size": 32}, (32, 4)), ({"patch": 8}, (24, 8)), ({"image_size": 48, "patch": 2}, (48, 2))],
)
def test_what_is_given_is_kept_and_the_rest_follows(place, given, found):
    vae = propose_sizes(look_at(f"folder:{place / 'grey'}"), **given).vae
    assert (vae.image_size, vae.patch) == found


def test_every_patch_has_widths_that_a_vae_takes():
    for patch in (1, 2, 4, 8, 16, 32):
        assert VAEConfig(image_size=64, widths=widths_for(patch)).patch == patch


def test_every_fifth_picture_of_a_class_is_held_out(place):
    spec = f"folder:{place / 'grey'}"
    train_part, test_part = load_data(f"{spec}#train", 24), load_data(f"{spec}#test", 24)
    names = [[data.name_of(i) for i in range(len(data))] for data in (load_data(spec, 24), train_part, test_part)]
    assert names[2] == [f"{kind}/{number:03}.png" for kind in CLASSES for number in range(4, 100, 5)]
    assert sorted(names[1] + names[2]) == names[0]
    assert (held_out_spec(f"{spec}#train"), held_out_spec(spec), held_out_spec("digits")) == (
        f"{spec}#test", "", "digits:test",
    )  # fmt: skip
    images, labels = test_part.batch(torch.tensor([0, 25, 59]))
    with Image.open(place / "grey" / "dots" / "029.png") as picture:
        expected = torch.from_numpy(np.array(picture)).float() / 127.5 - 1
    torch.testing.assert_close(images[1, 0], expected)
    assert labels.tolist() == [0, 1, 2]
    assert train_part.fingerprint() != test_part.fingerprint()


def test_too_few_pictures_to_hold_some_out(tmp_path):
    write_pictures(tmp_path / "few", 16, True, 4)
    with pytest.raises(ValueError, match="'bars', 'dots', 'rings'. have fewer than 5 pictures"):
        training_part(f"folder:{tmp_path / 'few'}")


def test_one_command_from_grey_pictures_to_a_sheet(run):
    folder, done = run
    assert "300 images, 3 classes, grey, 24 px" in done.stderr
    assert "proposed: 24 px, grey; 36 tokens of 4x4 pixels" in done.stderr
    pipeline = Pipeline.from_pretrained(folder)
    assert pipeline.ar.config.classes == CLASSES
    assert pipeline.vae.config.channels == 1
    with Image.open(folder / "samples.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == ((4 * 25 + 1) * 4, (3 * 25 + 1) * 4, 3)
    assert (pixels == pixels[..., :1]).all()  # grey to the eye, and exactly


@pytest.mark.slow
def test_one_command_from_colour_pictures_to_a_sheet(place):
    command("train", "all", "--data", "folder:colour", "--run", "runs/colour", *SHORT, "--batch-size", "4", cwd=place)
    config = Pipeline.from_pretrained(place / "runs" / "colour").vae.config
    assert (config.image_size, config.channels) == (64, 3)
    with Image.open(place / "runs" / "colour" / "samples.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert np.ptp(pixels, axis=-1).max() > 0


def test_the_sheet_says_how_it_is_drawn_again(run):
    folder, _ = run
    picture = read_picture((folder / "samples.png").read_bytes())
    assert picture.models == (str(folder.resolve()),)
    images = Pipeline.from_pretrained(folder).sample(list(picture.labels), picture.settings, seeds=picture.seed)
    expected = tile(images, picture.columns).numpy().repeat(picture.zoom, 0).repeat(picture.zoom, 1)
    with Image.open(folder / "samples.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), expected)


@pytest.mark.usefixtures("run")
def test_a_stopped_run_resumes(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    args = ["all", "--data", "folder:grey", "--run", "runs/again", *SHORT]
    vae, _ = parse_job(args).jobs()
    states = train.states_of(vae)[0]
    next(states), next(states)
    states.close()
    assert cli.main(["sample", "--run", "runs/again"]) == 2
    assert "the run runs/again is not finished (vae is in training)" in capsys.readouterr().err
    resumed = train.states_of(vae)[0]
    assert next(resumed).step == 3
    resumed.close()
    assert cli.main(["train", *args]) == 0
    weights = (place / "runs" / "again" / "vae" / "model.safetensors").read_bytes()
    assert weights == (place / "runs" / "grey" / "vae" / "model.safetensors").read_bytes()  # of the run in one go
    lines = (place / "runs" / "again" / "ar" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


def test_classes_are_sampled_by_name_and_nothing_is_overwritten(run, tmp_path, capsys):
    folder, _ = run
    args = [
        "sample",
        "--run",
        str(folder),
        "--labels",
        "rings",
        "bars",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "s.png"),
    ]
    assert cli.main(args) == cli.main(args) == 0
    assert capsys.readouterr().out == f"{tmp_path / 's.png'}: rings, bars\n{tmp_path / 's-2.png'}: rings, bars\n"
    assert read_picture((tmp_path / "s.png").read_bytes()).labels == (2, 0)
    assert cli.main([*args, "--overwrite"]) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert cli.main([*args[:3], "--labels", "3"]) == 2
    assert "label 3 is out of range; expected 0 to 2, or 'none'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_evaluated_against_its_own_held_out_part(run, place, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.chdir(place)
    args = ["evaluate", "runs/grey", "--count", "12", "--steps", "1", "--out", "runs/scores"]
    assert cli.main(args) == 0
    judge = read_json(folder / "judge" / "judge.json")
    assert judge["accuracy"] > 0.9
    assert judge["held_out"] == 60
    results = read_json(place / "runs" / "scores" / "results.json")
    assert "60 held-out images of folder:grey#train, 24 px" in results["against"]["frechet"]
    assert f"recognises {judge['accuracy']:.0%} of 60 held-out images" in results["against"]["accuracy"]
    real = load_data("folder:grey#test", 24).batch(torch.arange(60))[0]
    assert len(real) == 60
    before = (folder / "judge" / "judge.safetensors").read_bytes()
    assert cli.main(args) == 0  # goes on, with the same judge
    assert (folder / "judge" / "judge.safetensors").read_bytes() == before
    assert read_json(place / "runs" / "scores" / "results.json")["scores"] == results["scores"]


def test_a_run_opens_in_a_panel(run):
    folder, _ = run
    panel = settled(GuidanceExplorer(ar=folder, images=1, label="rings"))
    try:
        assert panel.read().picture.labels == (2,)
        images = Pipeline.from_pretrained(folder).sample(["rings"], panel.read().picture.settings, seeds=0)
        assert np.asarray(panel.model_columns[0].pixels).shape[-1] == images.shape[1]
    finally:
        panel.close()


def test_train_ar_takes_classes_and_tokens_from_the_vae(run, place, monkeypatch):
    folder, _ = run
    monkeypatch.chdir(place)
    for vae in (folder, folder / "vae"):
        job = parse_job(["ar", "--vae", str(vae), "--run", "runs/x", "--width", "48"])
        assert job.data == "folder:grey#train"
        assert (job.model.num_classes, job.model.tokens, job.model.latent_dim) == (3, 36, 3)
        assert (job.model.width, job.model.head_width) == (48, 48)


def test_what_a_run_writes_is_a_config_file(run, place, monkeypatch, tmp_path):
    folder, _ = run
    monkeypatch.chdir(place)
    again = parse_job(["vae", "--config", str(folder / "vae" / "run.json"), "--run", "runs/x"])
    assert again.model == VAE.from_pretrained(folder / "vae").config
    assert again.recipe.to_dict() == read_json(folder / "vae" / "run.json")["recipe"]
    ar = parse_job(["ar", "--config", str(folder / "ar" / "run.json"), "--vae", str(folder), "--steps", "9"])
    assert ar.model == Pipeline.from_pretrained(folder).ar.config
    assert (ar.recipe.steps, ar.recipe.batch_size) == (9, 16)
    job = parse_job(["all", "--config", str(folder / "all.json"), "--ar-steps", "5", "--run", "runs/x"])
    assert (job.vae_steps, job.ar_steps, job.data, job.vae.image_size) == (4, 5, "folder:grey", 24)
    write_json(tmp_path / "wrong.json", {"kind": "vae", "modle": {}})
    with pytest.raises(ValueError, match="the config file has .'modle'.; expected some of"):
        parse_job(["vae", "--config", str(tmp_path / "wrong.json")])
    with pytest.raises(ValueError, match="the config file is of kind 'vae'; expected 'ar'"):
        parse_job(["ar", "--config", str(folder / "vae" / "run.json")])


def test_every_field_of_a_config_is_an_option(tmp_path):
    job = parse_job([
        "vae", "--preset", "digits", "--image-size", "64", "--patch", "8", "--latent-dim", "6", "--encoder-layers", "3",
        "--registers", "2", "--channels", "1", "--bottleneck", "gaussian",
    ])  # fmt: skip
    assert (job.model.image_size, job.model.patch, job.model.latent_dim) == (64, 8, 6)
    assert (job.model.encoder_layers, job.model.registers, job.model.channels) == (3, 2, 1)
    assert job.model.bottleneck == "gaussian"
    with pytest.raises(ValueError, match="patch is 3; expected one of 1, 2, 4"):
        parse_job(["vae", "--patch", "3"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "300"], "the data set has 240 images; expected at least one batch, 300"),
        (["--image-size", "25", "--patch", "4"], "image_size is 25; expected a multiple of the patch, 4"),
        (["--width", "50"], "width is 50; expected a multiple of 4"),
        (["--ar.num-classes", "7"], "the data have 3 classes; expected 7"),
        (["--vae-steps", "0"], "steps is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_vae_is_trained(place, args, message, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert cli.main(["train", "all", "--data", "folder:grey", "--run", "runs/refused", *args]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "runs" / "refused").exists()


def test_a_dry_run_is_quiet_and_speaks_of_seconds(place):
    done = command("train", "vae", "--data", "folder:grey", "--dry-run", cwd=place)
    assert "seconds at 1 TFLOP/s" in done.stdout
    assert "5.33 pixel values per latent number (the paper: 48)" in done.stdout
    assert done.stderr.count("\n") == 2  # what the pictures are, and what is proposed
    small = command("train", "vae", "--data", "folder:grey", "--preset", "imagenet256-B", "--image-size", "32",
                    "--widths", "16", "32", "64", "--batch-size", "8", "--micro-batches", "1", "--lpips-weight", "0",
                    "--gan-weight", "0", "--encoder-layers", "1", "--decoder-layers", "1", "--dry-run",
                    cwd=place)  # fmt: skip
    assert "will not fit        `train ar` takes batches of 512, of 300 images" in small.stdout


def test_sampling_before_any_run_offers_what_there_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample"]) == 2
    errors = capsys.readouterr().err
    assert "'runs/demo' is not here; `spherear demo` trains runs/demo" in errors
    assert "digits-power_spherical" in errors
    assert "connection" not in errors


def test_the_null_class_has_a_name(tiny_vae, tiny_ar):
    pipeline = Pipeline(tiny_vae, tiny_ar)
    settings = SamplingSettings(2.0, steps=2)
    torch.testing.assert_close(
        pipeline.sample(["none"], settings, seeds=1), pipeline.sample([tiny_ar.null_label], settings, seeds=1)
    )
