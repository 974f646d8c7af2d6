"""The classifiers that ship with the library, and the judgement built on them."""

import inspect
import re
from importlib.resources import files

import pytest
import torch
from torch.testing import assert_close

from spherear.evaluation.classifier import Classifier, JudgeNetwork, accuracy, load_classifier, main, train_classifier
from spherear.evaluation.judge import judge
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.evaluation.metrics import pairwise_diversity
from spherear.training.data.catalog import load_data


def held_out(size):
    data = load_data("digits:test", size)
    return data.batch(torch.arange(len(data)))


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_held_out_accuracy(classifier, size):
    assert accuracy(classifier, *held_out(size)) >= 0.97


@pytest.mark.parametrize("name", sorted(JUDGE_INPUTS))
def test_the_log_beside_the_weights_says_what_they_do(name):
    log = (files("spherear.evaluation") / f"{name}_classifier.log").read_text()
    assert f"python -m spherear.evaluation.classifier --data {name}" in log
    logged = float(re.search(r"held-out accuracy: ([\d.]+)", log)[1])
    assert logged >= 0.97
    data = load_data(f"{name}:test", JUDGE_INPUTS[name].size)
    images = data.batch(torch.arange(min(500, len(data))))
    assert_close(accuracy(load_classifier(name), *images), logged, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["mnist", "shapes"])
def test_features_of_colour_judges_are_alive_and_independent(name):
    """No unit is always zero, and the features of real images span nearly all their dimensions."""
    data = load_data(f"{name}:test", JUDGE_INPUTS[name].size)
    images, labels = data.batch(torch.arange(1000))
    judge = load_classifier(name)
    with torch.no_grad():
        features = judge.features(images).double()
    assert accuracy(judge, images, labels) >= 0.99
    assert float((features > 0).double().mean(0).min()) > 0.01
    assert int(torch.linalg.matrix_rank(features - features.mean(0))) == features.shape[1]


def test_data_without_a_classifier():
    with pytest.raises(ValueError, match="data is 'faces'; expected one of 'digits', 'mnist', 'shapes'"):
        load_classifier("faces")


def test_what_it_sees_hardly_depends_on_the_size(classifier):
    """Resizing moves a digit's features far less than another digit of its class is away."""
    (small, labels), (large, _) = held_out(8), held_out(32)
    with torch.no_grad():
        a, b = classifier.features(small), classifier.features(large)
        agree = (classifier(small).argmax(1) == classifier(large).argmax(1)).float().mean()
    assert agree >= 0.98
    assert (a - b).norm(dim=1).mean() < 0.5 * pairwise_diversity(a, labels)


def test_training_learns_and_depends_on_the_seed_alone():
    data = load_data("digits", 16)
    images, labels = data.batch(torch.arange(600))
    model, losses = train_classifier(JUDGE_INPUTS["digits"], [images], labels, seed=1, epochs=3)
    again, _ = train_classifier(JUDGE_INPUTS["digits"], [images], labels, seed=1, epochs=3)
    assert losses[-1] < 0.7 * losses[0]
    assert accuracy(model, *held_out(16)) > 0.6
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert_close(a, b, atol=0, rtol=0)


def test_the_command_writes_weights_and_log(tmp_path, capsys):
    main(out=tmp_path, seed=2, epochs=1)
    assert "held-out accuracy" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "digits_classifier.log",
        "digits_classifier.safetensors",
    ]
    loaded = load_classifier("digits", tmp_path / "digits_classifier.safetensors")
    assert isinstance(loaded, Classifier)


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 4, 4), (3, 16, 16)])
def test_wrong_shapes(as_users_do, classifier, shape):
    with pytest.raises(ValueError, match=r"expected \(n, 3, s, s\) with s at least 8"):
        classifier(torch.zeros(shape))


def test_judgement_of_real_digits_of_noise_and_of_one_digit(classifier):
    """Training digits judged against held-out ones are near perfect; noise and a single repeated digit are not."""
    train = load_data("digits", 16)
    images, labels = train.batch(torch.arange(400))
    real = held_out(16)
    good = judge(images, labels, *real, classifier)
    assert good.accuracy > 0.97
    assert min(good.precision, good.recall) > 0.7
    assert 0.9 < good.diversity < 1.1
    noise = judge(torch.rand(400, 3, 16, 16) * 2 - 1, labels, *real, classifier)
    assert noise.accuracy < 0.3
    assert noise.frechet > 5 * good.frechet
    first = torch.stack([images[labels == label][0] for label in labels])
    collapsed = judge(first, labels, *real, classifier)
    assert collapsed.accuracy == 1.0
    assert collapsed.diversity < 1e-3
    assert collapsed.recall < 0.5 * good.recall
    assert abs(good.kernel) < 0.1 * noise.kernel


def test_images_are_judged_as_they_are_saved(classifier):
    """Values beyond white and black score as white and black; colours and contrast are told from the real ones."""
    images, labels = load_data("shapes:test", 32).batch(torch.arange(40))
    judged = [
        judge(x, labels, images, labels, load_classifier("shapes")) for x in (3 * images, (3 * images).clamp(-1, 1))
    ]
    assert judged[0] == judged[1]
    assert judged[0].contrast_shift > 0.05
    same = judge(images, labels, images, labels, load_classifier("shapes"))
    assert (same.saturation_shift, same.contrast_shift) == (0, 0)
    grey = judge(
        images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1), labels, images, labels, load_classifier("shapes")
    )
    assert grey.saturation_shift < -0.1


def test_a_classifier_is_known_as_a_judge_by_any_python(classifier):
    """From 3.12 on, `isinstance` looks for a protocol's members without `__getattr__`, which finds a module's parts."""
    assert isinstance(classifier, JudgeNetwork)
    for name in (name for name in vars(JudgeNetwork) if not name.startswith("_")):
        assert callable(inspect.getattr_static(classifier, name))
