"""Drawing with every head: alike in every engine, against the head's own equations, and what is refused."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, SphereAR
from spherear.evaluation.defaults import Drawing
from spherear.models.heads.table import HEADS
from spherear.sampling.decode import decode, trace
from spherear.sampling.engines import engine_named
from spherear.sampling.noise import seeded_noise
from spherear.sampling.reference import reference_decode
from spherear.sampling.settings import check_settings
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, as_users_run, randomise
from tests.sampling.replayed import Replayed

LABELS = torch.tensor([1, 2, 5])
SEEDS = [4, 5, 6]
OTHERS = ["geodesic", "mean_velocity", "geodesic_mean"]


def model(head, **changes):
    return randomise(SphereAR(replace(TINY_AR, head=head, **changes)), seed=1)


def settings_of(head, scale=3.0, steps=3):
    return SamplingSettings(scale, solver=HEADS[head].solver, steps=steps)


def drawn(ar, settings, engine="eager"):
    engine = engine_named(engine) if isinstance(engine, str) else engine
    noise = seeded_noise(SEEDS)
    return trace(decode(ar, LABELS, settings, noise, lambda z: project(z, 2.0), engine=engine))


def velocity_of(ar, condition, x, t):
    return ar.head(x, torch.full((3,), t).double(), condition)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("head", OTHERS)
def test_tokens_are_those_of_the_equations(head, scale):
    """Written straight down: whole sequences through the transformer, one branch if the head takes the scale."""
    ar = model(head).double()
    settings, space, kind = settings_of(head, scale), ar.head.space, HEADS[head]
    tokens = torch.zeros(3, 16, 4, dtype=torch.float64)
    found = drawn(ar, settings)
    for index in range(16):
        noise = seeded_noise(SEEDS)(index, (1, 3, 4)).double()
        s = settings.scale_at(index, 16)
        past = found.tokens  # later tokens do not count
        condition = ar(past, LABELS)[:, index]
        if kind.takes_scale:
            x = space.start(noise[0])
            for t, end in pairwise(settings.times()):
                t, end = torch.full((3,), t).double(), torch.full((3,), end).double()
                x = space.move(x, (end - t)[:, None] * ar.head(x, t, condition, end, torch.full((3,), s).double()))
        elif index == 0 or scale == 1.0:
            velocity = partial(velocity_of, ar, condition)
            x = settings.method(velocity, space.start(noise), settings.times(), space)
        else:
            continue  # the first token of the null branch is its own; see below
        tokens[:, index] = x
        assert_close(found.raw[:, index], x, atol=1e-6, rtol=1e-5)
    assert_close(found.tokens.norm(dim=-1), torch.full((3, 16), 2.0, dtype=torch.float64))


def test_guidance_of_a_geodesic_head_combines_tangent_vectors():
    """With a constant schedule both branches share every token."""
    ar = model("geodesic").double()
    settings = replace(settings_of("geodesic"), schedule="constant")
    found = drawn(ar, settings)
    for index in range(16):
        condition, null = (ar(found.tokens, labels)[:, index] for labels in (LABELS, torch.full_like(LABELS, 10)))

        def velocity(x, t, condition=condition, null=null):
            v, away = (ar.head(x, torch.full((3,), t).double(), c) for c in (condition, null))
            return away + 3 * (v - away)

        noise = project(seeded_noise(SEEDS)(index, (1, 3, 4)).double(), 2.0)
        x = settings.method(velocity, noise, settings.times(), ar.head.space)
        assert_close(found.raw[:, index], x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["geodesic", "geodesic_mean"])
def test_a_draw_on_the_sphere_needs_no_projection(head):
    """With it and without it the tokens are the same, to rounding that later tokens amplify."""
    ar, settings = model(head).double(), settings_of(head, 8.0, 5)
    found = drawn(ar, settings)
    assert_close(found.raw.norm(dim=-1), torch.full((3, 16), 2.0, dtype=torch.float64), atol=1e-12, rtol=0)
    settings = settings_of(head, 1.0)
    assert_close(drawn(ar, replace(settings, project=False)).raw, drawn(ar, settings).raw, atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", OTHERS)
@pytest.mark.parametrize("engine", ["packed", "half", Replayed()])
def test_engines_draw_the_same_tokens(head, engine):
    """Packed and half swap large layers, so the head is wide; graphs are replayed by a stand-in without a GPU."""
    sizes = {"head_width": 384} if isinstance(engine, str) else {}
    ar = model(head, **sizes)
    plain, other = drawn(ar, settings_of(head)), drawn(ar, settings_of(head), engine)
    tolerance = 3e-2 if engine == "half" else 2e-4
    assert_close(other.tokens, plain.tokens, atol=tolerance, rtol=tolerance)
    again = drawn(ar, settings_of(head, 2.0), engine)  # the scale is an input, not a constant
    assert not torch.equal(again.tokens, other.tokens)
    assert_close(again.tokens, drawn(ar, settings_of(head, 2.0)).tokens, atol=tolerance, rtol=tolerance)


COMPILED = """
import torch
from torch.testing import assert_close
from tests.sampling.test_heads import OTHERS, drawn, model, settings_of
from spherear.sampling.engines import Compiled
for head in OTHERS:
    ar, engine = model(head), Compiled("aot_eager")
    for scale in (2.0, 3.0):
        settings = settings_of(head, scale)
        assert_close(drawn(ar, settings, engine).tokens, drawn(ar, settings).tokens, atol=2e-3, rtol=0)
