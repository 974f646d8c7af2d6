"""Few evaluations against the solution and against the published settings: distances, intervals, resumed runs."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from spherear import SamplingSettings
from spherear.figures.study import quality_figure
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import NAMED_SETTINGS
from spherear.study import solver_errors as measuring
from spherear.study.records import read_measurements
from spherear.study.reference import Reference
from spherear.study.solver_errors import (
    CANDIDATES,
    ERRORS,
    EVALUATIONS,
    NEARLY_SOLVED,
    REFERENCE,
    SCALES,
    SOLUTION,
    SolverRecord,
    compared_settings,
    distance,
    error_table,
    errors,
    main,
    passing_everywhere,
    quality_table,
    settings_of,
    shipped_errors,
    shipped_quality,
    shipped_report,
    tokens_of,
    verdicts,
    within_margin,
)
from spherear.study.statistics import Difference
from tests.figures.test_figures import labelled


def test_the_solution_takes_more_evaluations_than_anything_compared():
    assert (SOLUTION.solver, SOLUTION.steps, SOLUTION.evaluations) == ("midpoint", 200, 400)
    assert SOLUTION.evaluations >= 10 * max(settings.evaluations for settings in compared_settings())


def test_distance_is_a_root_mean_square():
    assert distance(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])) == pytest.approx(math.sqrt((9 + 16) / 2))


def test_every_way_has_the_same_numbers_of_evaluations():
    found = {}
    for settings in compared_settings():
        found.setdefault((settings.solver, settings.spacing), []).append(settings.evaluations)
    assert all(counts == [n // 2 * 2 if solver == "heun" else n for n in EVALUATIONS]
               for (solver, _), counts in found.items())  # fmt: skip
    assert len(found) == 8
    assert len(set(CANDIDATES)) == len(CANDIDATES)


@pytest.mark.slow
def test_errors_are_those_of_the_tokens_and_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    few = [settings_of("adams_bashforth", 4), settings_of("adams_bashforth_3", 4, "annealed")]
    monkeypatch.setattr(measuring, "compared_settings", lambda: few)
    monkeypatch.setattr(measuring, "ERROR_IMAGES", 5)
    monkeypatch.setattr(measuring, "SOLUTION", replace(SOLUTION, steps=10))
    pipeline = cached_pipeline("digits-power_spherical")
    found = list(errors("m", pipeline, set(), "test", images=5))
    assert [[r.metric for r in block] for block in found] == [list(ERRORS)] * 4
    assert [block[0].guidance_scale for block in found] == [2.0, 2.0, 4.5, 4.5]
    a, b = (
        pipeline.sample(torch.arange(5), replace(s, guidance_scale=4.5), seeds=0)
        for s in (few[1], replace(SOLUTION, steps=10))
    )
    assert found[-1][1].value == pytest.approx(float((a - b).square().mean().sqrt()), rel=1e-5)
    assert 0 < found[0][0].value < 0.5
    (last,) = errors("m", pipeline, {block[0].place for block in found[:-1]}, "test", images=5)
    assert last == found[-1]
    out = tmp_path / "errors.jsonl"
    for _ in range(2):
        main("error", str(out), "digits-power_spherical")
        assert len(read_measurements(out, SolverRecord)) == 8
    assert "| 4 | adams_bashforth_3 | annealed |" in capsys.readouterr().out


@pytest.mark.slow
def test_quality_is_scored_on_the_same_images_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    candidate, best = settings_of("euler", 1), replace(NEARLY_SOLVED, steps=2)
    for name, value in (("CANDIDATES", (candidate,)), ("NEARLY_SOLVED", best), ("REFERENCE", settings_of("euler", 2))):
        monkeypatch.setattr(measuring, name, value)
    monkeypatch.setattr(measuring, "BLOCKS", 2)
    monkeypatch.setattr(measuring, "IMAGES", 20)
    out = tmp_path / "quality.jsonl"
    main("quality", str(out), "digits-power_spherical")
    written, said = out.read_text(), capsys.readouterr().out
    records = read_measurements(out, SolverRecord)
    assert len(written.splitlines()) == 3 * len(SCALES) * 2
    assert "digits-power_spherical: images are drawn with engine" in said
    assert all(f"Against {method}, even, on" in said for method in ("euler x 2", "adams_bashforth x 2"))
    pipeline, real = cached_pipeline("digits-power_spherical"), Reference.load("digits", 16)
    labels = torch.arange(20) % 10
    drawn = pipeline.sample(labels, replace(candidate, guidance_scale=4.5), seeds=20)
    (accuracy,) = [
        r.value for r in records
        if (r.solver, r.steps, r.guidance_scale, r.block, r.metric) == ("euler", 1, 4.5, 1, "accuracy")
    ]  # fmt: skip
    assert accuracy == real.judge(drawn, labels).accuracy
    main("quality", str(out), "digits-power_spherical")
    assert out.read_text() == written


def test_an_unknown_kind_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="kind is 'speed'; expected one of"):
        main("speed", str(tmp_path / "x.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_a_margin_holds_for_the_whole_interval():
    def interval(low, high):
        return Difference((low + high) / 2, low, high)

    assert within_margin("frechet", interval(-9.0, 0.1), 1.0)
    assert not within_margin("frechet", interval(-0.2, 0.11), 1.0)
    assert within_margin("recall", interval(-0.05, 9.0), 0.8)
    assert not within_margin("recall", interval(-0.06, 0.1), 0.8)
    assert not within_margin("accuracy", interval(-0.021, 9.0), 0.9)


def records(settings, frechet, scale=2.0):
    place = ("m", scale, settings.solver, settings.steps, settings.spacing, settings.evaluations)
    return [
        SolverRecord(*place, block, metric, value, 10, "test", "none", "none")
        for block, distance in enumerate(frechet)
        for metric, value in (("frechet", distance), ("accuracy", 0.9), ("recall", 0.8))
    ]


def test_verdicts_compare_with_the_published_settings():
    reference = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
    good, bad, other = settings_of("adams_bashforth_3", 6), settings_of("euler_maruyama", 5), settings_of("euler", 3)
    told = [
        *records(REFERENCE, reference), *records(good, [x + 0.02 for x in reference]),
        *records(bad, [x + 0.2 * i for i, x in enumerate(reference)]), *records(other, reference),
        *records(REFERENCE, reference, 4.5), *records(good, reference, 4.5),
    ]  # fmt: skip
    found = verdicts(told)
    assert [(v.settings.solver, v.guidance_scale, v.passes) for v in found] == [
        ("adams_bashforth_3", 2.0, True), ("euler_maruyama", 2.0, False), ("adams_bashforth_3", 4.5, True)]  # fmt: skip
    assert found[1].difference["frechet"].mean == pytest.approx(0.5)
    assert passing_everywhere(found) == [good]
    assert "| m | 2 | euler_maruyama | 5 | even | 6 | 1.5 (+0.1" in quality_table(found)
    with pytest.raises(ValueError, match="there is no euler_maruyama x 100 for m at 2"):
        verdicts(records(good, reference))
    with pytest.raises(ValueError, match="there is no adams_bashforth x 20 for m at 2"):
        verdicts(told, NEARLY_SOLVED)


def test_the_figure_shows_intervals_beside_the_margin():
    """Of the Frechet distance as shares of the reference's; a column per model, a row per metric."""
    reference = [2.0, 2.02, 1.98, 2.0]
    told = [
        *records(REFERENCE, reference, 4.5),
        *records(settings_of("adams_bashforth_3", 6), [x + 0.4 for x in reference], 4.5),
    ]
    found = verdicts(told)
    figure = labelled(quality_figure(found))
    assert [axis.get_title() for axis in figure.axes] == ["m", "", ""]
    above = figure.axes[0]
    assert [line.get_ydata()[0] for line in above.lines if line.get_linestyle() == ":"] == [0.1]
    assert [line.get_ydata()[0] for line in figure.axes[1].lines if line.get_linestyle() == ":"] == [-0.02]
    (drawn,) = [box for box in above.containers if box.get_label() == "Adams-Bashforth 3"]
    assert drawn.lines[0].get_ydata() == pytest.approx([0.2])
    assert 6 / 1.1 < drawn.lines[0].get_xdata()[0] < 6 * 1.1
    with pytest.raises(ValueError, match="there are no verdicts at guidance 7; expected some"):
        quality_figure(found, 7.0)


