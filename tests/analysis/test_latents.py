"""What the notebooks explain with: numbers against closed forms, pictures against their numbers."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.analysis.cost import cost
from spherear.analysis.densities import cosine_density
from spherear.analysis.diagnostics import norm_profile
from spherear.analysis.latents import token_variances, wrong_length
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
from spherear.sphere.power_spherical import PowerSpherical
from spherear.sphere.von_mises_fisher import VonMisesFisher
from spherear.study.records import shipped_records
from spherear.study.release import Remeasured, remeasure
from tests.figures.test_figures import labelled, lines

F64 = torch.float64


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("digits-power_spherical")


def test_cosine_density_is_that_of_the_law():
    axis = torch.tensor([0.6, 0.0, -0.8, 0.0], dtype=F64)
    t = torch.linspace(-1 + 1e-6, 1 - 1e-6, 20_001, dtype=F64)
    flat = PowerSpherical(axis, torch.tensor(0.0, dtype=F64))
    # uniform in 4 dimensions: (1 + t)/2 ~ Beta(3/2, 3/2)
    expected = torch.from_numpy(stats.beta(1.5, 1.5).pdf((1 + t.numpy()) / 2)) / 2
    assert_close(cosine_density(flat, t), expected, rtol=1e-6, atol=1e-9)
    for law in (PowerSpherical(axis, torch.tensor(7.0, dtype=F64)), VonMisesFisher(axis, torch.tensor(7.0, dtype=F64))):
        density = cosine_density(law, t)
        assert float(torch.trapezoid(density, t)) == pytest.approx(1, abs=1e-4)
        assert float(torch.trapezoid(t * density, t)) == pytest.approx(float(law.mean_length), abs=1e-4)


def test_token_variances_are_those_of_the_numbers():
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tokens = torch.randn(40_000, 2, 2, generator=torch.Generator().manual_seed(0)) * scale
    found = token_variances(tokens)
    assert_close(found.per_dim, torch.tensor([5.0, 10.0], dtype=F64), rtol=0.05, atol=0)
    assert_close(found.per_token, torch.tensor([2.5, 12.5], dtype=F64), rtol=0.05, atol=0)
    assert found.unevenness == pytest.approx(2, rel=0.05)
    with pytest.raises(ValueError, match="of 1 images; expected at least 2"):
        token_variances(tokens[:1])


def test_wrong_length_scales_tokens_before_they_are_decoded(pipeline):
    image = torch.zeros(3, 16, 16)
    wrong = wrong_length(pipeline.vae, image, (0.5, 1.0))
    tokens = pipeline.vae.encode(image[None]).mode
    assert_close(wrong.images[0], pipeline.vae.decode(tokens / 2)[0], atol=1e-5, rtol=0)
    assert wrong.errors[1] == 0 < wrong.errors[0]
    with pytest.raises(ValueError, match=r"factors are \[0.0\]; expected numbers above 0"):
        wrong_length(pipeline.vae, image, (0.0,))


def test_ways_end_where_the_decode_does(pipeline):
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=5)
    steps = list(pipeline.steps([3], settings, 0))
    found = trajectories(pipeline, label=3, position=4, seeds=[0, 1], steps=5)
    assert found.points.shape == (6, 2, 8)
    assert_close(found.points[-1, 0], steps[4].raw[0], atol=1e-4, rtol=0)  # seed 0 goes the decode's own way
    guided = trajectories(pipeline, label=3, position=4, seeds=[0], steps=5, scale=6.0)
    assert float((guided.points[-1, 0] - found.points[-1, 0]).norm()) > 0.01
    with pytest.raises(ValueError, match="position is 16; expected 0 to 15"):
        trajectories(pipeline, 3, 16, [0])
    with pytest.raises(TypeError, match="CategoricalHead; expected a VelocityHead"):
        trajectories(Pipeline.from_pretrained("digits-vq"), 3, 0, [0])


@pytest.mark.slow
def test_a_shipped_model_is_recognised_and_another_is_not(pipeline):
    records = shipped_records()
    assert max(row.off for row in remeasure(pipeline, "power_spherical", records)) < 0.01
    assert max(row.off for row in remeasure(pipeline, "gaussian", records)) > 0.05
    assert Remeasured("vq", "kl", 1.1, 1.0).off == pytest.approx(0.1)


def test_lesson_figures_show_their_numbers(pipeline):
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


def test_kl_figure_has_a_point_a_variant():
    records = shipped_records()
    (axis,) = labelled(kl_figure(records, ("power_spherical", "gaussian"))).axes
    assert [t.get_text() for t in axis.texts] == ["S-01", "S-04", "S-16", "G-01", "G-04", "G-16"]
    values = [r.value for r in records if (r.variant, r.metric) == ("G-04", "kl")]
    assert float(lines(axis)["G Gaussian"][0][1]) == pytest.approx(math.fsum(values) / 3)
