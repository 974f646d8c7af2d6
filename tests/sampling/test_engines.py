"""Every way of running a decode gives the tokens of the plain reference; states are kept and lent with care."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spherear import SamplingSettings, SphereAR, decode, seeded_noise
from spherear.sampling import packed as packing
from spherear.sampling.engines import ENGINES, CachingEngine, Captured, CudaGraphs, engine_named
from spherear.sampling.head_sampling import Modulations
from spherear.sampling.packed import PackedLinear, packed_copy
from spherear.sphere.geometry import project
from tests.conftest import TINY_AR, randomise
from tests.reference_decoder import reference_decode

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("name", ["eager", "packed"])
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


@pytest.mark.parametrize("name", ["eager", "packed"])
def test_bfloat16_keeps_state_and_velocity_in_float32(tiny_ar, all_weights_packed, name):
    ar = tiny_ar.bfloat16()
    settings = replace(QUICK, schedule="constant")
    steps = decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine_named(name))
    if name == "packed" and not packing.can_pack_bfloat16():
        with pytest.raises(ValueError, match="this processor has no bfloat16 kernels"):
            next(steps)
        return
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


def test_machines_are_lent_to_one_decode_at_a_time(tiny_ar):
    engine = CachingEngine()
    expected = tokens(tiny_ar, engine_named("eager"))
    first = decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=engine)
    some = [step.token for step in islice(first, 5)]
    assert_close(tokens(tiny_ar, engine), expected, atol=0, rtol=0)  # in the middle of the other
    some += [step.token for step in first]
    assert_close(torch.stack(some, dim=1), expected, atol=0, rtol=0)
    (states,) = engine.free.values()
    assert len(states) == 2
    left = decode(tiny_ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=engine)
    next(left)
    assert len(states) == 1
    left.close()
    assert len(states) == 2
    assert_close(tokens(tiny_ar, engine), expected, atol=0, rtol=0)


def test_machines_are_told_apart_by_what_they_depend_on(tiny_ar):
    engine = CachingEngine()
    for settings in (QUICK, replace(QUICK, guidance_scale=5.0), replace(QUICK, project=False)):
        tokens(tiny_ar, engine, settings)
    assert len(engine.free) == 1  # scales and projections are arguments
    tokens(tiny_ar, engine, replace(QUICK, steps=3))
    tokens(tiny_ar, engine, labels=LABELS[:2], seeds=SEEDS[:2])
    tokens(randomise(SphereAR(TINY_AR), seed=4), engine)
    assert len(engine.free) == 4


def test_a_packed_copy_shares_what_is_not_packed(tiny_ar, all_weights_packed):
    twin = packed_copy(tiny_ar, rows=6)
    assert isinstance(twin.layers[0].attention.wqkv, PackedLinear)
    assert isinstance(twin.head.res_blocks[0].w1, PackedLinear)
    assert twin.cls_embedding.weight is tiny_ar.cls_embedding.weight
    assert twin.head.final_linear.weight is tiny_ar.head.final_linear.weight
    assert isinstance(tiny_ar.layers[0].attention.wqkv, torch.nn.Linear)


def test_small_weights_stay_as_they_are(tiny_ar):
    assert not any(isinstance(part, PackedLinear) for part in packed_copy(tiny_ar, rows=6).modules())


def test_what_an_engine_cannot_run_is_said(tiny_ar, as_users_do):
    with pytest.raises(ValueError, match=r"engine is 'warp'; expected one of 'compiled', .*'eager', 'packed'"):
        engine_named("warp")
    with pytest.raises(ValueError, match="the AR model is on cpu; expected cuda for CUDA graphs"):
        tokens(tiny_ar, engine_named("cuda_graphs"))
    with pytest.raises(ValueError, match=r"the AR model is torch.float64; expected one of .* for packed weights"):
        tokens(tiny_ar.double(), engine_named("packed"))
    assert sorted(ENGINES) == ["compiled", "compiled_cuda_graphs", "cuda_graphs", "eager", "packed"]


COMPILED = """
import torch
from torch.testing import assert_close
from tests.conftest import TINY_AR, randomise
from tests.sampling.test_engines import LABELS, QUICK, SEEDS, replace, tokens
from spherear import SphereAR
from spherear.sampling.engines import engine_named
ar, engine = randomise(SphereAR(TINY_AR), seed=1), engine_named("compiled")
for settings in (QUICK, replace(QUICK, guidance_scale=2.5)):
    expected = tokens(ar, engine_named("eager"), settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(tokens(ar, engine, settings), expected, atol=2e-3, rtol=0)
    assert_close(tokens(ar, engine, settings), expected, atol=2e-3, rtol=0)
print("equal")
"""


def as_users_run(script, **environment):
    """In a process of its own: the tests' run-time checks and a compiler do not go together."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compiled_draws_what_eager_draws(tmp_path):
    assert "equal" in as_users_run(COMPILED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))


@pytest.mark.slow
def test_a_missing_compiler_is_said(tmp_path):
    out = as_users_run(COMPILED, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), CXX="no-such-compiler")
    assert "RuntimeError: torch.compile failed (" in out
    assert "the engine 'eager' needs no compiler" in out


@pytest.mark.cuda
@pytest.mark.parametrize("engine", [CudaGraphs, lambda: CudaGraphs(compiled=True)], ids=["written", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_replay_what_eager_draws(tiny_ar, engine, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    ar, engine = tiny_ar.to("cuda", dtype), engine()
    for settings in (QUICK, replace(QUICK, guidance_scale=1.0), replace(QUICK, guidance_scale=3.0)):
        for _ in range(2):  # captured, then replayed
            first = next(decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine))
            expected = next(decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere))
            assert_close(first.raw, expected.raw, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
        if dtype == torch.float32:
            assert_close(tokens(ar, engine, settings), tokens(ar, engine_named("eager"), settings), atol=2e-3, rtol=0)


@pytest.mark.cuda
def test_a_captured_function_is_captured_once_a_shape():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    captured = Captured(lambda x, power: x**power)
    x = torch.arange(4.0, device="cuda")
    for scale in (1.0, 2.0, 3.0):
        assert_close(captured(scale * x, 2), (scale * x) ** 2)
        assert_close(captured(scale * x, 3), (scale * x) ** 3)
    assert len(captured.graphs) == 2
    kept = captured(x, 2)
    captured(x + 1, 2)
    assert_close(kept, x**2)
