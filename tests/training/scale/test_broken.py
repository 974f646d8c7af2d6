"""A data set of which one file in twenty is broken, missing or slow: the run goes on, and says which."""

import errno
import json
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from spherear import train
from spherear.training.data.catalog import SOURCES
from spherear.training.data.feed import Feed
from spherear.training.data.images import Folder
from spherear.training.recipes import VAERecipe
from spherear.training.run_file import skipped_images
from spherear.world import World

CLASSES, EACH = 4, 50
BROKEN = {"1/007.png", "2/031.png", "3/000.png"}  # cut, text, empty
MISSING = {"0/010.png", "3/049.png"}
SLOW = {"0/020.png", "1/049.png", "2/000.png"}
FLAKY = {"2/005.png", "3/022.png"}  # their storage fails once
RECIPE = VAERecipe(steps=50, batch_size=8, learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=0, ema_decay=0.0,
                   max_broken=0.05, micro_batches=2)  # fmt: skip


class Flaky(Folder):
    """A folder on a slow storage that fails now and then."""

    def content(self, index: int) -> bytes:
        name = self.names[index]
        if name in SLOW:
            time.sleep(0.05)
        if name in FLAKY and not self.__dict__.setdefault("asked", set()) & {name}:
            self.__dict__["asked"].add(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().content(index)


@pytest.fixture
def folder(tmp_path):
    """Grey pictures, as bright as their class: 0, 60, 120, 180."""
    root = tmp_path / "data"
    for label in range(CLASSES):
        (root / str(label)).mkdir(parents=True)
        for i in range(EACH):
            Image.fromarray(np.full((16, 16, 3), 60 * label, dtype=np.uint8)).save(root / f"{label}/{i:03}.png")
    cut, text, empty = sorted(BROKEN)
    (root / cut).write_bytes((root / cut).read_bytes()[:40])
    (root / text).write_text("no picture")
    (root / empty).write_bytes(b"")
    return root


def opened(folder) -> Flaky:
    """The data set; then files go missing."""
    data = Flaky(folder, f"folder:{folder}", 16)
    for name in MISSING:
        (folder / name).unlink()
    return data


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("spherear.training.data.images.PAUSES", (0.01, 0.01, 0.01))


def read_as_label(images: torch.Tensor) -> list[int]:
    """The class of each picture, by its brightness alone."""
    return ((images.mean(dim=(1, 2, 3)) + 1) * 127.5 / 60).round().int().tolist()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_labels_stay_right_and_batches_whole(folder, workers):
    feed = Feed(opened(folder), RECIPE, range(50), World(), "cpu", workers)
    count = 0
    for batch in feed:
        for part in batch:
            assert len(part.inputs) == 4
            assert read_as_label(part.inputs) == part.labels.tolist()
            count += len(part.labels)
    assert count == 50 * 8
    assert set(feed.broken) == BROKEN | MISSING


def test_the_run_goes_on_and_its_report_names_them(folder, tmp_path, monkeypatch, capsys):
    data = opened(folder)
    monkeypatch.setitem(SOURCES, "folder", lambda path, spec, size: data)
    run = tmp_path / "run"
    args = ["vae", "--data", f"folder:{folder}", "--run", str(run), "--steps", "50", "--batch-size", "8"]
    assert train.main([*args, "--max-broken", "0.05"]) == 0
    assert set(skipped_images(run)) == BROKEN | MISSING
    assert "No such file" in skipped_images(run)["0/010.png"]
    assert f"; 5 images could not be read: {run / 'skipped-*.jsonl'} says why" in capsys.readouterr().out
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["skipped_images"]) == (50, 5)
    with (run / "skipped-1.jsonl").open("w") as file:
        file.write('{"image": "9.png", "reason": "x"}\n{"image": "cut')  # of a process that was killed
    assert len(skipped_images(run)) == 6


def test_more_than_max_broken_stops_it_and_names_them(folder, tmp_path, monkeypatch, capsys):
    data = opened(folder)
    monkeypatch.setitem(SOURCES, "folder", lambda path, spec, size: data)
    args = ["vae", "--data", f"folder:{folder}", "--run", str(tmp_path / "run"), "--steps", "50", "--batch-size", "8"]
    assert train.main([*args, "--max-broken", "0.02"]) == 2
    refusal = capsys.readouterr().err
    assert "5 of 200 images are broken, more than max_broken, 0.02, allows" in refusal
    assert all(name in refusal for name in BROKEN | MISSING)
