"""Benchmarks: what is counted is right, what is printed was measured, and what is kept can be read."""

import json
import sys
from itertools import product

import numpy as np
import pytest
import torch

from spherear import SamplingSettings, SphereAR, cli
from spherear.bench import MEASUREMENTS, command, decoding, floor, image, latency, sizes
from spherear.bench.command import KINDS, Request
from spherear.bench.decoding import bench_decode, fits, random_model
from spherear.bench.floor import copy_rate, floor_seconds, product_rate, works
from spherear.bench.growth import bench_memory, straight_line
from spherear.bench.latency import bench_latency
from spherear.bench.steps import step_times
from spherear.bench.timing import measure, summary
from spherear.models.presets import PRESETS, preset
from spherear.models.sources import Outline
from spherear.sampling.packed import can_pack_bfloat16
from spherear.sampling.placement import SMALL
from spherear.sampling.settings import NAMED_SETTINGS
from tests.conftest import TINY_AR

CPU = torch.device("cpu")


def test_a_summary_is_numpys():
    runs = [0.3, 0.1, 0.2, 0.9, 0.4]
    timing = summary(runs, 5.0, 1.0)
    assert (timing.low, timing.median, timing.high) == pytest.approx(np.quantile(runs, [0.25, 0.5, 0.75]))
    assert (timing.warm_up, timing.repeats) == (5.0, 5)
    assert summary([2.0], 0.0, 0.0).low == 2.0
    with pytest.raises(ValueError, match="repeats is 0; expected at least 1"):
        measure(lambda: None, CPU, 0)


def test_a_measurement_runs_once_to_warm_up():
    calls = []
    timing = measure(lambda: calls.append(1), CPU, 4)
    assert len(calls) == 5
    assert 0 <= timing.low <= timing.median <= timing.high


@pytest.mark.slow
def test_memory_does_not_grow_with_steps_and_the_cache_is_in_its_dtype():
    memory = bench_memory("digits", 8, torch.bfloat16, CPU, (20, 400), tokens=2)
    assert memory.float32_mib == 2 * memory.cache_mib > 0
    assert memory.cache_mib < memory.peak_mib[20] < 20 * memory.cache_mib
    assert memory.peak_mib[400] < memory.peak_mib[20] + 4  # MiB; the noise itself is 8 x 8 numbers a step


def test_the_cache_of_b_at_batch_256_takes_half_of_a_float32_one():
    with torch.device("meta"):
        ar = SphereAR(PRESETS["imagenet256-B"].ar)
        wide, narrow = ar.kv_cache(512).nbytes, ar.bfloat16().kv_cache(512).nbytes
    assert wide == 2 * narrow == 24 * 2 * 512 * (16 + 255) * 768 * 4


def test_a_straight_line_is_numpys():
    y = np.cumsum(np.random.default_rng(0).uniform(1, 1.2, 50))
    slope, r2 = straight_line(list(y))
    x = np.arange(1, 51)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_work_is_counted_from_the_weights():
    ar = SphereAR(TINY_AR)
    parts = works(TINY_AR, rows=6, evaluations=101, position=5)
    head = sum(p.numel() for p in ar.head.parameters())
    again = sum(p.numel() for p in ar.head.res_blocks.parameters()) + 4 * 32 + 32 + 32 * 4 + 4
    cached = 2 * 2 * 6 * (3 + 5) * 32  # keys and values, layers, rows, positions, width
    layers = sum(p.numel() for p in ar.layers.parameters())
    assert (parts["transformer"].weights, parts["transformer"].sweeps) == (layers + cached, 1)
    assert parts["head"].weights == again
    assert parts["head, once"].weights == head - again
    assert parts["head"].products == again * 6 * 101
    assert sum(part.weights for part in parts.values()) == layers + cached + head


def test_ceilings_and_floor_are_of_this_machine():
    assert 1e8 < copy_rate(2**20, torch.float32, CPU) < 1e14
    assert 1e8 < product_rate(torch.float32, CPU) < 1e16
    floors = [floor_seconds(TINY_AR, 6, n, 5, torch.float32, CPU) for n in (10, 1000)]
    assert 0 < floors[0] < floors[1]


