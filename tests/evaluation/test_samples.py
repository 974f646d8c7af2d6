"""Sets of images on disk: the same bytes from any number of processes, whatever interrupts them."""

import json
import multiprocessing
import zipfile
from itertools import islice

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, cli
from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.judge import judge
from spherear.evaluation.metrics import frechet_distance, inception_score
from spherear.evaluation.samples import draw_samples, finish_samples, read_samples
from spherear.evaluation.scores import chunks, offline_scores, reconstruction_frechet
from spherear.sampling.pixels import from_uint8, to_uint8
from spherear.training.data.catalog import load_data

SETTINGS = SamplingSettings(guidance_scale=2.0, solver="euler", steps=2)


@pytest.fixture
def pipeline(tiny_vae, tiny_ar):
    return Pipeline(tiny_vae, tiny_ar)


def drawn(folder, pipeline, count=22, ranks=1, shard=4):
    for rank in range(ranks):
        assert sum(draw_samples(folder, pipeline, count, SETTINGS, 5, shard, rank, ranks)) > 0
    return finish_samples(folder).read_bytes()


def test_an_image_has_its_label_and_seed(pipeline, tmp_path):
    drawn(tmp_path, pipeline)
    images = np.load(tmp_path / "samples.npz", allow_pickle=False)["arr_0"]
    assert (images.shape, images.dtype) == ((22, 16, 16, 3), np.uint8)
    expected = to_uint8(pipeline.sample([3, 1], SETTINGS, seeds=[5 + 13, 5 + 21])).numpy()
    assert np.abs(images[[13, 21]].astype(int) - expected).max() <= 1  # another batch rounds otherwise
    assert np.array_equal(read_samples(tmp_path / "samples.npz"), images)
    assert {path.name for path in tmp_path.iterdir()} == {"samples.json", "samples.npz"}


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_bytes(ranks, pipeline, tmp_path):
    drawn(tmp_path / "one", pipeline)
    drawn(tmp_path / "more", pipeline, ranks=ranks)
    one, more = (read_samples(tmp_path / name / "samples.npz") for name in ("one", "more"))
    assert np.array_equal(one, more)


def worker(folder, rank):
    torch.set_num_threads(1)
    pipeline = Pipeline.from_pretrained(folder / "pipeline")
    for _ in draw_samples(folder / "two", pipeline, 22, SETTINGS, 5, 4, rank, 2):
        pass


