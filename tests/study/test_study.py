"""Studies: what is compared, jobs that fail alone, and folders that go on where they stopped."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise, product

import psutil
import pytest
import torch
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.models.files import read_json
from spherear.sphere.bottlenecks import BOTTLENECKS
from spherear.sphere.families import FAMILIES
from spherear.study import cell
from spherear.study.cell import (
    CELL_FILE,
    cell_folder,
    loss_slope,
    measure_cell,
    measure_point,
    run_cell,
    sampling_seed,
    sizes_of,
)
from spherear.study.design import GRIDS, Grid, Point, Variant
from spherear.study.records import read_records, select, shipped_records, write_records
from spherear.study.reference import Reference
from spherear.study.runner import (
    RESULTS_FILE,
    Job,
    gather,
    open_study,
    restore,
    run_jobs,
    run_study,
    waiting_cells,
    within_budget,
)
from tests.conftest import ended, until

TINY = Grid(
    "tiny", "digits", ("S-04", "VQ-16"), seeds=(3,), vae_steps=2, ar_steps=2, images=40, solver_steps=2,
    scales=(1.0, 3.0), constant_scales=(2.0,), ablation_scales=(3.0,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("S-04", Variant("S-04", "power_spherical", kl_weight=0.004)),
        ("vMF-16", Variant("vMF-16", "vmf", kl_weight=0.016)),
        ("F-05", Variant("F-05", "fixed_variance", noise_scale=0.5)),
        ("VQ-64", Variant("VQ-64", "vq", codes=64)),
        ("S-04@geodesic", Variant("S-04@geodesic", "power_spherical", kl_weight=0.004, head="geodesic")),
    ],
)
def test_variants_are_named_as_in_the_paper(name, expected):
    assert Variant.named(name) == expected


@pytest.mark.parametrize("name", ["S", "S-", "S-x", "Q-04", "S-00", "S-04@twice", "S-04@", "S-04@categorical"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match=r"expected (one of|a name like S-04)"):
        Variant.named(name)


def test_a_grid_varies_the_head():
    """A variant names the head, its model has it, and what the head cannot honour is refused before anything begins."""
    grid = replace(TINY, variants=("S-04", "S-04@geodesic", "N-04@mean_velocity"), solver="euler")
    assert [sizes_of(grid, Variant.named(name)).ar.head for name in grid.variants] == [
        "auto", "geodesic", "mean_velocity",
    ]  # fmt: skip
    assert Grid.from_dict(grid.to_dict()) == grid
    with pytest.raises(ValueError, match="solver is 'euler_maruyama'; expected one of euler, heun"):
        replace(grid, solver="euler_maruyama", variants=("S-04@geodesic",))
    with pytest.raises(ValueError, match="head is 'geodesic' and the tokens of gaussian have no fixed length"):
        sizes_of(grid, Variant.named("G-04@geodesic"))


@pytest.mark.slow
def test_a_grid_sets_the_size_of_batches(tmp_path):
    """Of both trainings and in the records; a cell of other batches is not taken for one of the grid."""
    grid = replace(TINY, variants=("S-04",), batch_size=8, scales=(2.0,), constant_scales=(), ablation_scales=())
    cell, row = cell_folder(tmp_path / "a", "S-04", 3), Variant.named("S-04")
    records = measure_cell(grid, row, 3, run_cell(grid, row, 3, cell, "cpu"), "test", cell)
    assert [read_json(cell / part / "run.json")["recipe"]["batch_size"] for part in ("vae", "ar")] == [8, 8]
    assert {record.batch_size for record in records} == {8}
    assert restore(replace(grid, batch_size=16), tmp_path / "b", records) == []
    assert restore(grid, tmp_path / "b", records) == [("S-04", 3)]
    with pytest.raises(ValueError, match="batch_size is -1; expected 1 or more, or 0"):
        replace(grid, batch_size=-1)


@pytest.mark.slow
def test_records_name_the_head(tmp_path):
    grid = replace(TINY, variants=("S-04", "S-04@geodesic"), solver="euler", scales=(2.0,), constant_scales=())
    for variant in grid.variants:
        cell = cell_folder(tmp_path, variant, 3)
        row = Variant.named(variant)
        records = measure_cell(grid, row, 3, run_cell(grid, row, 3, cell, "cpu"), "test", cell)
        write_records(cell / CELL_FILE, records)
        assert {record.head for record in read_records(cell / CELL_FILE)} == {row.head}
    assert {record.head for record in shipped_records("full")} == {"auto"}


@pytest.mark.slow
def test_a_head_is_distilled_from_the_cell_of_its_velocity(tmp_path):
    """Beside a cell that is there, and where the grid lacks it; the transformer is the teacher's, bit for bit."""
    variants = ("S-04@mean_velocity", "S-04", "N-04@geodesic_mean")
    grid = replace(
        TINY, variants=variants, scales=(2.0,), constant_scales=(), ablation_scales=(), methods=("euler-1",),
        distill_steps=2,
    )  # fmt: skip
    open_study(grid, tmp_path, "test")
    ended = list(run_study(grid, tmp_path, 2, 1))
    assert ended[0].job.name == "S-04 seed 3"
    assert [e.status for e in ended] == [0, 0, 0], [e.last_line for e in ended]
    frechet = select(read_records(tmp_path / RESULTS_FILE), metric="frechet")
    assert sorted((r.variant, r.solver, r.steps) for r in frechet) == [
        ("N-04@geodesic_mean", "euler", 1), ("S-04", "", 0), ("S-04", "euler", 1), ("S-04@mean_velocity", "euler", 1),
    ]  # fmt: skip
    for student, teacher in (("S-04@mean_velocity", "S-04"), ("N-04@geodesic_mean", "N-04@geodesic")):
        own, other = (Pipeline.from_pretrained(cell_folder(tmp_path, name, 3)).ar for name in (student, teacher))
        weights = other.state_dict()
        body = {name: value for name, value in own.state_dict().items() if not name.startswith("head.")}
        assert all(torch.equal(value, weights[name]) for name, value in body.items())
        head = {name: value for name, value in own.state_dict().items() if name in weights and name not in body}
        assert not all(torch.equal(value, weights[name]) for name, value in head.items())


