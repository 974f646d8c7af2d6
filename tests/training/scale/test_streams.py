"""Streams: how many rows are read, in which order, and what a run that resumes reads again."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from spherear.train import train_vae
from spherear.training.checkpoint import read_state
from spherear.training.data.catalog import epoch_order, load_data
from spherear.training.data.hub import Stream, _columns
from tests.conftest import TINY_VAE
from tests.training.test_photographs import jpeg
from tests.training.test_train import VAE_RECIPE

ROWS = 300
datasets = pytest.importorskip("datasets")


class Source:
    """Rows that are counted when they are read; the interface of a streamed data set."""

    info = type("Info", (), {"splits": "train", "version": "1"})

    def __init__(self, read, start=0):
        self.read, self.start = read, start

    def skip(self, count):
        return Source(self.read, self.start + count)

    def __iter__(self):
        for index in range(self.start, ROWS):
            self.read.append(index)
            yield {"image": {"bytes": PICTURES[index % 10], "path": None}, "label": index % 10}


PICTURES = [jpeg(label) for label in range(10)]


def stream(window=32):
    read = []
    data = Stream(Source(read), ROWS, "image", "label", [str(i) for i in range(10)], "hub:x?stream", 16)
    data.window = window
    return data, read


def test_windows_are_shuffled_and_hold_every_row_once():
    order = epoch_order(1000, seed=3, epoch=5, window=64)
    assert sorted(order.tolist()) == list(range(1000))
    assert (order - torch.arange(1000)).abs().max() < 64
    assert torch.equal(order, epoch_order(1000, seed=3, epoch=5, window=64))
    assert not torch.equal(order, epoch_order(1000, seed=3, epoch=6, window=64))
    assert (order[1:] - order[:-1] == 1).float().mean() < 0.1
    assert torch.equal(epoch_order(10, 1, 2), epoch_order(10, 1, 2, window=0))


def test_an_epoch_reads_every_row_about_once(tmp_path):
    data, read = stream()
    recipe = replace(VAE_RECIPE, steps=ROWS // 4)
    list(train_vae(TINY_VAE, data, recipe))
    assert len(read) == ROWS
    list(train_vae(TINY_VAE, data, replace(recipe, steps=3 * (ROWS // 4))))
    assert len(read) <= ROWS + 3 * ROWS + 3 * data.window


def test_a_run_on_a_stream_resumes_bit_for_bit_and_reads_a_window_again(tmp_path):
    recipe = replace(VAE_RECIPE, steps=70, save_every=100)
    whole = [state.metrics()["loss"] for state in train_vae(TINY_VAE, stream()[0], recipe)]
    with closing(train_vae(TINY_VAE, stream()[0], recipe, tmp_path)) as states:
        first = [next(states).metrics()["loss"] for _ in range(50)]
    assert read_state(tmp_path).step == 50
    data, read = stream()
    rest = [state.metrics()["loss"] for state in train_vae(TINY_VAE, data, recipe, tmp_path)]
    assert first + rest == whole
    assert read[0] >= 200 - 2 * data.window  # of 300: 50 steps of four are behind it
    assert len(read) <= 80 + 3 * data.window + 4


def test_a_broken_row_is_replaced_without_reading_the_stream_anew(monkeypatch):
    monkeypatch.setitem(globals(), "PICTURES", [b"cut" if i == 3 else picture for i, picture in enumerate(PICTURES)])
    data, read = stream()
    order = epoch_order(ROWS, 0, 0, data.window)
    _, labels = data.raw(order)
    assert len(data.broken) == ROWS // 10
    expected = [(i + 1) % 10 if i % 10 == 3 else i % 10 for i in order.tolist()]
    assert labels.tolist() == expected
    assert len(read) <= ROWS + 3 * data.window


def test_a_dry_run_of_a_stream_reads_its_beginning():
    data, read = stream()
    data.batch(data.spread(20))
    assert read == list(range(20))


@pytest.fixture
def webdataset(tmp_path):
    """A table with a WebDataset's columns, as the hub serves it."""
    features = datasets.Features(
        {"__key__": datasets.Value("string"), "jpg": datasets.Image(decode=False), "cls": datasets.Value("int64")}
    )
    rows = {
        "__key__": [str(i) for i in range(8)],
        "jpg": [{"bytes": PICTURES[i % 4], "path": None} for i in range(8)],
        "cls": [i % 4 for i in range(8)],
    }
    root = tmp_path / "wds"
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train-00000.parquet")
    return root


def test_a_webdatasets_columns_are_pictures_and_classes(webdataset, monkeypatch):
    data = load_data(f"hub:{webdataset}", 16)
    assert data.classes == ("0", "1", "2", "3")
    _, labels = data.batch(torch.arange(8))
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert not data.broken
    real = datasets.load_dataset

    def counted(name, **options):
        found = real(name, **options)
        if options["streaming"]:
            found.info.splits = datasets.splits.SplitDict(train=datasets.splits.SplitInfo("train", num_examples=8))
        return found

    monkeypatch.setattr(datasets, "load_dataset", counted)
    streamed = load_data(f"hub:{webdataset}?stream=4", 16)
    assert streamed.classes == data.classes
    for ours, theirs in zip(streamed.batch(torch.arange(8)), data.batch(torch.arange(8)), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"has no names of classes; expected \?stream=N, their number"):
        load_data(f"hub:{webdataset}?stream", 16)
    with pytest.raises(ValueError, match="or jpg and cls as a WebDataset has"):
        _columns({"jpg": datasets.Image(), "cls": datasets.Value("string")}, "x")
