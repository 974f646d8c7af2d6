"""Sheets of images drawn token by token, and the lengths laid over them."""

import math

import numpy as np
import pytest
import torch

from spherear.analysis.canvas import expected_length
from spherear.figures.length_overlay import overlay_lengths
from spherear.live.picture import Picture, paint
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sampling.pixels import free_path
from spherear.sampling.settings import SamplingSettings


def test_painting_fills_in_token_by_token():
    settings = SamplingSettings(guidance_scale=2.0, solver="euler", steps=2)
    picture = Picture(("digits-power_spherical", "digits-gaussian"), (1, 2), 3, settings, 2)
    states = list(paint(picture))
    assert [canvases[0].drawn for canvases in states] == list(range(17))
    for canvas, name in zip(states[-1], picture.models, strict=True):
        torch.testing.assert_close(
            canvas.images(), cached_pipeline(name).sample([1, 2], settings, seeds=3), rtol=0, atol=0
        )
    frames = list(cached_pipeline(picture.models[0]).stream([1, 2], settings, seeds=3))
    for frame, canvases in zip(frames, states[1:], strict=True):
        torch.testing.assert_close(canvases[0].images(), frame.images, rtol=0, atol=0)
    raw, _ = states[4][0].lengths()
    assert bool(raw[:, :4].isfinite().all())
    assert bool(raw[:, 4:].isnan().all())
    assert expected_length(cached_pipeline("digits-gaussian")) == pytest.approx(math.sqrt(3))


def test_a_picture_of_two_models_in_numpy_is_that_of_each():
    """Exactly: the rows of one are multiplied by its own weights alone."""
    names = "digits-power_spherical", "digits-gaussian"
    made = {name: Pipeline.from_pretrained(name, device="cpu", engine="numpy") for name in names}
    settings = SamplingSettings(guidance_scale=2.0, solver="adams_bashforth", steps=3)
    *_, together = paint(Picture(names, (1, 2), 3, settings, 2), made.__getitem__)
    for name, canvas in zip(names, together, strict=True):
        found = trace(made[name].steps([1, 2], settings, 3))
        assert canvas.pipeline is made[name]
        torch.testing.assert_close(canvas.raw, found.raw, rtol=0, atol=0)
        torch.testing.assert_close(canvas.tokens, found.tokens, rtol=0, atol=0)


def test_lengths_tint_their_own_patch_alone():
    white = np.full((2 * 17 * 2 + 2, 17 * 2 + 2, 3), 255, np.uint8)  # two images of 16 px below each other, zoom 2
    lengths = torch.full((2, 16), math.nan)
    lengths[1, 5] = 1.5
    tinted = overlay_lengths(white, lengths, 1.0, 1, 2)
    rows, columns = np.nonzero((tinted != white).any(axis=2))
    assert (rows.min(), rows.max()) == (2 + 34 + 8, 2 + 34 + 15)
    assert (columns.min(), columns.max()) == (2 + 8, 2 + 15)
    red, _, blue = tinted[2 + 34 + 8, 2 + 8].astype(int)
    assert red > blue  # longer is orange
    lengths[1, 5] = 0.5
    red, _, blue = overlay_lengths(white, lengths, 1.0, 1, 2)[2 + 34 + 8, 2 + 8].astype(int)
    assert blue > red  # shorter is blue
    assert (white == 255).all()


def test_a_free_path_is_free(tmp_path):
    path = tmp_path / "a.png"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "a-2.png").touch()
    assert free_path(path) == tmp_path / "a-3.png"
