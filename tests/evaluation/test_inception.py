"""Scores in Inception's features: what torch-fidelity is given and returns, and reference files of the ADM suite."""

import pickle
import sys

import numpy as np
import pytest
import scipy.linalg
from torch.testing import assert_close

from spherear.evaluation.adm import read_adm
from spherear.evaluation.inception import NAMES, ImageBytes, adm_scores, picture_scores
from spherear.evaluation.scores import Scores
from tests.evaluation.stand_ins import WIDTH, features, install, metrics, pictures


def test_inception_by_torch_fidelity(monkeypatch):
    """Called with bytes, channels first, generated ones first; names that the judge has too are changed."""
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    images[1, 2, 3, 1] = 7
    asked = {}

    def calculate(**options):
        asked.update(options)
        return metrics(**options)

    install(monkeypatch, calculate=calculate)
    real = ImageBytes(pictures(4, 8))
    scores = picture_scores(images, real, "four images")
    assert asked["input1"][1].shape == (3, 8, 8)
    assert int(asked["input1"][1][1, 2, 3]) == 7
    assert len(asked["input1"]) == 3
    assert asked["input2"] is real
    assert pickle.loads(pickle.dumps(asked["input1"]))[1][1, 2, 3] == 7  # for loaders in other processes
    assert scores.values.keys() == set(NAMES.values()) == scores.against.keys()
    assert (scores.values["vgg16_precision"], scores.values["vgg16_recall"]) == (0.25, 0.75)
    assert scores.against["vgg16_recall"] == "four images, in features of VGG16 (torch-fidelity's vgg16)"
    assert scores.against["frechet_inception_distance"].startswith("four images, in features of Inception")
    assert scores.against["inception_score_mean"] == "the generated images alone, by Inception's classes"


def test_without_torch_fidelity_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match=r"FID needs it: pip install .*spherear\[eval\]"):
        picture_scores(pictures(3, 8), "folder", "x")


@pytest.mark.parametrize("version", ["0.3.0", "0.2", "0.3.9rc1"])
def test_a_version_without_precision_is_refused(monkeypatch, version):
    install(monkeypatch, version)
    with pytest.raises(ImportError, match=rf"torch-fidelity is {version}; expected 0.4 or later"):
        picture_scores(pictures(3, 8), ImageBytes(pictures(3, 8)), "x")


def test_a_score_that_is_not_returned_is_missed(monkeypatch):
    install(monkeypatch, calculate=lambda **options: {"frechet_inception_distance": 1.0, "inception_score_mean": 1.0})
    with pytest.raises(ImportError, match=r"without \['inception_score_std', 'precision', 'recall'\]; expected ver"):
        picture_scores(pictures(3, 8), ImageBytes(pictures(3, 8)), "x")


def test_no_score_replaces_another():
    with pytest.raises(ValueError, match=r"\['precision'\] are computed twice"):
        Scores({"precision": 1.0}) | Scores({"precision": 0.5})


# --- files of the ADM suite ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adm_files(tmp_path_factory):
    """Files as the suite's authors publish them: images alone, statistics alone, and both (of different images)."""
    folder = tmp_path_factory.mktemp("adm")
    images, others = pictures(40, 8, seed=1, shift=3), features(pictures(30, 8, seed=2, shift=20))
    mean, covariance = others.mean(axis=0), np.cov(others, rowvar=False)
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.zeros((1, 1))}
    np.savez(folder / "images.npz", arr_0=images)
    np.savez_compressed(folder / "packed.npz", arr_0=images)
    np.savez(folder / "statistics.npz", mu=mean, sigma=covariance, **spatial)
    np.savez(folder / "both.npz", arr_0=images, mu=mean, sigma=covariance, **spatial)
    return folder, images, (mean, covariance)


def published_distance(mean, covariance, other_mean, other_covariance):
    """The published formula, with scipy's root of a matrix."""
    root = scipy.linalg.sqrtm(covariance @ other_covariance)
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance + other_covariance - 2 * root.real))


