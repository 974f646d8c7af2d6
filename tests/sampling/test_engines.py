"""Every way of running a decode gives the tokens of the plain reference; what they keep never shows."""

import copy
import gc
import math
import shutil
import weakref
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, SphereAR, decode, seeded_noise
from spherear.sampling import packed as packing
from spherear.sampling.engines import ENGINES, Packed, engine_named
from spherear.sampling.head_sampling import Modulations
from spherear.sampling.packed import HalfLinear, PackedLinear, can_halve, swap_linears
from spherear.sampling.reference import reference_decode
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, as_users_run, randomise
from tests.sampling.replayed import Replayed

LABELS, SEEDS = torch.tensor([3, 7, 0]), [5, 6, 7]
QUICK = SamplingSettings(guidance_scale=2.0, steps=4)


def on_sphere(z):
    return project(z, 2.0)


def tokens(ar, engine, settings=QUICK, labels=LABELS, seeds=SEEDS):
    steps = decode(ar, labels, settings, seeded_noise(seeds), on_sphere, engine=engine)
    return torch.stack([step.token for step in steps], dim=1)


@pytest.fixture
def all_weights_packed(monkeypatch):
    """Also those of tiny models."""
    monkeypatch.setattr(packing, "MIN_NUMBERS", 1)


@pytest.mark.parametrize("name", ["eager", "numpy", "packed"])
@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, guidance_scale=1.0)], ids=["guided", "unguided"])
def test_an_engine_draws_the_references_tokens(tiny_ar, all_weights_packed, name, settings):
    engine = engine_named(name)
    found = tokens(tiny_ar, engine, settings)
    if settings.guidance_scale != 1.0:
        assert_close(found, reference_decode(tiny_ar, LABELS, settings, seeded_noise(SEEDS), 2.0), atol=2e-4, rtol=0)
    assert_close(found, tokens(tiny_ar, engine_named("eager"), settings), atol=2e-4, rtol=0)
    assert_close(tokens(tiny_ar, engine, settings), found, atol=0, rtol=0)  # the state of before, lent again
    other = tokens(tiny_ar, engine, replace(settings, guidance_scale=3.0))
    assert_close(
        other, tokens(tiny_ar, engine_named("eager"), replace(settings, guidance_scale=3.0)), atol=2e-3, rtol=0
    )


needs_halves = pytest.mark.skipif(not can_halve(), reason="no kernels for float16 weights")


def rounded(ar):
    """A copy of the model whose large weights are rounded to float16."""
    twin = copy.deepcopy(ar)
    for part in (twin.layers, twin.head.res_blocks, twin.head.ada_ln_blocks):
        for linear in (child for child in part.modules() if isinstance(child, torch.nn.Linear)):
            linear.weight.data = linear.weight.data.half().float()
    return twin


@needs_halves
def test_half_draws_what_the_model_with_rounded_weights_draws(tiny_ar, all_weights_packed):
    """And goes on doing so when weights change, in place or unseen."""
    engine = engine_named("half")
    for change in (*list(CHANGES.values())[:4], lambda weight: None):
        found, exact = tokens(tiny_ar, engine), tokens(tiny_ar, engine_named("eager"))
        assert_close(found, tokens(rounded(tiny_ar), engine_named("eager")), atol=2e-4, rtol=0)
        assert 0 < (found - exact).abs().mean() < 0.01
        with torch.no_grad():
            change(tiny_ar.get_submodule("layers.1.attention.wqkv").weight)


@needs_halves
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (2, 1, 24), (3, 5, 24)])
def test_a_half_layer_is_the_product_with_the_rounded_weight(bias, shape):
    linear, x = torch.nn.Linear(24, 7, bias=bias), torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ linear.weight.detach().half().double().T + (linear.bias.detach() if bias else 0.0)
    for given in (x, torch.cat((x, x), dim=-1)[..., :24]):  # and not contiguous
        with torch.no_grad():
            assert_close(HalfLinear(linear)(given).double(), expected, atol=1e-5, rtol=0)
    if bias:  # shared, so that a change of it is seen
        assert HalfLinear(linear).bias is linear.bias


