"""The two loops: they learn, resume exactly, and refuse what does not fit."""

import json
import math
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from spherear import VAE, SphereAR, cli
from spherear.models.files import read_json
from spherear.models.presets import Preset, with_vae
from spherear.models.pretrained import fingerprint
from spherear.sphere.bottlenecks import BOTTLENECKS
from spherear.train import train_ar, train_vae
from spherear.training.build import check_graphs
from spherear.training.data.catalog import load_data
from spherear.training.data.dataset import ImageData
from spherear.training.jobs import Execution
from spherear.training.objectives import vae_losses
from spherear.training.recipes import RECIPES, ARRecipe, Recipe, VAERecipe, recipes
from spherear.training.run import Run, keyed_generator, make_optimizer
from tests.conftest import TINY_AR, TINY_VAE, as_users_run

BASE = {
    "steps": 8, "batch_size": 4, "learning_rate": 1e-3, "final_learning_rate": 1e-4, "warmup_steps": 2,
    "log_every": 2, "save_every": 3,
}  # fmt: skip
VAE_RECIPE = VAERecipe(**BASE, ema_decay=0.0)
AR_RECIPE = ARRecipe(**BASE, ema_decay=0.9)
TIMES = {"rate": 0, "images_per_second": 0, "waiting": 0, "teraflops": 0}  # all else repeats exactly


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAE(TINY_VAE).eval()


def loop(kind, vae, data, folder=None, device="cpu", **changes):
    if kind == "vae":
        return train_vae(TINY_VAE, data, replace(VAE_RECIPE, **changes), folder, device)
    return train_ar(TINY_AR, vae, data, replace(AR_RECIPE, **changes), folder, device)


def same_weights(a, b):
    for name, tensor in a.state_dict().items():
        assert_close(b.state_dict()[name], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["vae", "ar"])
def test_loss_falls(kind, vae, digits, device):
    states = loop(kind, vae, digits, device=device, steps=60, batch_size=16, learning_rate=3e-3)
    losses = [state.metrics()["loss"] for state in states]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_graphs_are_refused_where_they_cannot_be_replayed(vae, digits, tmp_path, capsys):
    with pytest.raises(ValueError, match="graphs is True without compile; expected both"):
        Execution(graphs=True)
    graphs = Execution(compile=True, graphs=True)
    for states in (
        train_vae(TINY_VAE, digits, VAE_RECIPE, tmp_path / "vae", "cpu", graphs),
        train_ar(TINY_AR, vae, digits, AR_RECIPE, tmp_path / "ar", "cpu", graphs),
    ):
        with pytest.raises(ValueError, match="graphs is True on cpu, 1 processes, 1 micro-batches; expected one CUDA"):
            next(states)
    halves = replace(VAE_RECIPE, micro_batches=2)
    with pytest.raises(
        ValueError, match="on cuda, 1 processes, 2 micro-batches; expected one CUDA device, and a batch"
    ):
        check_graphs(halves, "cuda", graphs)
    check_graphs(VAE_RECIPE, "cuda", graphs)
    options = ["--preset", "digits", "--run", str(tmp_path / "run"), "--device", "cpu", "--compile", "--graphs"]
    for dry in ([], ["--dry-run"]):
        assert cli.main(["train", "vae", *options, *dry]) == 2
        assert "graphs is True on cpu" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