def covered(points, centres, k=3):
    """Share of points that lie within some centre's distance to its k-th neighbour, one pair at a time."""
    radii = [sorted(float(np.linalg.norm(c - o)) for o in centres)[k] for c in centres]
    pairs = [[np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)] for p in points]
    return float(np.mean([any(row) for row in pairs]))


@pytest.mark.parametrize("name", ["images", "packed", "statistics", "both"])
def test_scores_against_a_file(monkeypatch, adm_files, name):
    install(monkeypatch)
    folder, images, published = adm_files
    generated = pictures(35, 8, seed=3, shift=5)
    found = adm_scores(generated, read_adm(folder / f"{name}.npz"))
    drawn, real = features(generated), features(images)
    base = published if name in ("statistics", "both") else (real.mean(axis=0), np.cov(real, rowvar=False))
    expected = {
        "frechet_inception_distance": published_distance(drawn.mean(axis=0), np.cov(drawn, rowvar=False), *base)
    }
    p = np.exp(drawn[:, :5]) / np.exp(drawn[:, :5]).sum(axis=1, keepdims=True)
    expected["inception_score_mean"] = float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
    if name != "statistics":
        expected |= {"inception_precision": covered(drawn, real), "inception_recall": covered(real, drawn)}
        assert 0 < expected["inception_precision"] < 1
        assert expected["inception_precision"] != expected["inception_recall"]
    assert found.values.keys() == expected.keys() == found.against.keys()
    for score, value in expected.items():
        assert_close(found.values[score], value, rtol=1e-4, atol=1e-4)
    text = found.against["frechet_inception_distance"]
    assert ("by the network of whoever made the file" in text) == (name in ("statistics", "both"))
    assert str(folder / name) in text
    if name != "statistics":
        assert found.against["inception_recall"].startswith(f"40 images of {folder / name}.npz, 8 x 8 px, in features")
    assert "run its evaluator on this file and samples.npz" in found.absent["sfid"]
    assert ("inception_precision, inception_recall" in found.absent) == (name == "statistics")


def test_real_images_score_perfectly(monkeypatch, adm_files):
    install(monkeypatch)
    folder, images, _ = adm_files
    found = adm_scores(images, read_adm(folder / "images.npz")).values
    assert abs(found["frechet_inception_distance"]) < 1e-6
    assert found["inception_precision"] == found["inception_recall"] == 1.0


WHOLE = 2048
EYE = np.eye(WHOLE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((3, 3, 8, 8), np.uint8)}, r"\(3, 3, 8, 8\); expected bytes"),
        ({"arr_0": np.zeros((3, 8, 8, 3), np.float32)}, "expected bytes"),
        ({"arr_0": np.array([{}], dtype=object)}, "expected bytes"),
        ({"mu": np.zeros(768), "sigma": np.eye(768)}, "expected 2048 features, as Inception has"),
        ({"mu": np.zeros(64), "sigma": EYE}, "expected 2048 features"),
        ({"mu": np.zeros(WHOLE)}, "holds \\['mu'\\] alone; expected both mu and sigma"),
        ({"sigma": EYE}, "expected both mu and sigma"),
        ({"mu": np.full(WHOLE, np.nan), "sigma": EYE}, "mu of .* not finite"),
        ({"mu": np.zeros(WHOLE), "sigma": np.triu(np.ones((WHOLE, WHOLE)))}, "is not a covariance"),
        ({"mu": np.zeros(WHOLE), "sigma": -EYE}, "is not a covariance"),
        ({"mu": np.zeros(WHOLE, dtype=int), "sigma": EYE}, "expected finite floats"),
        ({"mu": np.array([{}], dtype=object), "sigma": EYE}, "cannot be read"),
        ({"features": np.zeros(3)}, r"holds \['features'\]; expected images"),
    ],
)
def test_what_is_no_reference_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_adm(tmp_path / "x.npz")


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    np.savez(tmp_path / "x.npz", arr_0=pictures(3, 8))
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content[:kept])
    with pytest.raises(ValueError, match="cannot be read"):
        read_adm(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"nowhere\.npz is not a file"):
        read_adm(tmp_path / "nowhere.npz")
    assert WIDTH < WHOLE