def test_every_family_has_a_letter_and_the_full_grid_has_every_family():
    assert sorted(FAMILIES) == sorted(BOTTLENECKS)
    assert (
        len({row.letter for row in FAMILIES.values()}) == len({row.color for row in FAMILIES.values()}) == len(FAMILIES)
    )
    full = [Variant.named(name) for name in GRIDS["full"].variants]
    assert {variant.family for variant in full} == set(BOTTLENECKS)
    for family in ("power_spherical", "gaussian", "normalized_gaussian", "fixed_variance"):
        assert len({v for v in full if v.family == family}) == 3
    assert len(GRIDS["full"].seeds) >= 3


def test_cells_are_balanced_and_points_are_all_there():
    assert TINY.cells == [("S-04", 3), ("VQ-16", 3)]
    two = replace(TINY, seeds=(0, 1))
    assert two.cells == [(v, s) for s, v in product((0, 1), TINY.variants)]
    plain = [Point(1.0), Point(3.0), Point(2.0, "constant")]
    assert TINY.points(has_projection=False) == plain
    sides = {(p.project_ar, p.project_decoder) for p in TINY.points(has_projection=True)[3:]}
    assert sides == {(False, True), (True, False), (False, False)}


def test_every_cell_gets_the_same_backbone():
    preset_ar = sizes_of(TINY, Variant.named("S-04")).ar
    for name in GRIDS["full"].variants:
        row = sizes_of(GRIDS["full"], Variant.named(name))
        assert replace(row.ar, codes=0) == preset_ar
    assert sizes_of(TINY, Variant.named("F-05")).vae.noise_scale == 0.5
    assert sizes_of(TINY, Variant.named("VQ-16")).ar.codes == 16
    narrow = sizes_of(replace(TINY, latent_dim=2), Variant.named("S-04"))
    assert (narrow.vae.latent_dim, narrow.ar.latent_dim) == (2, 2)
    assert replace(narrow.ar, latent_dim=preset_ar.latent_dim) == preset_ar
    with pytest.raises(ValueError, match="latent_dim is -1; expected 1 or more"):
        replace(TINY, latent_dim=-1)