REPLAYED = """
from tests.training.test_train import *
torch.manual_seed(0)
digits = load_data("digits", 16)
for train, config, recipe, inputs in (
    (train_vae, TINY_VAE, VAE_RECIPE, (digits,)),
    (train_ar, TINY_AR, AR_RECIPE, (VAE(TINY_VAE).eval(), digits)),
):
    losses = []
    for execution in (Execution(), Execution(compile=True, graphs=True)):
        states = train(config, *inputs, recipe, None, "cuda", execution)
        losses.append([state.metrics()["loss"] for state in states])
    assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=1e-3, rtol=1e-3)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replayed_steps_are_the_steps():
    """Compiled and replayed as graphs, the losses are those of the steps as written."""
    assert "equal" in as_users_run(REPLAYED)


def families():
    """The tiny VAE in every family."""
    return {name: replace(TINY_VAE, bottleneck=name, codes=9) for name in BOTTLENECKS}


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_every_family_trains_and_samples(name, digits):
    recipe = replace(VAE_RECIPE, steps=12, batch_size=16)
    *_, vae_state = train_vae(families()[name], digits, recipe)
    vae = vae_state.model
    config = with_vae(Preset(TINY_VAE, TINY_AR, 1.0), vae.config).ar
    losses = [s.metrics()["loss"] for s in train_ar(config, vae, digits, replace(AR_RECIPE, steps=40, batch_size=16))]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_tokens_without_a_length_end_at_standard_deviation_one(name, digits, tmp_path):
    recipe = replace(VAE_RECIPE, steps=8, batch_size=16)
    for _ in train_vae(families()[name], digits, recipe, tmp_path):
        pass
    vae = VAE.from_pretrained(tmp_path)
    if vae.bottleneck.radius is not None:
        assert vae.config.latent_scale == 1.0
        return
    images, _ = digits.batch(torch.arange(len(digits)))
    tokens = vae.encode(images, torch.Generator().manual_seed(5)).sample
    assert_close(tokens.std(), torch.tensor(1.0), atol=0.02, rtol=0)
    unscaled = VAE.from_pretrained(tmp_path)
    unscaled.rescale(1.0)
    again = unscaled.encode(images, torch.Generator().manual_seed(5)).sample
    assert_close(vae.decode(tokens), unscaled.decode(again), atol=1e-5, rtol=0)  # one picture, other units


def test_a_codebook_survives_a_resume_and_an_average(digits, tmp_path):
    recipe = replace(VAE_RECIPE, steps=6, batch_size=16, ema_decay=0.5)
    config = families()["vq"]
    *_, whole = train_vae(config, digits, recipe)
    states = train_vae(config, digits, recipe, tmp_path)
    for _ in range(3):
        next(states)
    states.close()
    *_, resumed = train_vae(config, digits, recipe, tmp_path)
    same_weights(whole.model, resumed.model)
    assert whole.model.bottleneck.usage.sum() > 0


def test_bfloat16_autocast_follows_float32(vae, digits):
    curves = [
        [state.metrics()["loss"] for state in loop("ar", vae, digits, steps=40, batch_size=16, precision=precision)]
        for precision in ("float32", "bfloat16")
    ]
    assert curves[0] != curves[1]
    assert_close(*(torch.tensor(curve) for curve in curves), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["vae", "ar"])
@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_a_run_left_and_resumed_is_the_run_never_left(kind, stop, vae, digits, tmp_path):
    whole = list(loop(kind, vae, digits, tmp_path / "whole"))
    with closing(loop(kind, vae, digits, tmp_path / "left")) as states:
        first = list(islice(states, stop))
    rest = list(loop(kind, vae, digits, tmp_path / "left"))
    assert [state.step for state in first + rest] == list(range(1, 9))
    for a, b in zip(whole, first + rest, strict=True):
        assert a.metrics() == b.metrics()
        assert a.learning_rate == b.learning_rate
    model = VAE if kind == "vae" else SphereAR
    same_weights(*(model.from_pretrained(tmp_path / name) for name in ("whole", "left")))
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "left")]
    for ours, theirs in zip(*logs, strict=True):
        assert json.loads(ours) | TIMES == json.loads(theirs) | TIMES


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.training.test_train import loop, TINY_VAE
from spherear.training.data.catalog import load_data
for state in loop("vae", None, load_data("digits", 16), {folder!r}):
    if state.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_goes_on_from_its_last_checkpoint(digits, tmp_path, request):
    script = KILLED.format(root=str(request.config.rootpath), folder=str(tmp_path / "killed"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=environment)
    assert killed.returncode == -9
    rest = list(loop("vae", None, digits, tmp_path / "killed"))
    assert [state.step for state in rest] == [4, 5, 6, 7, 8]  # saved every third step
    whole = list(loop("vae", None, digits, tmp_path / "whole"))
    for a, b in zip(whole[3:], rest, strict=True):
        assert_close(a.metrics(), b.metrics(), atol=1e-6, rtol=1e-5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_an_error_inside_the_loop_leaves_the_last_checkpoint(digits, tmp_path, monkeypatch):
    calls = iter(range(100))

    def failing(*args):
        if next(calls) == 4:
            raise RuntimeError("the fifth step fails")
        return vae_losses(*args)

    monkeypatch.setattr("spherear.train.vae_losses", failing)
    with pytest.raises(RuntimeError, match="fifth step"):
        list(loop("vae", None, digits, tmp_path))
    monkeypatch.undo()
    assert next(loop("vae", None, digits, tmp_path)).step == 4
    assert not (tmp_path / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_stops_the_run(digits, tmp_path, monkeypatch):
    def infinite(images, reconstruction, latent, recipe):
        return {"loss": vae_losses(images, reconstruction, latent, recipe)["loss"] * math.nan}

    list(islice(loop("vae", None, digits, tmp_path, skip_limit=1), 3))
    monkeypatch.setattr("spherear.train.vae_losses", infinite)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 4; the last checkpoint in .* is good"):
        list(loop("vae", None, digits, tmp_path, skip_limit=1))
    monkeypatch.undo()
    assert math.isfinite(next(loop("vae", None, digits, tmp_path, skip_limit=1)).metrics()["loss"])


def test_a_finished_run_stays_finished(digits, tmp_path):
    list(loop("vae", None, digits, tmp_path))
    before = (tmp_path / "model.safetensors").read_bytes()
    assert list(loop("vae", None, digits, tmp_path)) == []
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_another_run_in_the_folder_is_refused_and_left_alone(digits, vae, tmp_path):
    list(loop("vae", None, digits, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds another run \(recipe.steps: expected 8, got 9\)"):
        list(loop("vae", None, digits, tmp_path, steps=9))
    with pytest.raises(ValueError, match=r"holds another run \(kind: expected 'vae', got 'ar'"):
        list(loop("ar", vae, digits, tmp_path))
    shapes = load_data("shapes", 16)
    with pytest.raises(ValueError, match=r"data: expected 'digits', got 'shapes'"):
        list(loop("vae", None, shapes, tmp_path))
    with pytest.raises(ValueError, match=r"model.latent_dim: expected 4, got 6"):
        list(train_vae(replace(TINY_VAE, latent_dim=6), digits, VAE_RECIPE, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_ar_run_remembers_its_vae(digits, vae, tmp_path):
    with closing(loop("ar", vae, digits, tmp_path)) as states:
        next(states)
    other = VAE(TINY_VAE)
    assert fingerprint(other) != fingerprint(vae)
    with pytest.raises(ValueError, match=r"holds another run \(vae: expected "):
        next(loop("ar", other, digits, tmp_path))


def test_a_truncated_checkpoint_is_named(digits, tmp_path):
    with closing(loop("vae", None, digits, tmp_path)) as states:
        next(states)
    path = tmp_path / "checkpoints" / "0000001" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="state.safetensors is not a complete safetensors file"):
        next(loop("vae", None, digits, tmp_path))


class TwoClasses(ImageData):
    """Data of the right size with the wrong number of classes."""

    spec, classes, image_size = "two", ("a", "b"), 16

    def __len__(self):
        return 30


def test_what_does_not_fit_is_refused(digits, vae, tmp_path):
    with pytest.raises(ValueError, match="images have 32 px; expected 16"):
        next(loop("vae", None, load_data("digits", 32)))
    with pytest.raises(ValueError, match="has 1442 images; expected at least one batch, 2000"):
        next(loop("vae", None, digits, tmp_path, batch_size=2000))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="have 2 classes; expected 10"):
        next(loop("ar", vae, TwoClasses()))
    with pytest.raises(ValueError, match=r"the VAE makes \(16, 4, 0\).*expected \(16, 5, 0\)"):
        next(train_ar(replace(TINY_AR, latent_dim=5), vae, digits, AR_RECIPE))


def test_the_average_is_the_definition(digits, vae):
    """ema_n = decay ema_(n-1) + (1 - decay) w_n, from the initial weights."""
    torch.manual_seed(0)
    model = SphereAR(TINY_AR)
    run = Run(model, replace(AR_RECIPE, ema_decay=0.8), {})
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens, labels = torch.randn(4, 16, 4), torch.arange(4)
    for _ in range(3):
        run.accumulate({"loss": model.loss(tokens, labels, generator=run.generator("cpu"))})
        state = run.update()
        for name, p in model.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * p.detach()
    for name, p in state.model.named_parameters():
        assert_close(p, expected[name], atol=1e-7, rtol=1e-6)


def test_weight_decay_spares_vectors_the_input_projection_and_classes():
    model = SphereAR(TINY_AR)
    decayed, spared = make_optimizer(model, AR_RECIPE).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert {names[id(p)] for p in spared["params"] if p.ndim > 1} == {
        "proj_in.weight",
        "cls_embedding.weight",
    }
    assert all(p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    recipe = replace(AR_RECIPE, steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    assert_close([recipe.learning_rate_at(n) for n in (0, 4, 9)], [0.1, 0.5, 1.0])
    assert_close(recipe.learning_rate_at(60), 0.55)
    assert_close(recipe.learning_rate_at(110), 0.1)
    flat = replace(recipe, final_learning_rate=1.0, warmup_steps=0)
    assert {flat.learning_rate_at(n) for n in (0, 50, 109)} == {1.0}


def test_gradients_are_clipped():
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    run = Run(model, replace(AR_RECIPE, ema_decay=0.0, clip=0.5), {})
    run.accumulate({"loss": (1000 * model(torch.ones(1, 2))).sum()})
    run.update()
    assert_close(model.weight.grad.norm(), torch.tensor(0.5))


def test_losses_are_the_weighted_sum(vae, digits):
    images, _ = digits.batch(torch.arange(4))
    reconstruction, latent = vae(images)
    losses = vae_losses(images, reconstruction, latent, replace(VAE_RECIPE, l1_weight=2.0, kl_weight=0.5))
    assert_close(losses["loss"], 2 * (reconstruction - images).abs().mean() + 0.5 * latent.kl.mean())


def test_streams_are_keyed():
    draws = {(seed, step): torch.rand(3, generator=keyed_generator(seed, step)) for seed in (0, 1) for step in (0, 1)}
    assert len({tuple(v.tolist()) for v in draws.values()}) == 4
    assert_close(torch.rand(3, generator=keyed_generator(1, 1)), draws[1, 1], atol=0, rtol=0)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_survive_json(name):
    plan = recipes(name)
    for recipe in (plan.vae, plan.ar):
        assert type(recipe).from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        assert isinstance(recipe, Recipe)


def test_the_papers_recipe():
    plan = recipes("imagenet256-B")
    vae, ar = plan.vae, plan.ar
    assert (vae.batch_size, vae.learning_rate, vae.final_learning_rate, vae.kl_weight) == (
        256,
        1e-4,
        1e-4,
        0.004,
    )
    assert (ar.batch_size, ar.learning_rate, ar.final_learning_rate, ar.warmup_steps) == (
        512,
        3e-4,
        1e-5,
        20_000,
    )
    assert (ar.ema_decay, ar.label_dropout, ar.repeats, ar.clip, ar.weight_decay) == (
        0.9999,
        0.1,
        4,
        1.0,
        0.05,
    )
    assert (ar.beta1, ar.beta2) == (0.9, 0.95)


def test_a_penalty_is_added_as_it_is(digits):
    images, _ = digits.batch(torch.arange(4))
    torch.manual_seed(0)
    reconstruction, latent = VAE(replace(TINY_VAE, bottleneck="vq"))(images)
    losses = vae_losses(images, reconstruction, latent, replace(VAE_RECIPE, l1_weight=2.0, kl_weight=0.5))
    assert latent.penalty.mean() > 0
    expected = 2 * (reconstruction - images).abs().mean() + 0.5 * latent.kl.mean() + latent.penalty.mean()
    assert_close(losses["loss"], expected)
    assert_close(losses["kl"], latent.kl.mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"precision": "float16"}, "precision is 'float16'; expected one of 'bfloat16', 'float32'"),
        ({"label_dropout": 1.0}, "label_dropout is 1.0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_bad_recipes(changes, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        replace(AR_RECIPE, **changes)


def test_run_json_says_what_the_run_is(digits, tmp_path):
    with closing(loop("vae", None, digits, tmp_path)) as states:
        next(states)
    facts = read_json(tmp_path / "run.json")
    assert facts["kind"] == "vae"
    assert facts["data"] == "digits"
    assert VAERecipe.from_dict(facts["recipe"]) == VAE_RECIPE
    assert type(TINY_VAE).from_dict(facts["model"]) == TINY_VAE
