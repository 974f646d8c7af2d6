"""What few evaluations cost, on records made up to be no worse, worse and undecided."""

import re
from dataclasses import replace
from statistics import fmean

import pytest
from scipy import stats

from spherear.figures.heads import heads_figure, write_heads
from spherear.models.files import read_json, write_json
from spherear.study.cell import cell_folder, recipes_of, take_models
from spherear.study.design import GRIDS, Grid, Point, Variant
from spherear.study.questions.heads import MARGIN, costs, curves, report, rises, untaught, untaught_report
from tests.study.test_claims import record

SOLVER = ("euler_maruyama", 100)


def records(seeds=3, one=1.0):
    """Reference 10 plus the seed; the student's rise at one evaluation is `one` in S and 3 in G; best at guidance 2."""
    rows = []
    for letter, family in (("S", "power_spherical"), ("G", "gaussian")):
        for seed in range(seeds):
            base = 10.0 + seed
            rise = (one if letter == "S" else 3.0) + 0.01 * seed
            for scale, extra in ((1.0, 5.0), (2.0, 0.0), (8.0, 2.0)):
                teacher = record(f"{letter}-04", family, seed, scale, base + extra)
                student = replace(
                    teacher, variant=f"{letter}-04@mean_velocity", head="mean_velocity", solver="euler", steps=1,
                    value=base + extra + rise,
                )  # fmt: skip
                rows += [teacher, replace(teacher, solver="euler", steps=10), student]
    return rows


def by_method(rows):
    return {(row.curve.family, *row.curve.method): row for row in rows}


def test_curves_count_evaluations_and_choose_on_other_seeds():
    rows = records()
    found = {(c.family, *c.method): c for c in curves(rows, *SOLVER)}
    assert [c.evaluations for c in curves(rows, *SOLVER) if c.family == "gaussian"] == [10, 101, 1]
    student = found["power_spherical", "mean_velocity", "euler", 1]
    assert student.values == {0: 11.0, 1: 12.01, 2: 13.02}
    assert set(student.scales.values()) == {2.0}
    lucky = [
        replace(r, value=0.0) if (r.seed, r.guidance_scale, r.head) == (0, 8.0, "mean_velocity") else r for r in rows
    ]
    chosen = {(c.family, *c.method): c for c in curves(lucky, *SOLVER)}["power_spherical", "mean_velocity", "euler", 1]
    assert chosen.scales[0] == 2.0  # not the scale at which this seed was lucky
    assert chosen.values[0] == 11.0
    assert chosen.scales[1] == chosen.scales[2] == 8.0
    assert {c.scales[0] for c in curves(rows, *SOLVER, at=8.0)} == {8.0}


def test_codes_have_no_evaluations():
    codes = [record("VQ-64", "vq", seed, 2.0, 9.0) for seed in range(3)]
    assert curves([*records(), *codes], *SOLVER) == curves(records(), *SOLVER)


def test_verdicts_are_those_of_an_interval_by_scipy():
    for rise, verdict in ((0.5, "no worse"), (1.0, "no worse"), (2.0, "worse")):
        row = by_method(costs(curves(records(one=rise), *SOLVER)))["power_spherical", "mean_velocity", "euler", 1]
        own, other = (list(side.values.values()) for side in (row.curve, row.reference))
        low, high = stats.ttest_rel(own, other).confidence_interval(0.95)
        assert (row.difference.low, row.difference.high) == pytest.approx((low, high), rel=1e-3)
        assert row.verdict == verdict
        assert (high <= MARGIN * fmean(other)) == (verdict == "no worse")
    torn = [replace(r, value=r.value + 4 * (r.seed - 1)) if r.head == "mean_velocity" else r for r in records()]
    row = by_method(costs(curves(torn, *SOLVER)))["power_spherical", "mean_velocity", "euler", 1]
    assert row.verdict == "undecided"


def test_the_same_method_is_compared_between_families():
    found = rises(costs(curves(records(seeds=4), *SOLVER)))
    assert [(left.curve.family, left.curve.method) for left, *_ in found] == [
        ("power_spherical", ("velocity", "euler", 10)),
        ("power_spherical", ("mean_velocity", "euler", 1)),
    ]
    equal, sphere = (result for *_, result in found)
    assert equal.difference == 0
    expected = fmean((1 + 0.01 * s) / (10 + s) - (3 + 0.01 * s) / (10 + s) for s in range(4))
    assert sphere.difference == pytest.approx(expected)
    assert sphere.p == pytest.approx(2 / 70)
    swapped = [replace(r, family={"gaussian": "power_spherical"}.get(r.family, "gaussian")) for r in records(seeds=4)]
    assert rises(costs(curves(swapped, *SOLVER)))[1][2].difference == pytest.approx(-expected)