@pytest.mark.slow
def test_two_processes_at_once_give_the_same_bytes(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    drawn(tmp_path / "one", pipeline)
    start = multiprocessing.get_context("spawn")
    both = [start.Process(target=worker, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    finish_samples(tmp_path / "two")
    one, two = (read_samples(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert np.array_equal(one, two)


def test_a_set_resumes_by_shard(pipeline, tmp_path, monkeypatch):
    drawn(tmp_path / "whole", pipeline)
    assert list(islice(draw_samples(tmp_path / "left", pipeline, 22, SETTINGS, 5, 4), 3)) == [4, 4, 4]
    real, calls = Pipeline.sample, []
    monkeypatch.setattr(Pipeline, "sample", lambda self, *a: calls.append(a) or real(self, *a))
    drawn(tmp_path / "left", pipeline)
    assert len(calls) == 3  # six shards, three of them done
    assert np.array_equal(*(read_samples(tmp_path / name / "samples.npz") for name in ("whole", "left")))
    assert list(draw_samples(tmp_path / "left", pipeline, 22, SETTINGS, 5, 4)) == []
    with pytest.raises(ValueError, match="holds other images; expected the same set"):
        list(draw_samples(tmp_path / "left", pipeline, 22, SETTINGS, 6, 4))


def test_the_file_has_the_layout_of_the_adm_evaluator(pipeline, tmp_path):
    """What its readers expect of a batch of samples, seen by zipfile and plain numpy alone, and what Pillow would show.

    `arr_0.npy`, version 1.0 of numpy's format: bytes, (n, height, width, 3), in C order, not compressed. `arr_1.npy`:
    the labels, as the suite's own samplers write them.
    """
    drawn(tmp_path, pipeline)
    path = tmp_path / "samples.npz"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["arr_0.npy", "arr_1.npy"]
        assert archive.testzip() is None
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        with archive.open("arr_0.npy") as member:
            assert np.lib.format.read_magic(member) == (1, 0)
            assert np.lib.format.read_array_header_1_0(member) == ((22, 16, 16, 3), False, np.dtype("uint8"))
    with np.load(path) as file:  # as users call it: without options
        images, labels = file["arr_0"], file["arr_1"]
    assert labels.dtype == np.dtype("int64")
    assert labels.tolist() == [i % 10 for i in range(22)]
    assert (images.dtype, images.flags.c_contiguous) == (np.dtype("uint8"), True)
    for shard in (slice(0, 4), slice(20, 22)):  # as they were drawn: in another batch, a byte may round the other way
        indices = torch.arange(22)[shard]
        expected = pipeline.sample(indices % 10, SETTINGS, seeds=5 + indices)
        assert np.array_equal(images[shard], to_uint8(expected).numpy())
        red = (127.5 * expected[:, 0] + 128).clamp(0, 255)  # channels last: the first of each pixel
        assert np.array_equal(images[shard][..., 0], red.numpy().astype(np.uint8))
    np.savez_compressed(tmp_path / "packed.npz", arr_0=images)
    assert np.array_equal(read_samples(tmp_path / "packed.npz"), images)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, x: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
        (lambda path, x: path.write_bytes(b"PK\x03\x04 cut"), "cannot be read"),
        (lambda path, x: path.write_bytes(b""), "cannot be read"),
        (lambda path, x: path.unlink(), "is not a file"),
        (lambda path, x: np.savez(path, images=x), "cannot be read .*arr_0"),
        (lambda path, x: np.savez(path, arr_0=x / 2), r"is float64 \(3, 8, 8, 3\); expected bytes"),
        (lambda path, x: np.savez(path, arr_0=x.transpose(0, 3, 1, 2).copy()), r"\(3, 3, 8, 8\); expected bytes"),
        (lambda path, x: np.savez(path, arr_0=np.asfortranarray(x)), "columns first; expected bytes"),
    ],
)
def test_what_is_no_set_of_images_is_refused(tmp_path, write, message):
    path, images = tmp_path / "x.npz", np.zeros((3, 8, 8, 3), np.uint8)
    np.savez(path, arr_0=images)
    write(path, images)
    with pytest.raises(ValueError, match=message):
        read_samples(path)


def test_a_damaged_array_and_seeds_that_no_stream_has_are_refused(pipeline, tmp_path):
    next(draw_samples(tmp_path / "left", pipeline, 22, SETTINGS, 5, 4))
    array = tmp_path / "left" / "samples.npy"
    array.write_bytes(array.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"samples\.npy cannot be read .*expected the array of this set of images"):
        list(draw_samples(tmp_path / "left", pipeline, 22, SETTINGS, 5, 4))
    for seed in (-1, 2**64 - 21):
        with pytest.raises(ValueError, match=f"seed is {seed}; expected 0 to 2\\^64 - 22"):
            list(draw_samples(tmp_path / "none", pipeline, 22, SETTINGS, seed, 4))
    assert not (tmp_path / "none").exists()


def test_a_pickled_array_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="expected bytes"):
        read_samples(tmp_path / "x.npz")


def test_offline_scores_are_the_judges():
    data = load_data("digits:test", 16)
    real, labels = data.batch(torch.arange(300))
    classifier = load_classifier("digits")
    images = to_uint8(real.flip(0)).numpy()
    scores = offline_scores(images, labels.flip(0), real, classifier)
    back = torch.cat(list(chunks(images)))
    assert (back - real.flip(0)).abs().max() < 0.5 / 127.5 + 1e-4
    judged = judge(back, labels.flip(0), real, labels, classifier)
    for name in ("frechet", "kernel", "precision", "recall", "accuracy"):
        assert_close(scores[name], getattr(judged, name))
    assert scores["accuracy"] > 0.97
    with torch.no_grad():
        assert_close(scores["inception_score"], inception_score(classifier(back).softmax(dim=1)))


def test_reconstructions_are_scored(tiny_vae):
    real, _ = load_data("digits:test", 16).batch(torch.arange(80))
    classifier = load_classifier("digits")
    found = reconstruction_frechet(tiny_vae, real, classifier, torch.Generator().manual_seed(3))
    with torch.no_grad():
        images = tiny_vae.decode(tiny_vae.encode(real, torch.Generator().manual_seed(3)).sample)
        saved = [classifier.features(from_uint8(to_uint8(x))) for x in (real, images)]  # as PNG files hold them
        assert_close(found, frechet_distance(*saved))


def test_evaluate_files_what_it_measured(tmp_path, capsys):
    args = ["evaluate", "digits-power_spherical", "--count", "40", "--out", str(tmp_path), "--steps", "2",
            "--solver", "euler", "--shard", "20"]  # fmt: skip
    assert cli.main(args) == 0
    assert "frechet" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["samples"]["images"] == 40
    assert found["classes"] == list(Pipeline.from_pretrained("digits-power_spherical").ar.config.classes)
    assert found["command"].startswith("spherear")
    assert found["samples"]["settings"]["steps"] == 2
    assert len(found["samples"]["ar"]) == 16
    assert set(found["scores"]) == {
        "frechet", "kernel", "inception_score", "precision", "recall", "accuracy", "reconstruction_frechet",
    }  # fmt: skip
    assert read_samples(tmp_path / "samples.npz").shape == (40, 16, 16, 3)
    assert cli.main([*args[:-1], "10"]) == 2
    assert "holds other images" in capsys.readouterr().err