def test_grids_survive_json_and_scale():
    for grid in GRIDS.values():
        assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    half = GRIDS["full"].scaled(0.5)
    assert (half.vae_steps, half.ar_steps, half.images) == (300, 500, 250)
    assert half.scaled(1e-9).vae_steps == 20
    with pytest.raises(ValueError, match="seeds is empty"):
        replace(TINY, seeds=())


def job(tmp_path, name, code):
    return Job(name, (sys.executable, "-c", code), tmp_path / name / "log.txt")


def test_jobs_fail_alone_and_say_how(tmp_path):
    codes = {"a": "print('fine')", "b": "raise ValueError('no luck')", "c": "print('fine too')"}
    ended = {e.job.name: e for e in run_jobs([job(tmp_path, *row) for row in codes.items()], at_once=2)}
    assert {name: e.status for name, e in ended.items()} == {"a": 0, "b": 1, "c": 0}
    assert ended["b"].last_line == "ValueError: no luck"
    assert ended["c"].last_line == "fine too"


def test_leaving_the_loop_ends_the_rest(tmp_path):
    jobs = [job(tmp_path, "quick", ""), job(tmp_path, "slow", "import time; print('up', flush=True); time.sleep(600)")]
    ended = run_jobs(jobs, at_once=2)
    assert next(ended).job.name == "quick"
    began = time.monotonic()
    ended.close()  # waits for the killed process: had it not been killed, ten minutes
    assert time.monotonic() - began < 60


PARENT = """
import sys, pathlib
from spherear.study.runner import Job, run_jobs
code = "import os, time; from spherear.processes import exit_with_parent; exit_with_parent(); "
code += "print(os.getpid(), flush=True); time.sleep(600)"
list(run_jobs([Job("child", (sys.executable, "-c", code), pathlib.Path(sys.argv[1]))], at_once=1))
"""


@pytest.mark.slow
def test_no_job_outlives_a_killed_parent(tmp_path):
    log = tmp_path / "log.txt"
    parent = subprocess.Popen((sys.executable, "-c", PARENT, str(log)))
    child = psutil.Process(int(until(lambda: log.exists() and log.read_text().strip())))
    parent.kill()
    parent.wait()
    assert until(lambda: ended(child))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A tiny study, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    grid = open_study(TINY, folder, "spherear study tiny")
    ended = list(run_study(grid, folder, at_once=2, threads=1))
    assert [e.status for e in ended] == [0, 0], [e.last_line for e in ended]
    return folder


@pytest.mark.slow
def test_records_are_complete_and_tidy(study):
    records = read_records(study / RESULTS_FILE)
    keys = [
        (r.variant, r.seed, r.guidance_scale, r.schedule, r.project_ar, r.project_decoder, r.metric) for r in records
    ]
    assert len(set(keys)) == len(keys)
    frechet = select(records, metric="frechet")
    assert len(select(frechet, variant="S-04")) == 6
    assert len(select(frechet, variant="VQ-16")) == 3  # no projection to leave out
    assert {(r.vae_steps, r.ar_steps, r.images) for r in frechet} == {(2, 2, 40)}
    assert {r.command for r in records} == {"spherear study tiny"}
    assert all(r.hardware for r in records)
    assert len(select(records, metric="radial_share")) == 1  # of the family with a velocity
    assert {r.value for r in select(records, metric="latent_scale", variant="S-04")} == {1.0}


@pytest.mark.slow
def test_a_record_is_what_python_measures(study):
    pipeline = Pipeline.from_pretrained(cell_folder(study, "S-04", 3))
    labels = torch.arange(40) % 10
    images = pipeline.sample(labels, SamplingSettings(guidance_scale=3.0, steps=2), sampling_seed("S-04", 3))
    real = Reference.of(TINY.preset)
    expected = real.judge(images, labels)
    at = {"variant": "S-04", "guidance_scale": 3.0, "project_ar": True, "project_decoder": True}
    records = {r.metric: r.value for r in select(read_records(study / RESULTS_FILE), **at)}
    assert_close(records["frechet"], expected.frechet, rtol=1e-4, atol=0)
    assert records["accuracy"] == expected.accuracy