def test_the_report_names_every_method(tmp_path):
    text = report(records(), *SOLVER)
    lines = [line for line in text.splitlines() if re.match(r"\| [SG] ", line)]
    assert len(lines) == 2 * 4  # at the best guidance and at the highest: two families, two methods each
    assert sum("**worse**" in line for line in lines) == 2
    assert [path.name for path in write_heads(records(), *SOLVER, tmp_path)] == ["heads.md", "heads.png"]
    assert [path.name for path in write_heads(records(seeds=1), *SOLVER, tmp_path / "one")] == ["heads.md"]


def test_heads_without_a_teacher_are_compared_with_the_published_solver():
    """Students that learnt alone: in S as good as the published solver, in G eight worse."""
    alone = [
        replace(r, value=r.value + (5.0 if r.family == "gaussian" else -1.0))
        for r in records()
        if r.head == "mean_velocity"
    ]
    scratch, found = curves(alone, *SOLVER), curves(records(), *SOLVER)
    sphere, gaussian = untaught(found, scratch)
    assert [row.curve.family for row in (sphere, gaussian)] == ["power_spherical", "gaussian"]
    assert sphere.taught.values == {0: 11.0, 1: 12.01, 2: 13.02}
    assert sphere.curve.values == pytest.approx({0: 10.0, 1: 11.01, 2: 12.02})
    assert sphere.reference.values == {0: 10.0, 1: 11.0, 2: 12.0}
    for row, mean in ((sphere, 0.01), (gaussian, 8.01)):
        test = stats.ttest_ind(list(row.curve.values.values()), list(row.reference.values.values()), equal_var=False)
        assert row.difference.mean == pytest.approx(mean)
        half = stats.t.ppf(0.975, int(test.df)) * mean / test.statistic
        assert row.difference.high - row.difference.mean == pytest.approx(half, rel=1e-3)
    assert [row.verdict for row in (sphere, gaussian)] == ["undecided", "worse"]
    text = untaught_report(records(), alone, *SOLVER)
    assert "| S | mean velocity | 1 | 11 ± 1 | 12 ± 1 | 11 ± 1 | +0.01 [" in text
    assert untaught([], scratch) == []


def test_the_grid_without_teachers_has_the_heads_of_the_grid_with_them():
    own, taught = GRIDS["heads-scratch"], GRIDS["heads"]
    assert set(own.variants) == {name for name in taught.variants if taught.teacher_of(Variant.named(name))}
    assert all(own.teacher_of(Variant.named(name)) is None for name in own.variants)
    same = ("preset", "data_spec", "seeds", "vae_steps", "images", "scales", "methods", "batch_size")
    assert all(getattr(own, name) == getattr(taught, name) for name in same)


def test_the_figure_shows_every_seed_and_the_published_solver():
    left, right = heads_figure(curves(records(), *SOLVER)).axes
    for axis in (left, right):
        assert [line.get_label() for line in axis.lines if not line.get_label().startswith("_")] == [
            "velocity", "mean velocity",
        ]  # fmt: skip
        assert [line.get_ydata()[0] for line in axis.lines if line.get_color() == "#999999"] == [11.0]
    drawn = [line for line in left.lines if line.get_color() != "#999999"]
    dots = sorted(float(line.get_ydata()[0]) for line in drawn if line.get_xdata()[0] == 1)
    assert dots == pytest.approx([11.0, 12.01, 12.01, 13.02])  # three seeds and their mean
    with pytest.raises(ValueError, match="there are no curves"):
        heads_figure([])


