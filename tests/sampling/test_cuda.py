"""CUDA graphs on a CUDA device: what they replay, and what may change around them. `test_engines` has their logic."""

import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from spherear import SamplingSettings, SphereAR, decode, seeded_noise
from spherear.sampling.cuda_graphs import CudaGraphs, GraphRecorder, Recordings
from spherear.sampling.engines import Engine, engine_named
from tests.conftest import TINY_AR, as_users_run, randomise
from tests.sampling.test_engines import LABELS, QUICK, SEEDS, on_sphere, tokens

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TWO_DEVICES = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


@pytest.fixture
def ar(tiny_ar):
    return tiny_ar.to("cuda")


@pytest.fixture
def engine():
    return CudaGraphs()


def assert_same(ar, engine, settings=QUICK, **options):
    expected = tokens(ar, engine_named("eager"), settings, **options)
    assert_close(tokens(ar, engine, settings, **options), expected, atol=2e-3, rtol=0)


def replays(inner, dtype):
    """Graphs of the engine `inner` draw what the plain engine draws."""
    ar, engine = randomise(SphereAR(TINY_AR), seed=1).to("cuda", dtype), CudaGraphs(inner())
    for settings in (QUICK, replace(QUICK, guidance_scale=1.0), replace(QUICK, guidance_scale=3.0)):
        for _ in range(2):  # captured, then replayed
            first = next(decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine))
            expected = next(decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere))
            assert_close(first.raw, expected.raw, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)
        if dtype == torch.float32:
            assert_same(ar, engine, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_replay_what_eager_draws(dtype):
    replays(Engine, dtype)


COMPILED = """
from spherear.sampling.engines import Compiled
from tests.sampling.test_cuda import replays, torch
replays(Compiled, DTYPE)
print("equal")
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_replay_what_is_compiled(dtype):
    assert "equal" in as_users_run(COMPILED.replace("DTYPE", str(dtype)))


def test_a_function_is_captured_once_a_shape():
    captured, x = Recordings(GraphRecorder(torch.device("cuda"))), torch.arange(4.0, device="cuda")
    for scale in (1.0, 2.0, 3.0):
        for power in (2, 3):
            found = captured(power, lambda x, power=power: x**power, scale * x)
            assert_close(found, (scale * x) ** power)
    assert len(captured.recordings) == 2
    kept = captured(2, lambda x: x**2, x)
    captured(2, lambda x: x**2, x + 1)
    assert_close(kept, x**2)


def test_tables_and_weights_may_move_under_a_captured_graph(ar, engine):
    for move in (
        lambda: ar.to("cuda"),
        lambda: ar.double().float(),
        lambda: ar.cpu().to("cuda"),
        lambda: ar.load_state_dict(randomise(SphereAR(TINY_AR), seed=6).to("cuda").state_dict(), assign=True),
        lambda: ar.norm.weight.data.mul_(1.1),
        lambda: ar.head.time_embed.mlp[0].weight.data.mul_(1.1),
    ):
        assert_same(ar, engine)
        move()
        torch.cuda.empty_cache()  # what a stale graph reads is no longer there
        assert_same(ar, engine)


def test_nan_and_early_exits_end_with_their_decode(ar, engine):
    list(decode(ar, LABELS, QUICK, seeded_noise(SEEDS), lambda z: z * math.nan, engine=engine))
    list(islice(decode(ar, LABELS, QUICK, seeded_noise(SEEDS), on_sphere, engine=engine), 3))
    assert_same(ar, engine)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        tokens(ar, engine)
    assert_same(ar, engine)


def test_threads_capture_while_others_work(ar, engine):
    """A capture is that of its thread: allocations and other decodes meanwhile do not end it."""

    def draw(number):
        torch.ones(100 + number, 100, device="cuda").sum().item()
        labels, seeds = torch.arange(number % 3 + 1), list(range(number % 3 + 1))
        return tokens(ar, engine, replace(QUICK, steps=2 + number % 4), labels, seeds), labels, seeds

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, range(12)))
    for number, (drawn, labels, seeds) in enumerate(found):
        expected = tokens(ar, engine_named("eager"), replace(QUICK, steps=2 + number % 4), labels, seeds)
        assert_close(drawn, expected, atol=2e-3, rtol=0)


@TWO_DEVICES
def test_a_model_on_another_device_than_the_current_one(tiny_ar, engine):
    ar = tiny_ar.to("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same(ar, engine)
    ar.to("cuda:0")
    assert_same(ar, engine)


def test_what_is_kept_is_bounded_and_ends_with_the_model(engine):
    ar = randomise(SphereAR(TINY_AR)).to("cuda")
    for steps in range(1, 40):
        next(decode(ar, LABELS, replace(QUICK, steps=steps), seeded_noise(SEEDS), on_sphere, engine=engine))
    (kept,) = engine.kept.of_model.values()
    (session,) = kept.values()
    assert len(session.recordings.recordings) <= session.recordings.limit
    gone = weakref.ref(ar)
    del ar, kept, session
    gc.collect()
    assert gone() is None
    assert len(engine.kept.of_model) == 0


def test_graphs_of_a_session_share_their_memory(ar, engine):
    """Eight graphs reserve less than twice what one does."""

    def reserved(count):
        torch.cuda.empty_cache()
        before, engine = torch.cuda.memory_reserved(), CudaGraphs()
        for steps in range(2, 2 + count):
            settings = SamplingSettings(guidance_scale=2.0, steps=steps)
            next(decode(ar, LABELS, settings, seeded_noise(SEEDS), on_sphere, engine=engine))
        return torch.cuda.memory_reserved() - before

    reserved(1)  # libraries are set up
    assert reserved(8) < 2 * max(reserved(1), 2**21)
