"""The choice of engine, dtype and device: a table of hardware, and pipelines that are placed."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings, SphereAR, preset
from spherear.models.sources import Outline, source_of
from spherear.sampling.engines import ENGINES, Engine, Packed, engine_named
from spherear.sampling.placement import AS_WRITTEN, SMALL, Hardware, Placement, Plan, choose, describe, memory
from spherear.sampling.placement import placement_of as placement
from tests.conftest import TINY_AR, randomise

PLAIN = Hardware()
OLD = Hardware(packs=True)
AVX512 = Hardware(packs=True, packs_bfloat16=True)
HALF = Hardware(packs=True, packs_bfloat16=True, halves=True)
AMX = Hardware(packs=True, packs_bfloat16=True, fast_bfloat16=True)
GPU = replace(AMX, cuda=True, cuda_bfloat16=True)
SETTINGS = SamplingSettings(guidance_scale=2.0, solver="euler", steps=2)
LARGE = 200_000_000


@pytest.mark.parametrize(
    ("hardware", "parameters", "wish", "expected"),
    [
        (AMX, SMALL, Placement(), "cpu float32 eager"),
        (PLAIN, SMALL, Placement(), "cpu float32 eager"),
        (AMX, SMALL + 1, Placement(), "cpu bfloat16 packed"),
        (AVX512, LARGE, Placement(), "cpu float32 packed"),  # bfloat16 would be emulated
        (OLD, LARGE, Placement(), "cpu float32 packed"),
        (HALF, LARGE, Placement(), "cpu float32 half"),
        (HALF, SMALL, Placement(), "cpu float32 eager"),
        (HALF, LARGE, Placement(dtype="float32"), "cpu float32 packed"),  # in which half would not keep the weights
        (HALF, LARGE, Placement(dtype="bfloat16"), "cpu bfloat16 packed"),
        (HALF, 1, Placement(engine="half"), "cpu float32 half"),
        (replace(AMX, halves=True), LARGE, Placement(), "cpu bfloat16 packed"),
        (replace(AMX, halves=True), LARGE, Placement(engine="half"), "cpu float32 half"),
        (replace(GPU, halves=True), LARGE, Placement(engine="half"), "cpu float32 half"),
        (PLAIN, LARGE, Placement(), "cpu float32 eager"),  # a torch without oneDNN
        (GPU, 1, Placement(), "cuda:0 bfloat16 cuda_graphs"),
        (replace(GPU, cuda_index=3), LARGE, Placement(), "cuda:3 bfloat16 cuda_graphs"),
        (replace(GPU, cuda_bfloat16=False), LARGE, Placement(), "cuda:0 float32 cuda_graphs"),
        (replace(AMX, mps=True), LARGE, Placement(), "mps float32 eager"),
        (replace(AMX, mps=True), SMALL, Placement(), "cpu float32 eager"),
        (GPU, LARGE, Placement(device="cpu"), "cpu bfloat16 packed"),
        (GPU, LARGE, Placement(engine="packed"), "cpu bfloat16 packed"),
        (GPU, LARGE, Placement(engine="eager"), "cuda:0 bfloat16 eager"),
        (GPU, LARGE, Placement(dtype="float32"), "cuda:0 float32 cuda_graphs"),
        (AMX, LARGE, Placement(dtype="float32"), "cpu float32 packed"),
        (OLD, LARGE, Placement(dtype="bfloat16"), "cpu bfloat16 eager"),
        (OLD, 1, Placement(engine="packed"), "cpu float32 packed"),
        (GPU, LARGE, AS_WRITTEN, "cpu float32 eager"),
    ],
)
def test_the_choice_follows_the_table(hardware, parameters, wish, expected):
    assert choose(parameters, wish, hardware=hardware) == Placement(*expected.split())


def test_a_small_model_stays_as_it_is_stored():
    assert choose(1, stored="bfloat16", hardware=AMX) == Placement("cpu", "bfloat16", "eager")


@pytest.mark.parametrize(
    ("hardware", "wish", "message"),
    [
        (AMX, Placement(device="cuda"), "device is 'cuda'; expected cpu: CUDA is not available"),
        (AMX, Placement(device="mps"), "device is 'mps'; expected cpu: MPS is not available"),
        (AMX, Placement(device="abacus"), "device is 'abacus'; expected auto, cpu, cuda, cuda:N or mps"),
        (AMX, Placement(device="meta"), "device is 'meta'; expected auto, cpu"),
        (AMX, Placement(engine="cuda_graphs"), "device is 'cuda'; expected cpu: CUDA is not available"),
        (AMX, Placement(device="cpu", engine="cuda_graphs"), "engine is 'cuda_graphs' on cpu; expected cuda"),
        (GPU, Placement(device="cuda", engine="packed"), "engine is 'packed' on cuda; expected cpu"),
        (PLAIN, Placement(engine="packed"), "expected 'eager': this torch has no oneDNN"),
        (OLD, Placement(engine="half"), "expected 'eager': this torch has no FBGEMM"),
        (HALF, Placement(engine="half", dtype="bfloat16"), "dtype is 'bfloat16' with engine 'half'; expected float32"),
        (replace(GPU, halves=True), Placement(device="cuda", engine="half"), "engine is 'half' on cuda; expected cpu"),
        (OLD, Placement(engine="packed", dtype="bfloat16"), "dtype is 'bfloat16' with engine 'packed'"),
        (AMX, Placement(engine="numpy", dtype="bfloat16"), "dtype is 'bfloat16' with engine 'numpy'; expected float32"),
        (GPU, Placement(device="cuda", engine="numpy"), "engine is 'numpy' on cuda; expected cpu"),
        (AMX, Placement(engine="warp"), "engine is 'warp'; expected one of"),
        (AMX, Placement(dtype="float16"), "dtype is 'float16'; expected one of"),
    ],
)
def test_what_cannot_be_run_is_refused(hardware, wish, message, as_users_do):
    with pytest.raises(ValueError, match=message):
        choose(LARGE, wish, hardware=hardware)


def test_every_engine_knows_its_name():
    for name in ENGINES:
        assert engine_named(name).name == name

    class Mine(Engine):
        pass

    assert Mine().name == "Mine"


def test_a_pipeline_is_placed_and_says_how(tiny_vae, tiny_ar):
    pipeline = Pipeline(tiny_vae, tiny_ar)
    assert pipeline.placement == Placement("cpu", "float32", "eager")
    expected = pipeline.sample([1, 2], SETTINGS)
    assert pipeline.place(Placement(engine="packed")) is pipeline
    assert isinstance(pipeline.engine, Packed)
    assert pipeline.placement.sentence == "engine packed, float32, on cpu"
    assert_close(pipeline.sample([1, 2], SETTINGS), expected, rtol=1e-4, atol=1e-4)
    pipeline.place(Placement("cpu", "bfloat16", "eager"))
    assert {p.dtype for p in pipeline.ar.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.float32}
    assert pipeline.place().placement == Placement("cpu", "bfloat16", "eager")  # small: as it is


def test_a_pipeline_that_cannot_be_placed_stays_as_it_is(tiny_vae, tiny_ar):
    pipeline = Pipeline(tiny_vae, tiny_ar)
    with pytest.raises(ValueError, match="engine is 'cuda_graphs' on cpu"):
        pipeline.place(Placement("cpu", "bfloat16", "cuda_graphs"))
    assert pipeline.placement == AS_WRITTEN


def test_options_of_from_pretrained(as_users_do):
    name = "digits-power_spherical"
    there = {"device": "cpu", "engine": "eager"}
    assert Pipeline.from_pretrained(name, dtype=torch.bfloat16, **there).placement.dtype == "bfloat16"
    assert Pipeline.from_pretrained(name, device=torch.device("cpu"), engine="packed").placement.engine == "packed"
    for options, message in (({"engine": "warp"}, "engine is 'warp'"), ({"dtype": torch.int8}, "dtype is 'int8'")):
        with pytest.raises(ValueError, match=message):
            Pipeline.from_pretrained(name, **options)


def test_the_options_are_refused_before_weights_are_read(tmp_path, tiny_vae, tiny_ar):
    Pipeline(tiny_vae, tiny_ar).save_pretrained(tmp_path)
    (tmp_path / "ar" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="engine is 'warp'"):
        Pipeline.from_pretrained(tmp_path, engine="warp")


def test_the_sentence_says_source_size_memory_and_choice():
    sentence = Plan.of(source_of("digits-power_spherical"), AS_WRITTEN).sentence
    assert sentence == (
        "digits-power_spherical: AR model of 0.7 million parameters, 4 MiB of weights; engine eager, float32, on cpu"
    )
    row = preset("imagenet256-B")
    said = describe("B", Outline(row.vae, row.ar), Placement("cpu", "float32", "packed"))
    assert said == "B: AR model of 204.5 million parameters, 1.8 GiB of weights; engine packed, float32, on cpu"
    said = describe("B", Outline(row.vae, row.ar), Placement("cpu", "float32", "half"))
    assert said == "B: AR model of 204.5 million parameters, 1.4 GiB of weights; engine half, float32, on cpu"


@pytest.mark.parametrize("engine", ["eager", "packed"])
def test_memory_is_that_of_the_tensors(engine, tiny_vae):
    """Most numbers are in large layers, of which there is then a packed copy."""
    config = replace(TINY_AR, width=256, layers=6, heads=4)
    pipeline = Pipeline(tiny_vae, randomise(SphereAR(config))).place(Placement("cpu", "float32", engine))
    pipeline.sample([1], SETTINGS)
    held = {id(p): p for model in (pipeline.vae, pipeline.ar) for p in model.parameters()}
    if engine == "packed":
        copy = pipeline.engine.kept.get(pipeline.ar, "copy", lambda: pytest.fail("nothing was packed"))
        held |= {id(x): x for x in (getattr(m, "weight", None) for m in copy.ar.modules()) if x is not None}
    taken = sum(x.numel() * 4 for x in held.values())
    assert memory(Outline(tiny_vae.config, config), pipeline.placement) == pytest.approx(taken, rel=0.1)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_is_used():
    pipeline = Pipeline.from_pretrained("digits-power_spherical")
    assert pipeline.placement == Placement("cuda:0", "bfloat16", "cuda_graphs")
    exact = Pipeline.from_pretrained("digits-power_spherical", **AS_WRITTEN.to_dict())
    drawn, expected = (p.sample([3, 1], SETTINGS, seeds=0).cpu() for p in (pipeline, exact))
    assert (drawn - expected).abs().mean() < 0.1
    assert placement("cuda", engine="eager") == Placement("cuda", "auto", "eager")
