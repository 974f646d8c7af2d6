"""What ships: models that load offline by name, records that figures are drawn from, and how both were made."""

import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.figures.gallery import main as draw
from spherear.models.files import read_json
from spherear.models.pretrained import SHIPPED, shipped
from spherear.models.tensor_files import read_tensors
from spherear.sampling.pipeline import cached_pipeline
from spherear.study.cell import GRID_FILE, cell_folder, sampling_seed
from spherear.study.claims import best
from spherear.study.design import GRIDS, Grid, Point, Variant
from spherear.study.records import select, shipped_records
from spherear.study.reference import Reference
from spherear.study.release import LINES, SHIPPED_VARIANTS, Remeasured, against, measured_again, name_of, release
from spherear.study.runner import open_study, restore
from tests.test_house import README

NAMES = sorted(name_of(GRIDS[grid], variant) for grid, variants in SHIPPED_VARIANTS.items() for variant in variants)


def test_what_should_ship_does():
    assert shipped() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_models_come_with_config_and_log(name):
    for part in ("vae", "ar"):
        log = (SHIPPED / name / part / "model.log").read_text().splitlines()
        asked = re.fullmatch(r"command: spherear study (\w+)((?: --\w+(?: \w+)?)*)  # cell (\S+), seed (\d)", log[0])
        grid = GRIDS[asked[1]]
        assert name_of(grid, asked[3]) == name
        assert int(asked[4]) == grid.seeds[0]
        assert f'"step": {grid.vae_steps if part == "vae" else grid.ar_steps}, ' in log[-1]
        weights, _ = read_tensors(SHIPPED / name / part / "model.safetensors")
        assert {t.dtype for t in weights.values()} == {torch.float16}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("digits-")])
def test_models_draw_the_digits_asked_for(name):
    pipeline, labels = Pipeline.from_pretrained(name), torch.arange(100) % 10
    real = Reference.of("digits")
    images = pipeline.sample(labels, SamplingSettings(guidance_scale=2.0, steps=25))
    assert real.judge(images, labels).accuracy >= 0.9


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shapes-")])
def test_models_draw_the_shapes_asked_for(name):
    """Of ten classes, half of the images or more are recognised; real ones: over 99 %."""
    pipeline, labels = Pipeline.from_pretrained(name), torch.arange(100) % 10
    images = pipeline.sample(labels, GRIDS["report"].settings(Point(4.5)))
    assert Reference.of("shapes").judge(images, labels).accuracy >= 0.5


def test_records_are_those_of_the_full_grid():
    records, grid = shipped_records(), GRIDS["full"]
    assert {(r.variant, r.seed) for r in records} == set(grid.cells)
    assert {(r.vae_steps, r.ar_steps) for r in records} == {(grid.vae_steps, grid.ar_steps)}
    alone = {r.command for r in select(records, variant="F-02", seed=0)}  # measured again by a later version
    assert alone == {"spherear study full --recorded --jobs 2"}
    assert {r.command for r in records} - alone == {
        "spherear study full --device cuda --dtype float32 --engine cuda_graphs --jobs 15"
    }
    assert not any("dirty" in r.commit or "dirty" in r.trained for r in records)
    frechet = select(records, metric="frechet", variant="S-04", seed=0)
    assert len(frechet) == len(grid.points(has_projection=True))


def test_records_of_twice_the_training_are_those_of_their_grid():
    records, grid = shipped_records("doubled"), GRIDS["doubled"]
    assert {(r.variant, r.seed) for r in records} == set(grid.cells)
    assert {(r.data, r.vae_steps, r.ar_steps) for r in records} == {("shapes", grid.vae_steps, grid.ar_steps)}


def test_every_model_that_ships_has_records():
    for name, variants in SHIPPED_VARIANTS.items():
        first = GRIDS[name].seeds[0]
        for variant in variants if name != "laws" else ():
            records = select(shipped_records(name), variant=variant, seed=first, metric="frechet")
            assert records
            log = SHIPPED / name_of(GRIDS[name], variant) / "ar" / "model.log"
            command = log.read_text(encoding="utf-8").splitlines()[0].partition("  # ")[0]
            assert {f"command: {r.command}" for r in records} == {command}
    with pytest.raises(ValueError, match="study is 'quick'; expected one of"):
        shipped_records("quick")


def test_records_of_an_unfinished_study_are_whole_cells_of_its_grid(tmp_path):
    for name in ("select", "report", "length16", "length64", "others", "heads"):
        records = shipped_records(name)
        cells = sorted({(r.variant, r.seed) for r in records})
        assert sorted(restore(GRIDS[name], tmp_path / name, records)) == cells
        assert not any("dirty" in r.commit or "dirty" in r.trained for r in records)


def test_the_report_is_of_the_strengths_that_were_best_in_the_selection():
    records, grid = shipped_records("select"), GRIDS["report"]
    families = [Variant.named(name).family for name in grid.variants]
    assert list(grid.variants) == [best(records, family).variant for family in families]
    assert grid.selection == "select"
    assert not set(grid.seeds) & set(GRIDS["select"].seeds)
    assert {grid.half, GRIDS["select"].half} == {"a", "b"}


