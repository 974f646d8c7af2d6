"""Cached posteriors: the tokens of encoding at every step, without the encoding."""

import math
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import VAE, SphereAR
from spherear.models.presets import Preset, with_vae
from spherear.sphere.bottlenecks import BOTTLENECKS
from spherear.train import train_ar
from spherear.training.data.cached import Encoding, encode_all
from spherear.training.data.catalog import load_data
from spherear.training.dry_run import ar_step, estimate
from spherear.training.jobs import Execution
from spherear.training.objectives import ARObjective
from spherear.training.recipes import ARRecipe
from spherear.training.run import keyed_generator
from spherear.world import World
from tests.conftest import TINY_AR, TINY_VAE, randomise

RECIPE = ARRecipe(
    steps=6, batch_size=8, learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, ema_decay=0.9, log_every=2,
    save_every=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


def family(name):
    vae = randomise(VAE(replace(TINY_VAE, bottleneck=name, codes=9)))
    if vae.bottleneck.radius is None:
        vae.rescale(0.7)
    if vae.codebook is not None:
        vae.bottleneck.codebook.normal_(generator=torch.Generator().manual_seed(0))
    return vae


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_the_tokens_are_those_of_encoding_and_fresh(name, digits):
    vae = family(name)
    kept = encode_all(vae, digits)
    indices = torch.tensor([3, 500, 1441, 0])
    features, labels = kept.batch(indices)
    images, expected = digits.batch(indices)
    assert torch.equal(labels, expected)
    with torch.no_grad():
        ours = vae.draw_from(features, keyed_generator(1, 2))
        again = vae.draw_from(features, keyed_generator(1, 3))
        theirs = vae.posterior(images, keyed_generator(1, 2)).sample
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (name == "vq") == torch.equal(ours, again)


@pytest.mark.parametrize("name", ["power_spherical", "gaussian", "vq"])
def test_a_cached_run_is_the_run_that_encodes(name, digits):
    vae = family(name)
    config = with_vae(Preset(TINY_VAE, TINY_AR, 1.0), vae.config).ar
    curves = [
        [state.metrics()["loss"] for state in train_ar(config, vae, digits, replace(RECIPE, cached_copies=copies))]
        for copies in (0, 1, 2)
    ]
    assert_close(curves[0], curves[1], atol=1e-4, rtol=1e-4)
    assert_close(curves[0], curves[2], atol=1e-4, rtol=1e-4)  # digits look the same in every epoch


def test_copies_are_epochs_met_in_turn():
    """Two copies of the shapes are their first two epochs; the third meets the first again."""
    shapes = load_data("shapes", 16)
    shapes.__class__ = type("FewShapes", (type(shapes),), {"__len__": lambda self: 20})
    vae = family("power_spherical")
    kept = encode_all(vae, shapes, copies=2)
    assert (len(kept), len(kept.features), kept.unlimited) == (20, 40, True)
    features, labels = kept.batch(torch.tensor([5, 25, 45]))
    images, kinds = shapes.batch(torch.tensor([5, 25, 5]))
    with torch.no_grad():
        assert_close(features, vae.features(images), atol=1e-5, rtol=1e-4)
    assert torch.equal(labels, kinds)
    assert not torch.equal(features[0], features[1])


def test_a_cached_run_resumes_and_is_another_run_than_an_uncached(digits, tmp_path):
    vae, recipe = family("power_spherical"), replace(RECIPE, cached_copies=1)
    whole = [state.metrics() for state in train_ar(TINY_AR, vae, digits, recipe)]
    with closing(train_ar(TINY_AR, vae, digits, recipe, tmp_path)) as states:
        first = [next(states).metrics() for _ in range(2)]
    assert first + [state.metrics() for state in train_ar(TINY_AR, vae, digits, recipe, tmp_path)] == whole
    with pytest.raises(ValueError, match=r"recipe.cached_copies: expected 1, got 0"):
        next(train_ar(TINY_AR, vae, digits, RECIPE, tmp_path))


def test_kept_posteriors_are_found_again_and_no_others(digits, tmp_path, monkeypatch):
    vae, recipe, execution = family("gaussian"), replace(RECIPE, cached_copies=1), Execution(cache=tmp_path / "kept")
    in_memory = [s.metrics() for s in train_ar(TINY_AR, vae, digits, recipe)]
    first = [s.metrics() for s in train_ar(TINY_AR, vae, digits, recipe, execution=execution)]
    monkeypatch.setattr(VAE, "features", None)  # who encodes again now, fails
    second = [s.metrics() for s in train_ar(TINY_AR, vae, digits, recipe, execution=execution)]
    assert in_memory == first == second
    other = family("gaussian")
    other.rescale(0.5)
    with torch.no_grad():
        other.quant_proj.bias.add_(1)
    with pytest.raises(ValueError, match=r"holds other posteriors \(vae: expected '\w{16}', got '\w{16}'\)"):
        next(train_ar(TINY_AR, other, digits, recipe, execution=execution))
    (tmp_path / "kept" / "features.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="features.bin has 5 bytes; expected"):
        next(train_ar(TINY_AR, vae, digits, recipe, execution=execution))


def test_an_encoder_that_fails_leaves_nothing(digits, tmp_path, monkeypatch):
    def failing(self, images):
        raise RuntimeError("the encoder fails")

    monkeypatch.setattr(VAE, "features", failing)
    with pytest.raises(RuntimeError, match="encoder fails"):
        encode_all(family("vmf"), digits, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_halves_what_is_kept(digits):
    vae = family("power_spherical")
    half, full = (encode_all(vae, digits, precision=precision) for precision in ("bfloat16", "float32"))
    assert 2 * half.features.nbytes == full.features.nbytes
    assert_close(half.features.float(), full.features, atol=0.1, rtol=0.05)


def test_recomputed_blocks_change_nothing_but_memory(digits):
    vae = family("power_spherical")
    plain, recomputed = (
        [s.metrics()["loss"] for s in train_ar(TINY_AR, vae, digits, RECIPE, execution=Execution(checkpointing=flag))]
        for flag in (False, True)
    )
    assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)
    took = [
        estimate(
            *ar_step(TINY_AR, RECIPE, Execution(checkpointing=flag), torch.device("cpu")), RECIPE, Execution()
        ).activations
        for flag in (False, True)
    ]
    assert took[1] < 0.8 * took[0]


@pytest.mark.parametrize("codes", [0, 7])
def test_the_objective_is_the_models_loss(codes):
    model = randomise(SphereAR(replace(TINY_AR, codes=codes)), seed=3)
    tokens, labels = torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    recipe = replace(RECIPE, label_dropout=0.5, repeats=3)
    ours = ARObjective(model, recipe)(tokens, labels, keyed_generator(4, 4))
    theirs = model.loss(tokens, labels, repeats=3, label_dropout=0.5, generator=keyed_generator(4, 4))
    assert_close(ours, theirs, atol=0, rtol=0)


def test_the_draws_of_an_objective_are_the_published_ones():
    """By default four per token: times sigmoid(N(0, 1)), noise N(0, I); and a tenth of the labels is dropped."""
    default = ARRecipe(steps=1, batch_size=1, learning_rate=1.0, final_learning_rate=1.0, warmup_steps=0, ema_decay=0.0)
    objective = ARObjective(SphereAR(TINY_AR), default)
    drawn = objective.model.head.draws(torch.zeros(50, 16, 4), default.repeats, keyed_generator(1, 1))
    times, noise = drawn["times"], drawn["noise"]
    assert (times.shape, noise.shape) == ((3200,), (3200, 4))
    for values in (torch.logit(times.double()), noise.double().flatten()):
        assert stats.kstest(values.numpy(), "norm").pvalue > 0.01
    dropped = objective.drop(torch.zeros(4000).long(), keyed_generator(1, 2)) == 10
    assert abs(dropped.double().mean().item() - 0.1) < 4 * math.sqrt(0.09 / 4000)


def test_an_objective_drops_no_label_in_eval_mode():
    model, generator = randomise(SphereAR(TINY_AR), seed=3), keyed_generator(4, 4)
    objective, labels = ARObjective(model, replace(RECIPE, label_dropout=0.5)), torch.zeros(1000).long()
    assert torch.equal(objective.eval().drop(labels, generator), labels)
    share = (objective.train().drop(labels, generator) == model.null_label).double().mean().item()
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 1000)


COMPILED = """
import sys
sys.path.insert(0, {root!r})
from dataclasses import replace
from tests.training.test_cached import *
small = replace(TINY_AR, layers=1, head_depth=1)
for flag in (False, True):
    states = train_ar(small, family("vmf"), load_data("digits", 16), RECIPE, execution=Execution(compile=flag))
    print(*(s.metrics()["loss"] for s in states))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_run_is_the_run(request):
    script = COMPILED.format(root=str(request.config.rootpath))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, compiled = (torch.tensor([float(x) for x in line.split()]) for line in done.stdout.splitlines())
    assert len(plain) == RECIPE.steps
    assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_workers_encode_what_the_loop_encodes_and_train_from_a_folder(digits, tmp_path):
    vae, recipe = family("power_spherical"), replace(RECIPE, cached_copies=1)
    execution = Execution(cache=tmp_path / "kept", workers=2)
    expected = [s.metrics() for s in train_ar(TINY_AR, vae, digits, recipe)]
    assert [s.metrics() for s in train_ar(TINY_AR, vae, digits, recipe, execution=execution)] == expected
    in_memory = train_ar(TINY_AR, vae, digits, recipe, execution=Execution(workers=2))
    assert [s.metrics() for s in in_memory] == expected


def test_a_disk_without_room_is_named_before_anything_is_encoded(digits, tmp_path, monkeypatch):
    def full(file, start, count):
        assert count == 1442 * 16 * 5 * 4  # images, tokens, channels, bytes
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setattr(VAE, "features", None)  # who encodes, fails
    with pytest.raises(OSError, match=r"could not write .*features.bin: .*No space left on device"):
        encode_all(family("power_spherical"), digits, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No space left"):
        encode_all(family("vmf"), digits, folder=tmp_path / "kept")


def test_processes_encode_a_share_each_and_all_images_once(digits):
    """The shares of three processes are the chunks of one, none twice."""

    class Third(World):
        size = 3

    vae, rows = family("power_spherical"), []
    whole = encode_all(vae, digits, copies=2)
    found = torch.zeros_like(whole.features)
    for rank in range(3):
        world = Third()
        world.rank = rank
        for row, features, _ in Encoding(vae, digits, copies=2, world=world).share():
            found[row : row + len(features)] = features
            rows += range(row, row + len(features))
    assert sorted(rows) == list(range(2 * 1442))
    assert torch.equal(found, whole.features)