def test_cells_have_sampling_seeds_of_their_own():
    cells = [(variant, seed) for grid in GRIDS.values() for variant, seed in grid.cells]
    starts = sorted({sampling_seed(*cell) for cell in cells})
    assert len(starts) == len(set(cells))
    assert min(b - a for a, b in pairwise(starts)) >= 1_000_000  # a cell has fewer images
    assert starts[0] >= 0
    assert starts[-1] + 1_000_000 < 2**63


def test_images_drawn_in_chunks_are_those_of_one_batch(monkeypatch):
    pipeline = Pipeline.from_pretrained("digits-power_spherical")
    grid = replace(TINY, images=30, solver_steps=2)
    real, latents = Reference.of("digits"), torch.randn(50, 16, 3)
    whole = measure_point(grid, pipeline, Point(2.0), real, latents, 7)
    monkeypatch.setattr(cell, "CHUNK", 11)
    for name, value in measure_point(grid, pipeline, Point(2.0), real, latents, 7).items():
        assert value == pytest.approx(whole[name], rel=1e-3, abs=1e-3), name
    other = measure_point(grid, pipeline, Point(2.0), real, latents, 8)
    assert other["frechet"] != pytest.approx(whole["frechet"], rel=1e-3)


def test_slope_of_a_loss(tmp_path):
    lines = "".join(f'{{"step": {i}, "loss": {2.0 if i < 80 else 1.0 if i < 90 else 0.9}}}\n' for i in range(100))
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert loss_slope(tmp_path) == pytest.approx(-0.1)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert loss_slope(tmp_path) == 0.0