@pytest.mark.slow
def test_a_shipped_model_is_the_one_of_its_records():
    """In half precision, with the cell's own labels and seeds: the same numbers but for a few images."""
    grid, real = GRIDS["full"], Reference.of("digits")
    labels = torch.arange(grid.images) % 10
    images = Pipeline.from_pretrained("digits-power_spherical").sample(
        labels, grid.settings(Point(2.0)), seeds=sampling_seed("S-04", 0)
    )
    ours = real.judge(images, labels)
    at = {"variant": "S-04", "seed": 0, "guidance_scale": 2.0, "schedule": "linear"}
    at |= {"project_ar": True, "project_decoder": True}
    filed = {r.metric: r.value for r in select(shipped_records(), **at)}
    assert ours.accuracy == pytest.approx(filed["accuracy"], abs=0.01)
    assert ours.frechet == pytest.approx(filed["frechet"], rel=0.05)


def test_shipping_writes_half_precision_and_a_log(tmp_path):
    study, out = tmp_path / "study", tmp_path / "out"
    open_study(GRIDS["laws"], study, "spherear study laws")
    source = Pipeline.from_pretrained("digits3-gaussian")
    for variant in SHIPPED_VARIANTS["laws"]:
        folder = cell_folder(study, variant, 0)
        source.save_pretrained(folder)
        for part in ("vae", "ar"):
            lines = "".join(f'{{"step": {step}}}\n' for step in range(1, 41))
            (folder / part / "metrics.jsonl").write_text(lines)
            (folder / part / "run.json").write_text('{"recipe": {"steps": 40}}')
    assert [path.name for path in release(study, out)] == ["digits3-power_spherical", "digits3-gaussian", "digits3-vq"]
    again = Pipeline.from_pretrained(out / "digits3-gaussian")
    assert_close(again.sample([3]), source.sample([3]), atol=0, rtol=0)  # from half precision it came
    log = (out / "digits3-vq" / "ar" / "model.log").read_text().splitlines()
    assert log[0] == "command: spherear study laws  # cell VQ-3, seed 0"
    assert len(log) == 2 + LINES
    assert log[-1] == '{"step": 40}'
    open_study(GRIDS["quick"], tmp_path / "quick", "spherear study quick")
    with pytest.raises(
        ValueError,
        match=r"the study is 'quick'; expected one of \['dim2', 'dim8', 'doubled', 'full', 'heads', ",
    ):
        release(tmp_path / "quick", out)


def test_grid_file_says_how_the_study_was_asked_for(tmp_path):
    open_study(GRIDS["laws"], tmp_path, "spherear study laws")
    told = read_json(tmp_path / GRID_FILE)
    assert told["command"] == "spherear study laws"
    assert Grid.from_dict(told["grid"]) == GRIDS["laws"]


@pytest.mark.slow
def test_the_gallery_is_files(tmp_path, capsys):
    draw(tmp_path, ("figure1-published", "figure4-guidance"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "claims-colour.md", "claims.md", "dimensions.md", "figure1-published.png", "figure4-guidance.png",
        "heads-colour.md", "heads-scratch.md", "heads.md", "lengths.md", "solvers.md",
    ]  # fmt: skip
    assert "45 trained models, 3 seeds" in (tmp_path / "claims.md").read_text()
    assert capsys.readouterr().out.count(".png") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"names": ("rnak",)}, "figure is 'rnak'"), ({"dpi": 0}, "dpi is 0; expected at least 10")],
)
def test_what_the_gallery_cannot_draw_leaves_nothing(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_figures_for_slides_are_twice_as_fine(tmp_path):
    """The command of the README, for one figure."""
    command = re.search(r"python -m (spherear\.figures\.gallery) slides (--dpi 200)", README)
    words = [command[1], str(tmp_path / "fine"), "figure1-published", *command[2].split()]
    subprocess.run([sys.executable, "-m", *words], check=True)
    draw(tmp_path / "plain", ("figure1-published",))
    names = (tmp_path / name / "figure1-published.png" for name in ("fine", "plain"))
    with Image.open(next(names)) as fine, Image.open(next(names)) as plain:
        assert fine.size == tuple(2 * side for side in plain.size)
        assert fine.info["dpi"] == pytest.approx((200, 200), rel=1e-3)


@pytest.mark.slow
def test_a_shipped_model_is_recognised_and_another_is_not():
    for preset, study in (("digits", "full"), ("shapes", "report")):
        now, records = measured_again(cached_pipeline(f"{preset}-power_spherical"), study), shipped_records(study)
        assert max(row.difference for row in against(now, "power_spherical", records, study)) < 0.01
        assert max(row.difference for row in against(now, "gaussian", records, study)) > 0.05
    assert Remeasured("vq", "kl", 1.1, 1.0).difference == pytest.approx(0.1)