@needs_halves
@pytest.mark.parametrize("bad", [7e4, -7e4, math.inf, math.nan])
def test_weights_that_float16_cannot_hold_are_refused(tiny_ar, all_weights_packed, bad):
    tiny_ar.layers[0].attention.wo.weight.data[1, 2] = bad
    with pytest.raises(ValueError, match=r"the largest weight is (70000|inf|nan); expected at most 65504"):
        tokens(tiny_ar, engine_named("half"))
    with pytest.raises(ValueError, match=r"the AR model is torch.bfloat16; expected torch.float32"):
        decode(tiny_ar.bfloat16(), LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=engine_named("half"))


@pytest.mark.parametrize("name", ["eager", "packed"])
def test_bfloat16_keeps_state_and_velocity_in_float32(tiny_ar, all_weights_packed, name):
    ar = tiny_ar.bfloat16()
    settings = replace(QUICK, schedule="constant")
    if name == "packed" and not packing.can_pack_bfloat16():
        with pytest.raises(ValueError, match="this processor has no bfloat16 kernels"):
            decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine_named(name))
        return
    steps = decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine_named(name))
    first = next(steps)
    assert first.raw.dtype == first.token.dtype == torch.float32
    exact = next(decode(tiny_ar.float(), LABELS, settings, seeded_noise(SEEDS), on_sphere))
    assert (first.raw - exact.raw).norm() / exact.raw.norm() < 0.05
    assert (first.raw.bfloat16().float() != first.raw).any()


@pytest.mark.parametrize("rows", [1, 6, 2000])
@pytest.mark.parametrize("steps", [3, 500])
def test_what_is_computed_ahead_is_bounded_and_the_same(tiny_ar, rows, steps):
    head = tiny_ar.double().head
    times = torch.linspace(0, 1, steps, dtype=torch.float64)
    moments, condition = head.embed_time(times), torch.randn(rows, 32, dtype=torch.float64)
    ahead = Modulations(head, moments, condition)
    for index in (0, 1, steps // 2, steps - 1):
        found = ahead.at(index)
        expected = head.modulate(moments[index] + condition)
        assert_close(list(found), expected, atol=1e-12, rtol=0)
        assert len(ahead.modulations) * rows <= max(rows, Modulations.ROWS)


def weights_of(engine):
    """What an engine keeps, by model."""
    return {ar: values for ar, values in engine.kept.of_model.items() if values}


@pytest.fixture(params=["packed", "replayed"])
def keeping(request, all_weights_packed):
    """An engine that keeps something between decodes."""
    return Replayed() if request.param == "replayed" else engine_named("packed")


def test_decodes_can_be_interleaved_and_left(tiny_ar, keeping):
    expected = tokens(tiny_ar, engine_named("eager"))
    first = decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=keeping)
    some = [step.token for step in islice(first, 5)]
    assert_close(tokens(tiny_ar, keeping), expected, atol=2e-4, rtol=0)  # in the middle of the other
    some += [step.token for step in first]
    assert_close(torch.stack(some, dim=1), expected, atol=2e-4, rtol=0)
    left = decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=keeping)
    next(left)
    left.close()
    assert_close(tokens(tiny_ar, keeping), expected, atol=2e-4, rtol=0)


def test_nan_ends_with_its_decode(tiny_ar, keeping):
    expected = tokens(tiny_ar, engine_named("eager"))
    broken = list(decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), lambda z: z * math.nan, engine=keeping))
    assert broken[-1].raw.isnan().all()
    assert_close(tokens(tiny_ar, keeping), expected, atol=2e-4, rtol=0)