def test_what_ships_is_told_whole():
    text = shipped_report()
    assert text.startswith("Quality, in 10 blocks of 1,000 images, by `python -m spherear.study.solver_errors quality ")
    assert "Margins (Frechet: of the reference): frechet 0.1, accuracy 0.02, recall 0.05.\n" in text
    assert "Within the margins everywhere: adams_bashforth_3 x 10, annealed." in text
    assert text.count("\n| shapes-gaussian | 4.5 | ") == 2 * len(CANDIDATES)
    assert text.count(" | adams_bashforth_3 | annealed | ") == len(EVALUATIONS)


def test_a_table_of_errors_begins_with_the_smallest():
    place = ("m", 2.0)
    told = [
        SolverRecord(*place, solver, 4, "even", 4, 0, metric, value, 10, "test", "none", "none")
        for solver, value in (("euler", 0.3), ("heun", 0.1))
        for metric in ERRORS
    ]
    lines = error_table(told).splitlines()
    assert lines[2:4] == ["| 4 | heun | even | 0.1 / 0.1 |", "| 4 | euler | even | 0.3 / 0.3 |"]


def test_tokens_are_of_the_first_seeds():
    pipeline, settings = cached_pipeline("digits-power_spherical"), SamplingSettings(solver="euler", steps=1)
    tokens = tokens_of(pipeline, settings, 3)
    torch.testing.assert_close(pipeline.images(tokens), pipeline.sample([0, 1, 2], settings, seeds=[0, 1, 2]))