def test_the_grid_of_heads():
    grid = GRIDS["heads"]
    assert Grid.from_dict(grid.to_dict()) == grid
    counts = {name: len(grid.points(True, Variant.named(name).head_kind)) for name in grid.variants}
    scales = len(grid.scales)
    assert counts["S-04"] == 6 * scales
    assert counts["S-04@geodesic"] == 5 * scales  # it cannot honour the noisy solver
    assert counts["G-04@mean_velocity"] == counts["N-04@geodesic_mean"] == 4 * scales
    assert grid.teacher_of(Variant.named("S-04@geodesic_mean")) == Variant.named("S-04@geodesic")
    assert grid.teacher_of(Variant.named("G-04@mean_velocity")) == Variant.named("G-04")
    assert grid.teacher_of(Variant.named("S-04@geodesic")) is None
    assert replace(grid, distill_steps=0).teacher_of(Variant.named("G-04@mean_velocity")) is None
    settings = grid.settings(Point(3.0, solver="euler", steps=2))
    assert (settings.solver, settings.steps, settings.guidance_scale) == ("euler", 2, 3.0)
    for methods, message in (
        (("euler",), "method is 'euler'; expected one like euler-4"),
        (("euler-0",), "method is 'euler-0'"),
        (("warp-3",), "solver is 'warp'; expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(grid, methods=methods)


def finished(grid, folder, name, text, parts=("vae", "ar")):
    """Finished runs of a cell with seed 1, as far as copying goes."""
    cell = cell_folder(folder, name, 1)
    for part, recipe in zip(("vae", "ar"), recipes_of(grid, Variant.named(name), 1), strict=True):
        if part in parts:
            write_json(cell / part / "run.json", {"recipe": recipe.to_dict()})
            (cell / part / "config.json").write_text(text, encoding="utf-8")
    write_json(cell / "trained.json", {"commit": "abc"})


def test_what_another_cell_has_trained_is_taken(tmp_path):
    grid = GRIDS["heads-colour"]
    study, other = tmp_path / grid.name, tmp_path / grid.models

    def taken(name, grid=grid):
        """What the cell has after taking."""
        cell = cell_folder(study, name, 1)
        take_models(grid, Variant.named(name), 1, cell)
        return sorted(path.name for path in cell.glob("*"))

    assert taken("S-02@geodesic") == []  # there is nothing to take
    finished(grid, other, "S-02", "the other study's", ["vae"])
    assert taken("S-02") == ["vae"]  # its AR model is not finished
    finished(grid, other, "N-02", "the other study's")
    assert taken("N-02") == ["ar", "trained.json", "vae"]
    own = cell_folder(study, "N-02", 1)
    assert (own / "ar" / "config.json").read_text(encoding="utf-8") == "the other study's"
    assert read_json(own / "trained.json") == {"commit": "abc"}
    assert taken("N-02@geodesic") == ["vae"]  # its own AR model is trained
    assert taken("N-02@mean_velocity") == taken("N-02@geodesic_mean") == []  # its teacher's VAE is its own
    head = cell_folder(study, "N-02@geodesic", 1) / "vae" / "config.json"
    head.write_text("of this cell", encoding="utf-8")
    assert taken("N-02@geodesic") == ["vae"]
    assert head.read_text(encoding="utf-8") == "of this cell"
    finished(grid, other, "G-04", "the other study's")
    assert taken("G-04", replace(grid, models="")) == []


@pytest.mark.parametrize("change", [{"vae_steps": 100}, {"batch_size": 8}])
def test_a_model_of_another_training_is_not_taken(tmp_path, change):
    grid = GRIDS["heads-colour"]
    finished(grid, tmp_path / grid.models, "S-02", "of another training")
    own = cell_folder(tmp_path / grid.name, "S-02", 1)
    take_models(replace(grid, **change), Variant.named("S-02"), 1, own)
    assert not own.exists()
    take_models(replace(grid, images=100), Variant.named("S-02"), 1, own)  # which no training sees
    assert (own / "ar" / "config.json").exists()


def test_cells_begin_after_those_that_they_take_from():
    grid = GRIDS["heads-colour"]
    assert grid.rounds[1] == []  # the VAEs lie elsewhere
    alone = replace(grid, models="")
    latents, heads, taught = ([name for name, seed in cells if seed == 0] for cells in alone.rounds)
    assert latents == ["S-02", "N-02", "G-04"]
    assert heads == ["S-02@geodesic", "N-02@geodesic"]
    assert sorted(grid.rounds[0]) == sorted(alone.rounds[0] + alone.rounds[1])
    assert sorted(taught) == sorted(set(grid.variants) - {*latents, *heads})
    assert sorted(cell for cells in grid.rounds for cell in cells) == sorted(grid.cells)
    same = ("preset", "vae_steps", "ar_steps", "batch_size", "half")
    assert [getattr(grid, name) for name in same] == [getattr(GRIDS[grid.models], name) for name in same]