@pytest.mark.slow
def test_what_is_done_is_skipped(study):
    before = (study / RESULTS_FILE).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in study.glob(f"*/*/{CELL_FILE}")}
    assert waiting_cells(TINY, study) == []
    assert list(run_study(TINY, study, at_once=1, threads=1)) == []
    assert (study / RESULTS_FILE).read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_a_broken_cell_loses_itself_only(tmp_path):
    grid = open_study(TINY, tmp_path, "spherear study tiny")
    broken = cell_folder(tmp_path, "S-04", 3) / "vae" / "run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"kind": "another run"}')
    ended = {e.job.name: e for e in run_study(grid, tmp_path, at_once=2, threads=1)}
    assert ended["VQ-16 seed 3"].status == 0
    assert ended["S-04 seed 3"].status != 0
    assert "holds another run" in ended["S-04 seed 3"].last_line
    assert {r.variant for r in read_records(tmp_path / RESULTS_FILE)} == {"VQ-16"}
    broken.unlink()
    assert [e.status for e in run_study(grid, tmp_path, at_once=2, threads=1)] == [0]
    assert {r.variant for r in read_records(tmp_path / RESULTS_FILE)} == {"S-04", "VQ-16"}


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(study, tmp_path):
    """A study killed in the middle of a cell ends with the records of one that never was."""
    code = (
        "import sys, pathlib; from tests.study.test_study import TINY; from spherear.study.runner import *; "
        "folder = pathlib.Path(sys.argv[1]); grid = open_study(TINY, folder, 'spherear study tiny'); "
        "list(run_study(grid, folder, 1, 1))"
    )
    running = subprocess.Popen((sys.executable, "-c", code, str(tmp_path)))
    until(lambda: (cell_folder(tmp_path, "S-04", 3) / "vae" / "run.json").exists(), seconds=120)
    jobs = psutil.Process(running.pid).children()
    running.kill()
    running.wait()
    assert waiting_cells(TINY, tmp_path) == TINY.cells
    assert len(jobs) == 1
    until(lambda: all(map(ended, jobs)))
    assert [e.status for e in run_study(TINY, tmp_path, at_once=2, threads=1)] == [0, 0]
    whole, again = (read_records(folder / RESULTS_FILE) for folder in (study, tmp_path))
    assert [replace(r, value=0.0) for r in whole] == [replace(r, value=0.0) for r in again]
    assert_close([r.value for r in whole], [r.value for r in again], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_budget_scales_training_down():
    smaller = within_budget(GRIDS["full"], minutes=1.0, at_once=1, threads=1)
    assert smaller.ar_steps < GRIDS["full"].ar_steps
    assert smaller.ar_steps / GRIDS["full"].ar_steps == pytest.approx(
        max(20, smaller.vae_steps / GRIDS["full"].vae_steps * 1000) / 1000, abs=0.03
    )
    assert within_budget(TINY, minutes=1e6, at_once=1, threads=1) == TINY
    with pytest.raises(ValueError, match=r"budget is 0.0 minutes; expected more than 0"):
        within_budget(TINY, minutes=0.0, at_once=1, threads=1)


def test_cells_are_taken_from_records_that_were_measured_as_the_grid_says(tmp_path):
    grid, records = GRIDS["doubled"], shipped_records("doubled")
    for other in (replace(grid, images=1000), replace(grid, ar_steps=6001), replace(grid, scales=(1.0, 2.0))):
        assert restore(other, tmp_path, records) == []
    assert restore(grid, tmp_path, select(records, variant="G-02")) == [("G-02", 6)]
    assert waiting_cells(grid, tmp_path) == [("S-02", 6), ("N-02", 6), ("F-02", 6)]
    assert restore(grid, tmp_path, records) == [("S-02", 6), ("N-02", 6), ("F-02", 6)]
    assert sorted(map(repr, gather(grid, tmp_path))) == sorted(map(repr, records))


def test_another_studys_folder_is_refused(tmp_path):
    open_study(TINY, tmp_path, "spherear study tiny")
    with pytest.raises(ValueError, match="holds the study 'tiny'; expected 'quick'"):
        open_study(GRIDS["quick"], tmp_path, "spherear study quick")
    assert read_json(tmp_path / "grid.json")["command"] == "spherear study tiny"
    scaled = open_study(TINY.scaled(0.5), tmp_path, "again")
    assert scaled == TINY  # a study that has begun goes on as it began


def test_a_file_that_is_no_records(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"variant": 3}\n')
    with pytest.raises(ValueError, match=r"results.jsonl, line 1 is not a record"):
        read_records(path)
    write_records(path, [])
    assert read_records(path) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"3", "line 2 is not a record: it holds a int; expected a JSON object"),
        (b"\xff\xfe", "line 2 is not a record: it is not JSON"),
        (b"[" * 99_000, "line 2 is not a record: it is not JSON"),
        (b'{"values": 3}', "line 2 is not a record: values are 3; expected a JSON object"),
        (b'{"values": {"a": 1.0}, "seed": 0}', r"line 2 is not a record: Record lacks \['command', 'commit', 'data'"),
        (b"{}", "line 2 is not a record: 'values'"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, message):
    write_records(tmp_path / "results.jsonl", shipped_records()[:1])
    with (tmp_path / "results.jsonl").open("ab") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / "results.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"grid": 3}', "holds the grid 3; expected a JSON object"),
        ('{"command": "x"}', "holds the grid None; expected a JSON object"),
        ('{"grid": {"name": "quick"}}', r"Grid lacks \['ar_steps', 'images', 'preset', 'scales'"),
        ("{", "grid.json is not JSON"),
    ],
)
def test_a_grid_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_study(GRIDS["quick"], tmp_path, "x")
    assert (tmp_path / "grid.json").read_text() == text


def test_records_of_one_setting_share_a_line(tmp_path, study):
    records, path = read_records(study / RESULTS_FILE), tmp_path / "results.jsonl"
    write_records(path, records)
    assert read_records(path) == records
    settings = {str({**r.to_dict(), "metric": "", "value": 0}) for r in records}
    assert len(path.read_text().splitlines()) == len(settings) < len(records) / 4
    with pytest.raises(ValueError, match=r'frechet of .*"variant": "S-04".*"seed": 3.* is given twice'):
        write_records(path, [*records, *select(records, variant="S-04", metric="frechet")[:1]])
    assert read_records(path) == records