def mean_errors(evaluations, preset):
    """The mean error of the tokens over a preset's models and scales, by solver and spacing."""
    found = {}
    for r in shipped_errors():
        if r.evaluations == evaluations and r.metric == "token_error" and r.model.startswith(f"{preset}-"):
            found.setdefault((r.solver, r.spacing), []).append(r.value)
    assert {len(values) for values in found.values()} == {4}
    return {key: fmean(values) for key, values in found.items()}


def places(found, settings):
    """(model, guidance scale) -> the verdict on some settings."""
    plain = [(v, replace(v.settings, guidance_scale=REFERENCE.guidance_scale)) for v in found]
    return {(v.model, v.guidance_scale): v for v, setting in plain if setting == settings}


def test_named_settings_are_what_the_records_say():
    """On digits (nearly) the smallest error of their evaluations, and images as good as with twice as many or more."""
    found = verdicts(shipped_quality(), NEARLY_SOLVED)
    passing = passing_everywhere([v for v in found if v.model.startswith("digits-")])
    for name, evaluations, early, told in (("balanced", 10, 0.109, 0.048), ("fast", 6, 0.246, 0.133)):
        settings, errors = NAMED_SETTINGS[name], mean_errors(evaluations, "digits")
        assert settings.evaluations == evaluations
        own, least = errors[settings.solver, settings.spacing], min(errors.values())
        assert own == least if name == "balanced" else least < own < 1.02 * least
        assert (round(own, 3), round(errors["adams_bashforth", "early"], 3)) == (told, early)
        assert settings in passing
    assert NAMED_SETTINGS["balanced"] in passing_everywhere(found)
    (missed,) = {place for place, v in places(found, NAMED_SETTINGS["fast"]).items() if not v.passes}
    assert missed == ("shapes-gaussian", 4.5)
    assert places(found, NAMED_SETTINGS["fast"])[missed].difference["accuracy"].low == pytest.approx(-0.022, abs=5e-4)


def test_named_settings_against_the_published_noise_at_every_step():
    """`balanced` is as good in five places of eight; what passes everywhere has annealed steps."""
    found = verdicts(shipped_quality())
    assert passing_everywhere(found) == [settings_of("adams_bashforth_3", 10, "annealed")]
    passed = {
        settings: {place for place, v in places(found, settings).items() if v.passes}
        for settings in (NAMED_SETTINGS["balanced"], NAMED_SETTINGS["fast"], *CANDIDATES)
    }
    balanced, fast = passed[NAMED_SETTINGS["balanced"]], passed[NAMED_SETTINGS["fast"]]
    everywhere = {(v.model, v.guidance_scale) for v in found}
    missed = {("digits-power_spherical", 4.5), ("shapes-gaussian", 2.0), ("shapes-gaussian", 4.5)}
    assert everywhere - balanced == missed
    assert fast == {("digits-gaussian", 2.0), ("digits-gaussian", 4.5), ("shapes-power_spherical", 2.0)}
    worst = places(found, NAMED_SETTINGS["balanced"])
    assert worst["shapes-gaussian", 2.0].difference["accuracy"].low == pytest.approx(-0.025, abs=5e-4)
    assert worst["digits-power_spherical", 4.5].difference["recall"].low == pytest.approx(-0.052, abs=5e-4)


def test_in_colour_annealed_steps_come_nearer_than_the_named_settings():
    for name, evaluations, ours, least in (("balanced", 10, 0.31, 0.23), ("fast", 6, 0.40, 0.35)):
        settings, errors = NAMED_SETTINGS[name], mean_errors(evaluations, "shapes")
        assert min(errors, key=errors.get) == ("adams_bashforth_3", "annealed")
        told = (errors[settings.solver, settings.spacing], min(errors.values()))
        assert tuple(round(value, 2) for value in told) == (ours, least)