CHANGES = {
    "in place": lambda weight: weight.mul_(1.1),
    "one number": lambda weight: weight.view(-1)[3].add_(0.5),
    "data": lambda weight: weight.data.mul_(1.1),
    "one number of data": lambda weight: weight.data.view(-1)[3].add_(0.5),
    "other data": lambda weight: setattr(weight, "data", weight.detach() * 1.1),
    "a sign": lambda weight: weight.data.neg_(),
    "rows swapped": lambda weight: weight.data.copy_(weight.data.flip(0)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["layers.1.attention.wqkv", "head.time_embed.mlp.0"])
def test_changed_weights_are_used(tiny_ar, keeping, change, name):
    before = tokens(tiny_ar, keeping)
    with torch.no_grad():
        CHANGES[change](tiny_ar.get_submodule(name).weight)
    found, expected = tokens(tiny_ar, keeping), tokens(tiny_ar, engine_named("eager"))
    assert (expected - before).abs().max() > 1e-3
    assert_close(found, expected, atol=2e-3, rtol=0)


def test_a_replaced_or_moved_model_is_used(tiny_ar, keeping):
    for move in (
        lambda ar: setattr(ar.head, "final_linear", randomise(torch.nn.Linear(32, 4), seed=5)),
        lambda ar: ar.load_state_dict(randomise(SphereAR(TINY_AR), seed=6).state_dict()),
        lambda ar: ar.load_state_dict(randomise(SphereAR(TINY_AR), seed=7).state_dict(), assign=True),
        lambda ar: ar.double().float(),
    ):
        tokens(tiny_ar, keeping)
        move(tiny_ar)
        assert_close(tokens(tiny_ar, keeping), tokens(tiny_ar, engine_named("eager")), atol=2e-3, rtol=0)


def test_what_is_kept_ends_with_its_model(keeping):
    keeping.idle = True
    for seed in range(3):
        ar = randomise(SphereAR(TINY_AR), seed=seed)
        tokens(ar, keeping)
        assert len(weights_of(keeping)) == 1
        gone = weakref.ref(ar)
        del ar
        gc.collect()
        assert gone() is None
    assert weights_of(keeping) == {}


def test_one_packed_copy_serves_all_settings(tiny_ar, all_weights_packed):
    engine, made = Packed(), []
    engine.swap = lambda linear: made.append(linear) or PackedLinear(linear)
    for settings in (QUICK, replace(QUICK, steps=3), replace(QUICK, temperature=0.5), replace(QUICK, solver="heun")):
        tokens(tiny_ar, engine, settings)
        tokens(tiny_ar, engine, settings, labels=LABELS[:2], seeds=SEEDS[:2])
    layers = 4 * TINY_AR.layers + 2 * TINY_AR.head_depth + TINY_AR.head_groups
    assert len(made) == layers


@pytest.mark.slow
def test_four_settings_take_the_memory_of_one():
    """Peak memory of a process, with weights that are large beside everything else."""
    peaks = [int(as_users_run(MEMORY.format(settings=settings)).split()[-1]) for settings in (FOUR[:1], FOUR)]
    assert peaks[1] < 1.05 * peaks[0]


FOUR = [{"temperature": 1.0}, {"temperature": 0.9}, {"temperature": 0.8}, {"steps": 3, "temperature": 0.7}]
MEMORY = """
import resource, torch
from itertools import islice
from spherear import SamplingSettings, SphereAR, decode, preset, seeded_noise
from spherear.sampling.engines import engine_named
ar, engine = SphereAR(preset("imagenet256-B").ar).eval(), engine_named("packed")
for options in {settings}:
    settings = SamplingSettings(**{{"solver": "euler", "steps": 2, **options}})
    list(islice(decode(ar, torch.tensor([1]), settings, seeded_noise([0]), lambda z: z, engine=engine), 1))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_inference_mode_around_a_decode_changes_nothing(tiny_ar, keeping):
    expected = tokens(tiny_ar, engine_named("eager"))
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            found = tokens(tiny_ar, keeping)
        assert_close(found, expected, atol=2e-4, rtol=0)
        assert not next(decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere)).token.is_inference()


def test_what_cannot_be_decoded_is_refused_when_it_is_called(tiny_ar, tiny_vae, as_users_do):
    """Not when the first token is taken."""
    with pytest.raises(ValueError, match="label 12 is out of range"):
        decode(tiny_ar, torch.tensor([12]), QUICK, seeded_noise([0]), on_sphere)
    with pytest.raises(ValueError, match="null_labels have shape"):
        decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, null_labels=LABELS[:2])
    with pytest.raises(ValueError, match="expected cuda for CUDA graphs"):
        decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=engine_named("cuda_graphs"))
    with pytest.raises(ValueError, match="every is 0"):
        Pipeline(tiny_vae, tiny_ar).stream([1], every=0)
    with pytest.raises(ValueError, match="label 12"):
        Pipeline(tiny_vae, tiny_ar).stream([12])


def test_a_packed_copy_shares_what_is_not_packed(tiny_ar, all_weights_packed):
    twin = swap_linears(tiny_ar).ar
    assert isinstance(twin.layers[0].attention.wqkv, PackedLinear)
    assert isinstance(twin.head.res_blocks[0].w1, PackedLinear)
    assert twin.cls_embedding.weight is tiny_ar.cls_embedding.weight
    assert twin.head.final_linear.weight is tiny_ar.head.final_linear.weight
    assert isinstance(tiny_ar.layers[0].attention.wqkv, torch.nn.Linear)


def test_small_weights_stay_as_they_are(tiny_ar):
    assert not any(isinstance(part, PackedLinear) for part in swap_linears(tiny_ar).ar.modules())


def test_what_an_engine_cannot_run_is_said(tiny_ar, as_users_do):
    with pytest.raises(
        ValueError, match=r"engine is 'warp'; expected one of 'compiled', .*'eager', 'half', 'numpy', 'packed'"
    ):
        engine_named("warp")
    with pytest.raises(ValueError, match="the AR model is on cpu; expected cuda for CUDA graphs"):
        tokens(tiny_ar, engine_named("cuda_graphs"))
    with pytest.raises(ValueError, match=r"the AR model is torch.float64; expected one of .* for packed weights"):
        tokens(tiny_ar.double(), engine_named("packed"))
    assert sorted(ENGINES) == ["compiled", "compiled_cuda_graphs", "cuda_graphs", "eager", "half", "numpy", "packed"]


COMPILED = """
import gc, torch, weakref
from torch.testing import assert_close
from tests.conftest import TINY_AR, randomise
from tests.sampling.test_engines import LABELS, QUICK, SEEDS, replace, tokens
from spherear import SphereAR
from spherear.sampling.engines import Compiled, engine_named
ar, engine = randomise(SphereAR(TINY_AR), seed=1), Compiled(BACKEND)
for settings in (QUICK, replace(QUICK, guidance_scale=2.5)):
    for batch in BATCHES:
        labels, seeds = torch.arange(batch), list(range(batch))
        expected = tokens(ar, engine_named("eager"), settings, labels, seeds)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(tokens(ar, engine, settings, labels, seeds), expected, atol=2e-3, rtol=0)
        assert_close(tokens(ar, engine, settings, labels, seeds), expected, atol=2e-3, rtol=0)
        with torch.no_grad():
            ar.norm.weight.mul_(1.01)
gone = weakref.ref(ar)
del ar
gc.collect()
assert gone() is None
print("equal")
"""


def compiled(backend, batches):
    return COMPILED.replace("BACKEND", backend).replace("BATCHES", batches)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_draws_what_eager_draws(tmp_path):
    assert "equal" in as_users_run(compiled("'inductor'", "[3]"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
def test_compiled_takes_any_number_of_batch_sizes():
    """More than the compiler's limit of eight, without the time of its code generation."""
    assert "equal" in as_users_run(compiled("'eager'", "range(1, 11)"))


@pytest.mark.slow
def test_a_missing_compiler_is_said(tmp_path):
    script = compiled("'inductor'", "[3]")
    out = as_users_run(script, fails=True, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX="no-such-compiler")
    assert "RuntimeError: torch.compile failed (" in out
    assert "the engine 'eager' needs no compiler" in out
