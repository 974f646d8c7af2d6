"""The figures that only the notebooks use, against the numbers they draw."""

import math

import pytest
import torch
from torch.testing import assert_close

from spherear.analysis.cost import cost
from spherear.analysis.diagnostics import norm_profile
from spherear.analysis.latents import token_variances
from spherear.analysis.trajectories import trajectories
from spherear.figures.lessons import (
    costs_figure,
    curves_figure,
    kl_figure,
    lengths_figure,
    rope_figure,
    sequence_figure,
    trajectories_figure,
    variances_figure,
)
from spherear.models.layers import rope_table
from spherear.sampling.pipeline import cached_pipeline
from spherear.study.records import shipped_records
from tests.figures.test_figures import labelled, lines

F64 = torch.float64


def test_lesson_figures_show_their_numbers():
    pipeline = cached_pipeline("digits-power_spherical")
    (axis,) = labelled(curves_figure([1, 2], {"vq": [3, 4], "other": [5, 6]}, ("a", "b"), log="xy")).axes
    assert list(lines(axis)["VQ vector quantised"][1]) == [3, 4]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    factors = (0.25, 0.5, 1.0, 2.0)
    (axis,) = labelled(curves_figure(factors, {"vq": factors}, ("a", "b"), log="x")).axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.25", "0.5", "1", "2"]
    assert axis.get_xticks().tolist() == list(factors)
    tokens = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0))
    (axis,) = labelled(lengths_figure({"gaussian": norm_profile(tokens)})).axes
    assert_close(torch.tensor(lines(axis)["G Gaussian"][1]), tokens.double().norm(dim=-1).mean(0))
    left, right = labelled(variances_figure({"vmf": token_variances(tokens)})).axes
    assert_close(torch.tensor(lines(right)["vMF von Mises-Fisher"][1]), tokens.double().var(0).mean(1))
    assert len(lines(left)["vMF von Mises-Fisher"][0]) == 3
    picture = labelled(sequence_figure(4, 16)).axes[0].images[0].get_array()
    assert (picture.shape, float(picture[0, 1]), float(picture[5, 0]), float(picture[5, 5])) == ((19, 19), 0, 2, 1)
    table = rope_table(4, 2, 16)
    assert_close(torch.tensor(labelled(rope_figure(table)).axes[0].images[0].get_array().data), table[..., 0])
    walked = trajectories(pipeline, 3, 2, [0, 1, 2], steps=3)
    upper, lower = labelled(trajectories_figure({"here": walked})).axes
    assert_close(torch.tensor(upper.lines[-1].get_xydata()), walked.points[-1, :, :2].to(F64))
    assert lower.get_legend_handles_labels()[1] == ["radius of the sphere"]
    bars = labelled(costs_figure([cost("digits"), cost("shapes")])).axes[0].patches
    assert [bar.get_height() for bar in bars] == [cost("digits").parameters, cost("shapes").parameters]


def test_kl_figure_has_one_point_per_variant():
    records = shipped_records()
    (axis,) = labelled(kl_figure(records, ("power_spherical", "gaussian"))).axes
    assert [t.get_text() for t in axis.texts] == ["S-01", "S-04", "S-16", "G-01", "G-04", "G-16"]
    values = [r.value for r in records if (r.variant, r.metric) == ("G-04", "kl")]
    assert float(lines(axis)["G Gaussian"][0][1]) == pytest.approx(math.fsum(values) / 3)