print("equal")
"""


@pytest.mark.slow
def test_compiled_heads_draw_the_same_tokens():
    assert "equal" in as_users_run(COMPILED)


@pytest.mark.parametrize(
    ("head", "changes", "message"),
    [
        ("geodesic", {"solver": "euler_maruyama"}, "solver is 'euler_maruyama'; expected one of euler, heun, midpoint"),
        ("geodesic", {"solver": "adams_bashforth_3"}, "solver is 'adams_bashforth_3'; expected one of euler, heun"),
        ("geodesic", {"temperature": 0.9}, "temperature is 0.9; expected 1: noise on the sphere has one length"),
        ("mean_velocity", {"solver": "heun"}, "solver is 'heun'; expected 'euler': a head of average velocities"),
        ("geodesic_mean", {"temperature": 0.0}, "temperature is 0.0; expected 1"),
        ("mean_velocity", {"schedule": lambda scale, t: scale}, "schedule depends on t, and the head takes one scale"),
        ("mean_velocity", {"guidance_scale": 9.0, "schedule": "constant"}, "is .9.0.; expected 1 to 8, which the head"),
        ("mean_velocity", {"guidance_scale": 0.5}, "expected 1 to 8, which the head has learnt"),
    ],
)
def test_what_a_head_cannot_honour_is_refused(head, changes, message, as_users_do):
    settings = replace(settings_of(head), **changes)
    with pytest.raises(ValueError, match=message):
        decode(model(head), LABELS, settings, seeded_noise(SEEDS), lambda z: z)


def test_null_labels_need_a_branch(tiny_vae):
    pipeline = Pipeline(tiny_vae, model("mean_velocity"))
    with pytest.raises(ValueError, match="null_labels are given; expected none: the head has guidance inside"):
        pipeline.sample([1], settings_of("mean_velocity"), null_labels=[2])


@pytest.mark.parametrize("head", OTHERS)
def test_the_plain_reference_is_for_published_heads(head):
    with pytest.raises(ValueError, match=f"head is '{head}'; expected a velocity in flat space, as published"):
        reference_decode(model(head), LABELS, SamplingSettings(), seeded_noise(SEEDS), 2.0)


@pytest.mark.parametrize(
    ("head", "expected"),
    [("velocity", ("euler_maruyama", 100)), ("geodesic", ("heun", 50)), ("mean_velocity", ("euler", 1))],
)
def test_defaults_are_what_the_head_takes(head, expected, tiny_vae):
    config = replace(TINY_AR, head=head)
    found = Drawing().of(config)
    assert (found.solver, found.steps) == expected
    assert Drawing(steps=7, guidance_scale=3.0).of(config) == replace(found, steps=7, guidance_scale=3.0)
    check_settings(config.head_kind, SamplingSettings().fitting(config.head_kind))
    if head == "velocity":
        assert SamplingSettings().fitting(config.head_kind) == SamplingSettings()
    else:
        with pytest.raises(ValueError, match="expected"):
            Drawing(solver="euler_maruyama").of(config)
        assert torch.isfinite(Pipeline(tiny_vae, model(head)).sample([3])).all()


def test_guidance_of_a_preset_is_known_whatever_its_head():
    from spherear.models.presets import preset

    for head in ("auto", "velocity", "geodesic"):
        assert Drawing().of(replace(preset("shapes").ar, head=head)).guidance_scale == 4.5
