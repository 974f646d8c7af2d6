"""Paths from noise to a token, against the decode that they are part of."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from spherear.analysis.trajectories import arrow_tips, token_path, trajectories
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import SamplingSettings


@pytest.mark.parametrize("family", ["digits3-power_spherical", "digits3-gaussian", "digits-power_spherical"])
@pytest.mark.parametrize(
    ("scale", "solver", "schedule"),
    [
        *itertools.product((1.0, 6.0), ("euler", "heun", "euler_maruyama"), ("linear",)),
        (6.0, "euler", "constant"),
    ],
)
def test_a_path_ends_where_the_decode_does(family, scale, solver, schedule):
    pipeline = cached_pipeline(family)
    settings = SamplingSettings(guidance_scale=scale, solver=solver, steps=5, schedule=schedule)
    steps = list(pipeline.steps([4], settings, 5))
    for position in (0, 1, 9, 15):
        path = token_path(pipeline, 4, position, settings, 5)
        torch.testing.assert_close(path.points[-1], steps[position].raw[0], rtol=0, atol=3e-5)
        torch.testing.assert_close(path.token, steps[position].token[0], rtol=0, atol=3e-5)
        assert len(path.points) == len(path.times) == len(path.guided) + 1
        torch.testing.assert_close(path.guided, path.null + path.scale * (path.conditional - path.null))


def test_eulers_path_follows_its_velocities():
    path = token_path(
        cached_pipeline("digits3-gaussian"), 2, 7, SamplingSettings(guidance_scale=5.0, solver="euler", steps=8), 1
    )
    torch.testing.assert_close(path.points[1:], path.points[:-1] + path.guided / 8, rtol=0, atol=1e-5)
    torch.testing.assert_close(arrow_tips(path, 7)[2], path.points[-1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="step is 8"):
        arrow_tips(path, 8)


def test_a_path_needs_a_velocity_and_a_position():
    with pytest.raises(TypeError, match="CategoricalHead; expected a VelocityHead"):
        token_path(cached_pipeline("digits3-vq"), 2, 7, SamplingSettings(), 1)
    with pytest.raises(ValueError, match="position is 16"):
        token_path(cached_pipeline("digits3-gaussian"), 2, 16, SamplingSettings(), 1)


def test_trajectories_end_where_the_decode_does():
    pipeline = cached_pipeline("digits-power_spherical")
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=5)
    steps = list(pipeline.steps([3], settings, 0))
    found = trajectories(pipeline, label=3, position=4, seeds=[0, 1], steps=5)
    assert found.points.shape == (6, 2, 3)
    assert_close(found.points[-1, 0], steps[4].raw[0], atol=1e-4, rtol=0)  # seed 0 goes the decode's own path
    guided = trajectories(pipeline, label=3, position=4, seeds=[0], steps=5, scale=6.0)
    assert float((guided.points[-1, 0] - found.points[-1, 0]).norm()) > 0.01
    with pytest.raises(ValueError, match="position is 16; expected 0 to 15"):
        trajectories(pipeline, 3, 16, [0])
    with pytest.raises(TypeError, match="CategoricalHead; expected a VelocityHead"):
        trajectories(cached_pipeline("digits-vq"), 3, 0, [0])