@pytest.mark.parametrize("nbytes", [2**20, 2**24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_moves_its_bytes_once_in_and_once_out(monkeypatch, nbytes, dtype):
    """At half a second per copy: 2 nbytes per second, and the copied block is half of them."""
    copied = []
    monkeypatch.setattr(floor, "_median_seconds", lambda work, device: copied.append(work()) or 0.5)
    assert copy_rate(nbytes, dtype, CPU) == 2 * nbytes
    assert copied[0].nbytes == nbytes // 2


def test_a_product_is_counted_by_its_multiply_adds(monkeypatch):
    product_rate.cache_clear()
    square = []
    monkeypatch.setattr(floor, "_median_seconds", lambda work, device: square.append(work()) or 0.5)
    assert product_rate(torch.float64, CPU) == 2 * square[0].shape[0] * square[0].numel()
    assert square[0][0, 0] == square[0].shape[0]
    product_rate.cache_clear()


def test_a_floor_is_the_longer_of_reading_and_multiplying(monkeypatch):
    parts = works(TINY_AR, 6, 101, 5).values()
    for reading, multiplying in ((1e9, 1e15), (1e15, 1e9), (3e9, 2e9)):
        monkeypatch.setattr(floor, "copy_rate", lambda *_, rate=reading: rate)
        monkeypatch.setattr(floor, "product_rate", lambda *_, rate=multiplying: rate)
        expected = sum(max(p.weights * p.sweeps * 2 / reading, p.products / multiplying) for p in parts)
        assert floor_seconds(TINY_AR, 6, 101, 5, torch.bfloat16, CPU) == pytest.approx(expected, rel=1e-12)


def test_a_row_a_path():
    rows = list(bench_decode("digits3", 2, torch.float32, CPU, SamplingSettings(steps=3), 4, 2, compiled=False))
    assert [row.path for row in rows] == ["reference", "eager", "numpy", "packed"]
    assert rows[0].speedup == 1.0
    for row in rows:
        assert row.speedup == pytest.approx(rows[0].timing.median / row.timing.median)
        assert row.of_floor > 0
        assert row.first.median > 0
    alone = bench_decode("digits3", 2, torch.float32, CPU, SamplingSettings(steps=3), 4, 2, False, paths=("packed",))
    assert [row.path for row in alone] == ["reference", "packed"]
    with pytest.raises(ValueError, match="path is 'cuda_graphs'; expected"):
        KINDS["decode"][0](Request(("digits",), (4,), (), 1, 1, 1, False, CPU, ("cuda_graphs",)))
    with pytest.raises(ValueError, match="tokens is 17; expected 1 to 16"):
        bench_decode("digits3", 2, torch.float32, CPU, SamplingSettings(steps=3), 17, 2, compiled=False)


def test_all_paths_draw_the_same_tokens():
    ar = random_model(PRESETS["digits3"].ar, torch.float32, CPU)
    settings = SamplingSettings(guidance_scale=2.0, steps=3)
    drawn = {name: torch.stack(run(3)) for name, run in decoding.runs(ar, 2, settings, compiled=False)}
    for tokens in drawn.values():
        torch.testing.assert_close(tokens, drawn["reference"], atol=1e-3, rtol=0)


def test_what_does_not_fit_is_left_out(capsys, monkeypatch):
    assert fits(PRESETS["digits"].ar, 32, torch.float32, CPU)
    assert not fits(PRESETS["imagenet256-H"].ar, 10**6, torch.float32, CPU)
    monkeypatch.setattr(command, "fits", lambda *_: False)
    asked = Request(("digits",), (4,), ("bfloat16",), 1, 1, 1, False, CPU)
    assert KINDS["decode"][0](asked) == []
    assert "digits, batch 4, bfloat16: left out, it does not fit the memory" in capsys.readouterr().out


@pytest.mark.slow
def test_latency_has_a_row_for_all_settings_and_engines_of_one_model_and_two():
    rows = list(bench_latency("digits3", 2, CPU, 2.0, 1))
    settings = [*NAMED_SETTINGS, latency.ONE]
    assert [(r.models, r.settings, r.engine) for r in rows] == list(product((1, 2), settings, ("eager", "numpy")))
    assert [r.evaluations for r in rows[::2]] == 2 * [*(s.evaluations for s in NAMED_SETTINGS.values()), 1]
    assert rows[0].evaluations == 101
    assert all(row.first.median < row.stream.median for row in rows)
    for eager, numpy in zip(rows[::2], rows[1::2], strict=True):
        assert eager.speedup == 1.0
        assert numpy.speedup == pytest.approx(eager.grid.median / numpy.grid.median)
    with pytest.raises(ValueError, match=r"preset is 'shapes16'; expected one whose models of .* ship, not \[\]"):
        bench_latency("shapes16", 2, CPU, 2.0, 1)


def test_steps_are_timed_in_every_way():
    variants = {"encoding": (False, False, "float32"), "cached": (True, False, "float32")}
    rows = step_times("digits3", steps=3, batch_size=4, variants=variants)
    assert [row.variant for row in rows] == ["encoding", "cached"]
    assert rows[0].speedup == 1.0
    for row in rows:
        assert row.timing.repeats == 3
        assert row.speedup == pytest.approx(rows[0].timing.median / row.timing.median)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("decode", "ms per token"),
        ("latency", "first images, ms"),
        ("growth", "r2 of a line"),
        ("memory", "cache MiB in float32"),
        ("train", "x encoding at every step"),
        ("image", "whole image, s"),
        ("head", "head, ms per token"),
    ],
)
def test_a_table_and_a_file(kind, head, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latency, "NAMED_SETTINGS", {"fast": NAMED_SETTINGS["fast"]})
    monkeypatch.setattr(sys, "argv", ["spherear", "bench", kind])
    out = tmp_path / "bench.json"
    options = ["--presets", "digits3", "--batches", "1", "--tokens", "2", "--steps", "2", "--repeats", "1"]
    assert cli.main(["bench", kind, "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert head in printed
    assert f"torch: {torch.__version__}" in printed
    kept = json.loads(out.read_text())
    assert kept["bench"] == kind
    assert kept["command"] == f"spherear bench {kind}"
    assert kept["machine"]["cores"] >= 1
    assert len(kept["rows"]) >= 1
    if kind == "memory":
        (row,) = kept["rows"]
        assert row["float32_mib"] == row["cache_mib"] > 0
        assert list(row["peak_mib"]) == ["2"]
    if kind == "image":
        *images, memory = kept["rows"]
        assert [row["settings"] for row in images] == sorted(row["settings"] for row in images)
        assert {"eager", "packed"} <= {row["engine"] for row in images}
        assert not any(row["measured"] for row in images)
        assert memory["one"] > 0
        assert memory["four"] < 1.5 * memory["one"]
        assert "MiB with one setting" in printed
    if kind == "head":
        assert [(row["head"], row["evaluations"]) for row in kept["rows"]] == [
            ("velocity", 101), ("mean_velocity", 1), ("mean_velocity", 2), ("mean_velocity", 4)
        ]  # fmt: skip
        first, one, *_ = kept["rows"]
        assert first["speedup"] == first["head_speedup"] == 1.0
        assert one["head_speedup"] > 10  # a hundredth of the evaluations, and half of the rows
        assert all(0 < row["share"] < 1 for row in kept["rows"])
        assert all(row["drawing"]["median"] < row["total"]["median"] for row in kept["rows"])
    if kind == "growth":
        assert len(kept["rows"][0]["upto"]) == 16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batches", "0"], r"batches are (0,); expected at least 1 each"),
        (["--repeats", "-1"], "expected 0 or more"),
    ],
)
def test_requests_that_make_no_sense(args, message, capsys):
    assert cli.main(["bench", "decode", *args]) == 2
    assert message in capsys.readouterr().err


