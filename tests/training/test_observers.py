"""What is shown of a run, and that showing changes nothing."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import VAE, SphereAR, train
from spherear.models.layers import seeded
from spherear.models.presets import preset
from spherear.models.pretrained import fingerprint
from spherear.training.progress import memory_gib


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown") / "vae"
    seeded(0, VAE, preset("digits").vae).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_watched_run_is_the_run_and_leaves_curves_and_pictures(vae, tmp_path, capfd):
    pytest.importorskip("tensorboard")
    args = ["ar", "--vae", str(vae), "--steps", "5", "--batch-size", "4", "--log-every", "2", "--run"]
    assert train.main([*args, str(tmp_path / "plain")]) == 0
    assert train.main([*args, str(tmp_path / "shown"), "--preview-every", "2", "--tensorboard"]) == 0
    plain, shown = (SphereAR.from_pretrained(tmp_path / name) for name in ("plain", "shown"))
    assert fingerprint(plain) == fingerprint(shown)
    previews = sorted((tmp_path / "shown" / "previews").iterdir())
    assert [path.name for path in previews] == ["0000002.png", "0000004.png", "0000005.png"]
    assert np.asarray(Image.open(previews[0])).std() > 1
    assert "waiting=" in capfd.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "shown" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss/loss")] == [2, 4, 5]
    assert all(event.value > 0 for event in found.Scalars("run/memory_gib"))
    assert all(0 <= event.value < 1 for event in found.Scalars("run/waiting"))
    lines = [json.loads(line) for line in (tmp_path / "shown" / "metrics.jsonl").read_text().splitlines()]
    for name in ("gradient_norm", "epoch", "images_per_second", "learning_rate"):
        logged = {line["step"]: line[name] for line in lines}
        events = found.Scalars(f"run/{name}")
        assert [event.value for event in events] == pytest.approx([logged[event.step] for event in events], rel=1e-4)
    assert [line["epoch"] for line in lines] == [4 * line["step"] / 1442 for line in lines]
    for line in lines:
        assert line["images_per_second"] == pytest.approx(4 * line["rate"])
        assert line["gradient_norm"] > 0


def test_a_vaes_preview_is_images_over_reconstructions(tmp_path):
    args = ["vae", "--steps", "2", "--batch-size", "4", "--run", str(tmp_path), "--preview-every", "2"]
    assert train.main(args) == 0
    (preview,) = (tmp_path / "previews").iterdir()
    sheet = np.asarray(Image.open(preview))
    data = train.load_data("digits", 16)
    first = torch.from_numpy(sheet[2:34:2, 2:34:2].copy()).float()  # two pixels a pixel, one of gap
    assert (first / 127.5 - 1 - data.batch(torch.tensor([0]))[0][0].permute(1, 2, 0)).abs().max() < 0.02
    assert sheet.shape == (2 * (2 * 17 + 1), 2 * (10 * 17 + 1), 3)


def test_curves_without_tensorboard_say_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train.main(["vae", "--run", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert 'curves need it: pip install "spherear[train]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_memory_is_what_the_process_held():
    assert 0.05 < memory_gib() < 64


def test_a_log_file_gets_lines_and_a_terminal_a_bar(tmp_path, capsys, monkeypatch):
    args = ["vae", "--steps", "30", "--batch-size", "4", "--run"]
    assert train.main([*args, str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["VAE (digits): step 1 of 30", "VAE (digits): step 30 of 30"]
    assert all("loss=" in line and "images/s" in line and "left" in line for line in lines)
    monkeypatch.setattr("spherear.training.progress.INTERVAL", 0.0)
    assert train.main([*args, str(tmp_path / "b")]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 30
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert train.main([*args, str(tmp_path / "c")]) == 0
    shown = capsys.readouterr().err
    assert shown.count("\r") > 1
    assert "30/30" in shown
