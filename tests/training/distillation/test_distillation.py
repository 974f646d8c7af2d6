"""Distillation: exact targets, a student that learns, a run that resumes bit for bit, and what is refused."""

from dataclasses import replace

import pytest
import torch
from scipy.integrate import solve_ivp
from torch.testing import assert_close

from spherear import VAE, Pipeline, SamplingSettings, SphereAR, cli
from spherear.models.heads.mean_velocity import MeanVelocityHead
from spherear.models.pretrained import fingerprint
from spherear.models.sources import heads_beside, heads_folder
from spherear.sampling.pipeline import cached_pipeline
from spherear.sphere.geometry import project
from spherear.study.reference import data_of
from spherear.train import distill
from spherear.training.data.catalog import load_data
from spherear.training.distillation.objective import LOSSES, DistillObjective, Teacher
from spherear.training.distillation.recipe import OBJECTIVES, DistillRecipe
from spherear.training.distillation.student import student_of
from spherear.training.jobs import Execution
from spherear.training.run import keyed_generator
from tests.conftest import TINY_AR, TINY_VAE, draw, randomise

F64 = torch.float64
RECIPE = DistillRecipe(steps=4, batch_size=2, warmup_steps=1, cached_copies=0, teacher_steps=4, repeats=2, save_every=2)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", 16)


def model(head="velocity"):
    return randomise(SphereAR(replace(TINY_AR, head=head)), seed=1)


def vae(family="power_spherical"):
    return randomise(VAE(replace(TINY_VAE, bottleneck=family)))


@pytest.mark.parametrize("head", ["velocity", "geodesic"])
def test_a_teachers_draws_follow_its_guided_velocity(head):
    """Its states are on the way of an independent integrator, each row with a guidance scale of its own."""
    ar = model(head).double()
    with torch.no_grad():
        ar.head.time_embed.mlp[0].weight.zero_()  # slow enough for few steps
    x, condition, null = project(draw("x", 3, 4), 2.0), draw("c", 3, 32), draw("n", 3, 32)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    states = Teacher(ar.head, condition, null, scale).trajectory(x, 200)

    @torch.no_grad()
    def slope(t, y):
        at = torch.from_numpy(y).view(3, 4)
        v, away = (ar.head(at, torch.full((3,), t, dtype=F64), c) for c in (condition, null))
        return (away + scale[:, None] * (v - away)).flatten().numpy()

    solved = solve_ivp(slope, (0, 1), states[0].flatten().numpy(), t_eval=(0.5, 1.0), rtol=1e-8, atol=1e-9).y
    for state, expected in zip((states[100], states[-1]), solved.T, strict=True):
        assert_close(state.flatten(), torch.from_numpy(expected), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("head", ["velocity", "geodesic"])
def test_only_the_head_has_a_gradient(head, objective):
    recipe = replace(RECIPE, objective=objective)
    student, teacher = student_of(model(head), recipe), model(head).head
    tokens = project(draw("t", 2, 16, 4).float(), 2.0)
    with torch.no_grad():  # as after a step: the first one has no gradient behind the embeddings that begin at zero
        randomise(student.head.scale_embed), randomise(student.head.span_embed)
    DistillObjective(student, teacher, recipe)(tokens, torch.tensor([1, 2]), keyed_generator(0, 0)).backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None}
    assert trained == {f"head.{name}" for name, _ in student.head.named_parameters()}
    assert all(torch.isfinite(p.grad).all() for p in student.head.parameters())
    assert set(LOSSES) == set(OBJECTIVES)


def test_an_exact_student_has_no_trajectory_loss():
    """A flow of constant velocity: the teacher's output is its bias, and the student, which begins as it, is right."""
    teacher = model()
    with torch.no_grad():
        teacher.head.final_linear.weight.zero_()
    student = student_of(teacher, RECIPE)
    objective = DistillObjective(student, teacher.head, RECIPE)
    loss = objective(draw("t", 2, 16, 4).float(), torch.tensor([1, 2]), keyed_generator(0, 0))
    assert loss.item() < 1e-10