def test_packed_bfloat16_is_left_out_where_the_processor_lacks_it(tiny_ar, monkeypatch):
    monkeypatch.setattr(decoding, "can_pack_bfloat16", lambda: False)
    settings = SamplingSettings(steps=1)
    assert "packed" in [name for name, _ in decoding.runs(tiny_ar, 1, settings, False)]
    assert "packed" not in [name for name, _ in decoding.runs(tiny_ar.bfloat16(), 1, settings, False)]
    assert "numpy" not in [name for name, _ in decoding.runs(tiny_ar, 1, settings, False)]


def test_an_image_is_measured_whole_or_estimated():
    cases = image.cases_on(CPU)
    assert ("eager", torch.float32) == cases[0]
    assert (("packed", torch.bfloat16) in cases) == can_pack_bfloat16()
    assert image.cases_on(CPU, [torch.bfloat16])[0] == ("eager", torch.bfloat16)
    for tokens in (3, 16):
        rows = list(image.bench_image("digits3", "balanced", cases[:2], CPU, tokens, 2))
        assert [row.engine for row in rows] == [name for name, _ in cases[:2]]
        assert rows[0].speedup == 1.0
        for row in rows:
            assert (row.measured, row.timing.repeats) == (tokens == 16, 2 * tokens)
            if not row.measured:
                assert row.image == pytest.approx(16 * row.timing.median + row.pixels.median)
            assert row.image > row.pixels.median > 0


def test_every_measurement_has_a_function():
    assert tuple(KINDS) == MEASUREMENTS


@pytest.mark.parametrize(("option", "known"), [("--presets", "imagenet256-B"), ("--dtypes", "bfloat16")])
def test_an_unknown_word_gets_the_known_ones(option, known, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "decode", option, "cats"])
    assert stop.value.code == 2
    assert known in capsys.readouterr().err


def test_sizes_are_measured_in_pairs(monkeypatch, capsys):
    """The command behind `sampling.placement.SMALL`: its sizes lie on both sides of it, up to that of SphereAR-B."""
    parameters = [Outline(preset("digits").vae, sizes.config_of(width)).parameters()[1] for width in sizes.WIDTHS]
    assert parameters == sorted(parameters)
    assert parameters[0] < SMALL < parameters[-1]
    assert parameters[-1] == pytest.approx(204.5e6, rel=0.1)
    monkeypatch.setattr(sizes, "WIDTHS", {96: 4})
    monkeypatch.setattr(sizes, "REPEATS", 1)
    (row,) = sizes.measure_sizes()
    assert row.parameters == parameters[0]
    assert row.speedup == pytest.approx(row.eager / row.packed)
    sizes.main()
    assert capsys.readouterr().out.splitlines()[2].startswith("| 0.7 ")
