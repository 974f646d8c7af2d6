"""The engine `numpy` draws torch's tokens, whatever head and solver; several models in one are each their own."""

import copy
from dataclasses import replace

import pytest
import torch
from threadpoolctl import ThreadpoolController
from torch import nn
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, SphereAR, decode, seeded_noise
from spherear.models.heads.table import HEADS
from spherear.models.heads.velocity import VelocityHead
from spherear.models.vae import VAE
from spherear.sampling.decode import trace
from spherear.sampling.engines import Engine, engine_named
from spherear.sampling.small.engine import InNumpy, is_known, one_thread
from spherear.sampling.small.together import steps_together
from spherear.sampling.solvers import SOLVERS
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, TINY_VAE, randomise

LABELS, SEEDS = torch.tensor([3, 7, 0]), [5, 6, 7]


def model(head="velocity", seed=1, **sizes):
    codes = 8 if HEADS[head].discrete else 0
    return randomise(SphereAR(replace(TINY_AR, head=head, codes=codes, **sizes)), seed=seed).double()


def settings_of(head="velocity", scale=3.0, **changes):
    return SamplingSettings(**{"guidance_scale": scale, "solver": HEADS[head].solver, "steps": 3} | changes)


def drawn(ar, settings, engine=None):
    noise = seeded_noise(SEEDS)
    return trace(decode(ar, LABELS, settings, noise, lambda z: project(z, 2.0), engine=engine or InNumpy()))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_draws_the_same_tokens(head, scale):
    ar, settings = model(head), settings_of(head, scale)
    found, expected = drawn(ar, settings), drawn(ar, settings, Engine())
    assert_close(found.raw, expected.raw, atol=1e-9, rtol=1e-9)
    assert_close(found.tokens, expected.tokens, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_the_same_tokens(solver):
    ar = model(head_depth=4, head_groups=2)
    for schedule in ("linear", "constant"):
        settings = settings_of(solver=solver, schedule=schedule, temperature=0.9)
        assert_close(drawn(ar, settings).raw, drawn(ar, settings, Engine()).raw, atol=1e-9, rtol=1e-9)


def test_a_scale_that_varies_in_time_and_many_times_at_once(as_users_do):
    ar = model()

    def rising(scale, t):
        return 1 + scale * t

    settings = settings_of(solver="heun", schedule=rising, steps=200)  # more times than one piece of modulations
    assert_close(drawn(ar, settings).raw, drawn(ar, settings, Engine()).raw, atol=1e-9, rtol=1e-9)


def test_in_float32_it_is_as_exact_as_torch():
    ar, settings = model(), settings_of()
    exact = drawn(ar, settings, Engine()).raw
    single = copy.deepcopy(ar).float()
    ours, theirs = (drawn(single, settings, engine).raw for engine in (InNumpy(), Engine()))
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 1e-3
    assert (ours - exact).norm() < 3 * (theirs - exact).norm()


def test_changed_weights_are_seen_at_once():
    ar, engine = model(), InNumpy()
    before = drawn(ar, settings_of(), engine).raw
    with torch.no_grad():
        ar.head.final_linear.weight.mul_(1.5)
    after = drawn(ar, settings_of(), engine).raw
    assert not torch.allclose(before, after)
    assert_close(after, drawn(ar, settings_of(), Engine()).raw, atol=1e-9, rtol=1e-9)


def test_a_head_of_ones_own_draws_in_torch():
    class Halved(VelocityHead):
        def modulated_velocity(self, x, modulation):
            return 0.5 * super().modulated_velocity(x, modulation)

    ar = model()
    ar.head.__class__ = Halved
    hooked = model()
    hooked.head.register_forward_hook(lambda *_: None)
    assert not is_known(ar.head)
    assert not is_known(hooked.head)
    assert is_known(model().head)
    assert_close(drawn(ar, settings_of()).raw, drawn(ar, settings_of(), Engine()).raw, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(drawn(ar, settings_of()).raw, drawn(model(), settings_of()).raw)


def test_layers_of_ones_own_are_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    ar = model()
    ar.layers[1].attention.wo = Scaled(32, 32, bias=False).double()
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wo is a Scaled; expected its own layers, or engine"):
        drawn(ar, settings_of())
    hooked = model()
    hooked.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layers\.0 is a Block; expected its own layers"):
        drawn(hooked, settings_of())
    with pytest.raises(ValueError, match=r"the AR model is torch\.bfloat16; expected one of"):
        drawn(model().bfloat16(), settings_of())


def pipelines(head="velocity", engine="numpy", families=("power_spherical", "gaussian", "normalized_gaussian")):
    made = []
    for number, family in enumerate(families):
        vae = randomise(VAE(replace(TINY_VAE, bottleneck=family)), seed=number)
        made.append(Pipeline(vae, model(head, seed=10 + number), engine_named(engine)))
    return made


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("head", [name for name in HEADS if not HEADS[name].discrete])
def test_models_drawn_in_one_are_each_their_own(head, scale):
    """Also tokens that each branch of guidance draws for itself, as the first does with the linear schedule."""
    families = ("power_spherical", "normalized_gaussian") if HEADS[head].curved else ("power_spherical", "gaussian")
    plain, made = pipelines(head, "eager", families), pipelines(head, "numpy", families)
    settings = settings_of(head, scale)
    steps = list(steps_together(made, LABELS, [settings] * 2, 5))
    assert [step[0].index for step in steps] == list(range(16))
    for number, pipeline in enumerate(plain):
        expected = trace(pipeline.steps(LABELS, settings, 5))
        found = trace(step[number] for step in steps)
        assert_close(found.raw, expected.raw, atol=1e-9, rtol=1e-9)
        assert_close(found.tokens, expected.tokens, atol=1e-9, rtol=1e-9)
        assert torch.equal(found.scales, expected.scales)


def test_only_models_of_one_shape_are_one_decode(monkeypatch):
    batches = []
    session = InNumpy.session

    def counted(self, ar, rows, cache=None):
        batches.append((len(self.models), rows))
        return session(self, ar, rows, cache)

    monkeypatch.setattr(InNumpy, "session", counted)
    three, settings = pipelines(), settings_of()
    list(steps_together(three, LABELS, [settings] * 3, 0))
    assert batches == [(3, 18)]
    other = Pipeline(three[1].vae, model(layers=1), InNumpy())
    for pair, own in (([three[0], other], [settings] * 2), (three[:2], [settings, replace(settings, steps=2)])):
        batches.clear()
        expected = [trace(p.steps(LABELS, s, 0)).raw for p, s in zip(pair, own, strict=True)]
        found = list(steps_together(pair, LABELS, own, 0))
        assert {models for models, _ in batches} == {0}
        for number, raw in enumerate(expected):
            assert torch.equal(trace(step[number] for step in found).raw, raw)
    with pytest.raises(ValueError, match="zip"):
        list(steps_together([three[0], Pipeline(_larger(), model(tokens=64), InNumpy())], LABELS, [settings] * 2, 0))


def _larger():
    return randomise(VAE(replace(TINY_VAE, image_size=32)))


def test_products_take_one_thread_while_anyone_is_inside():
    def threads():
        return {pool["num_threads"] for pool in ThreadpoolController().select(user_api="blas").info()}

    with ThreadpoolController().select(user_api="blas").limit(limits=2):
        before = threads()
        first, second = one_thread(), one_thread()
        with first:
            with second:
                assert threads() == {1}
            assert threads() == {1}
        assert threads() == before
        steps = decode(model(), LABELS, settings_of(), seeded_noise(SEEDS), lambda z: z, engine=InNumpy())
        next(steps)
        assert threads() == before  # also while a decode waits
        with pytest.raises(ValueError, match="within"), one_thread():
            raise ValueError("within")
        assert threads() == before