@pytest.mark.parametrize("head", ["velocity", "geodesic"])
def test_a_run_resumes_bit_for_bit_and_draws(head, digits, tmp_path):
    """Stopped after two steps and begun again, as without a stop; the transformer is the teacher's throughout."""
    ar = model(head)
    before = fingerprint(ar)
    assert len(list(distill(vae(), ar, digits, RECIPE, tmp_path / "whole"))) == 4
    for state in distill(vae(), ar, digits, RECIPE, tmp_path / "parts"):
        if state.step == 2:
            break
    assert not (tmp_path / "parts" / "ar" / "config.json").exists()
    steps = [state.step for state in distill(vae(), ar, digits, RECIPE, tmp_path / "parts")]
    assert steps == [3, 4]
    whole, parts = (Pipeline.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    assert fingerprint(whole.ar) == fingerprint(parts.ar)
    assert fingerprint(ar) == before
    assert all(p.requires_grad for p in ar.parameters())
    own = ar.state_dict()
    same = {k for k, v in whole.ar.state_dict().items() if not k.startswith("head.") and torch.equal(v, own[k])}
    assert same == {k for k in own if not k.startswith("head.")}
    assert whole.ar.head.curved == ar.head.curved
    assert isinstance(whole.ar.head, MeanVelocityHead)
    assert torch.isfinite(whole.sample([1, 2], SamplingSettings(3.0, solver="euler", steps=2))).all()
    with pytest.raises(ValueError, match=r"holds another run \(teacher: expected"):
        next(distill(vae(), randomise(model(head), 7), digits, RECIPE, tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "steps", "batch", "left"),
    [("trajectory", 80, 8, 0.6), ("shortcut", 320, 16, 0.9), ("mean_flow", 80, 8, 0.95)],
)
def test_a_student_comes_nearer_to_its_teacher(objective, steps, batch, left, digits):
    """The error of one evaluation after some steps, as a share of what it was, with a teacher that draws digits.

    A shortcut is slower: it learns from its own halves, which are wrong at first.
    """
    from spherear.analysis.latents import real_latents
    from spherear.study.few_evaluations import token_error

    teacher = cached_pipeline("digits-power_spherical")
    latents, labels = real_latents(teacher.vae, digits, seed=1, limit=32)
    recipe = replace(
        RECIPE, steps=steps, batch_size=batch, warmup_steps=5, learning_rate=1e-3, ema_decay=0.0, objective=objective,
        teacher_steps=8,
    )  # fmt: skip
    before = token_error(student_of(teacher.ar, recipe), teacher.ar, latents, labels, 1)
    *_, state = distill(teacher.vae, teacher.ar, digits, recipe)
    assert token_error(state.model.eval(), teacher.ar, latents, labels, 1) < left * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "guess"}, "objective is 'guess'; expected one of"),
        ({"teacher_steps": 0}, "teacher_steps is 0; expected 1 to 1000"),
        ({"largest_scale": 0.5}, "largest_scale is 0.5; expected a finite number, 1 or more"),
        ({"largest_scale": float("inf")}, "largest_scale is inf"),
    ],
)
def test_a_recipe_is_checked(changes, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


def test_what_cannot_be_distilled_is_refused(digits, tmp_path):
    for head in ("mean_velocity", "geodesic_mean"):
        with pytest.raises(TypeError, match=r"the teacher's head is .*mean velocity; expected a velocity, flat or geo"):
            next(distill(vae(), model(head), digits, RECIPE, tmp_path / "a"))
    vq = replace(TINY_VAE, bottleneck="vq", codes=8)
    with pytest.raises(TypeError, match="the teacher's head is categorical; expected a velocity"):
        next(distill(VAE(vq), SphereAR(replace(TINY_AR, codes=8)), digits, RECIPE, tmp_path / "a"))
    for option in ("sharded", "compile"):
        with pytest.raises(ValueError, match=f"{option} is True; expected False"):
            next(distill(vae(), model(), digits, RECIPE, tmp_path / "a", execution=Execution(**{option: True})))
    with pytest.raises(ValueError, match="the data have 10 classes; expected 7"):
        next(distill(vae(), SphereAR(replace(TINY_AR, num_classes=7)), digits, RECIPE, tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_the_command_writes_the_head_beside_its_model(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Pipeline(vae(), model()).save_pretrained("run")
    options = ["--data", "digits", "--steps", "1", "--batch-size", "2", "--cached-copies", "0", "--teacher-steps", "2"]
    assert cli.main(["distill", "run", *options, "--device", "cpu"]) == 0
    folder = "run/heads/mean_velocity"
    assert f"spherear sample --run {folder}" in capsys.readouterr().out
    assert heads_beside("run") == {folder: "mean_velocity"}
    assert heads_folder("digits-gaussian").as_posix() == "runs/digits-gaussian/heads"
    assert Pipeline.from_pretrained(folder).sample([3]).shape == (1, 3, 16, 16)
    assert cli.main(["distill", folder, *options]) == 2
    assert "expected a velocity, flat or geodesic" in capsys.readouterr().err
    assert cli.main(["distill", "run", *options, "--steps", "3"]) == 2
    assert f"{folder}/ar holds another run (recipe.steps: expected 1, got 3)" in capsys.readouterr().err


def test_what_nothing_was_trained_on_needs_data():
    pipeline = Pipeline(VAE(replace(TINY_VAE, image_size=8)), SphereAR(replace(TINY_AR, tokens=4)))
    with pytest.raises(ValueError, match="data is empty, and mine does not say what it was trained on; expected a da"):
        data_of("mine", pipeline)
    assert data_of("shapes-power_spherical", pipeline) == "shapes"
