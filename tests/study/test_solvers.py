"""Ways of solving against the reference: the rule, the table, and a run that goes on where it stopped."""

from dataclasses import replace

import pytest
import torch

from spherear import Pipeline, SamplingSettings
from spherear.bench.growth import Growth
from spherear.figures.study import decode_time_figure, sweep_figure
from spherear.sampling.settings import NAMED_SETTINGS
from spherear.study import solvers as sweeping
from spherear.study.records import read_records
from spherear.study.reference import Reference
from spherear.study.solvers import (
    METRICS,
    REFERENCE,
    SWEEP,
    SweepRecord,
    compared_settings,
    main,
    matching,
    matching_everywhere,
    place_of,
    rows,
    sweep,
    table,
)
from tests.figures.test_figures import labelled


def records(model="m", scale=2.0, way=REFERENCE, frechet=(1.0, 1.2), accuracy=(0.9, 0.9), recall=(0.8, 0.8)):
    values = {"frechet": frechet, "accuracy": accuracy, "recall": recall}
    place = (model, scale, way.solver, way.steps, way.spacing, way.evaluations)
    return [
        SweepRecord(*place, block, metric, value, 10, "test", "none", "none")
        for metric, blocks in values.items()
        for block, value in enumerate(blocks)
    ]


def test_the_rule():
    reference = [1.0, 1.1, 1.2]  # deviation 0.1
    assert matching("frechet", [1.2, 1.35], reference)
    assert matching("frechet", [0.1], reference)
    assert not matching("frechet", [1.35], reference)
    assert matching("accuracy", [0.95], reference)
    assert not matching("accuracy", [0.85], reference)


HEUN = replace(REFERENCE, solver="heun", steps=5)
EULER = replace(REFERENCE, solver="euler", steps=10)


def test_rows_and_what_matches_everywhere():
    told = [
        *records(), *records(scale=4.5), *records(way=HEUN), *records(scale=4.5, way=HEUN, frechet=(1.3, 1.3)),
        *records(way=EULER), *records(scale=4.5, way=EULER, accuracy=(0.8, 0.8)),
    ]  # fmt: skip
    found = rows(told)
    assert [row.settings.evaluations for row in found] == [10, 10, 101, 10, 10, 101]
    assert matching_everywhere(found) == [HEUN, REFERENCE]
    assert found[0].mean["frechet"] == pytest.approx(1.1)
    assert found[0].deviation["frechet"] == pytest.approx(0.1414, abs=1e-3)
    text = table(found)
    assert "| m | 4.5 | euler | 10 | even | 10 | 1.1 ± 0.14 | 0.8 ± 0 | 0.8 ± 0 | no |" in text
    with pytest.raises(ValueError, match="there is no reference for m at 2"):
        rows(records(way=HEUN))


def test_ways_start_with_the_reference_and_are_told_apart():
    assert compared_settings()[0] == REFERENCE == SamplingSettings()
    assert len(set(compared_settings())) == len(compared_settings())
    assert {way.solver for way in compared_settings()} == {"euler_maruyama", "euler", "heun", "adams_bashforth"}


@pytest.mark.slow
def test_a_sweep_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeping, "compared_settings", lambda: [replace(REFERENCE, steps=2), HEUN])
    monkeypatch.setattr(sweeping, "REFERENCE", replace(REFERENCE, steps=2))
    monkeypatch.setattr(sweeping, "BLOCKS", 2)
    monkeypatch.setattr(sweeping, "IMAGES", 20)
    pipeline, real = Pipeline.from_pretrained("digits-power_spherical"), Reference.load("digits", 16)
    blocks = list(sweep("m", pipeline, real, set(), "test", images=20))
    assert len(blocks) == 2 * len(sweeping.SCALES) * 2
    done = {place_of(block[0]) for block in blocks[:-1]}
    (last,) = sweep("m", pipeline, real, done, "test", images=20)
    assert last == blocks[-1]
    labels = torch.arange(20) % 10
    drawn = pipeline.sample(labels, replace(HEUN, guidance_scale=4.5), seeds=20)
    assert {r.metric: r.value for r in last}["accuracy"] == real.judge(drawn, labels).accuracy
    out = tmp_path / "sweep.jsonl"
    main(str(out), "digits-power_spherical")
    first = out.read_text()
    assert "matching everywhere:" in capsys.readouterr().out
    main(str(out), "digits-power_spherical")
    assert out.read_text() == first


def test_the_sweeps_figure_shows_means_beside_the_references_band():
    told = [*records(), *records(way=HEUN, frechet=(2.0, 4.0)), *records(way=EULER)]
    told += records(way=replace(REFERENCE, solver="adams_bashforth", steps=6))
    figure = labelled(sweep_figure(rows(told)))
    assert len(figure.axes) == len(METRICS)
    assert figure.axes[0].get_title() == "m, guidance 2"
    (heun,) = [line for line in figure.axes[0].lines if line.get_label() == "Heun"]
    assert (list(heun.get_xdata()), list(heun.get_ydata())) == ([10], [3.0])
    (band,) = figure.axes[0].patches
    assert band.get_height() == pytest.approx(4 * 0.1414, abs=1e-3)


def test_growth_is_drawn_with_its_line():
    growth = Growth("digits", 1, [0.1 * n for n in range(1, 17)], 0.1, 1.0, 0.1, 0.1)
    total, each = labelled(decode_time_figure(growth)).axes
    measured, line = (axis.get_ydata() for axis in total.lines)
    assert list(measured) == growth.upto
    assert list(line) == pytest.approx(growth.upto)
    assert list(each.lines[0].get_ydata()) == pytest.approx([100.0] * 15)


def test_the_shipped_sweep_has_the_reference_and_balanced():
    found = rows(read_records(SWEEP, SweepRecord))
    assert {row.model for row in found} >= {"digits-power_spherical", "digits-gaussian"}
    assert {r.metric for r in read_records(SWEEP, SweepRecord)} == set(METRICS)
    assert NAMED_SETTINGS["reference"] == REFERENCE
    assert replace(NAMED_SETTINGS["balanced"], guidance_scale=2.0) in {row.settings for row in found}
