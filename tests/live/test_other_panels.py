"""What the other panels say about themselves: amplified differences, models without a projection, spheres that turn."""

import numpy as np
import pytest
import torch

from spherear.analysis.perturbation import perturbed_decode
from spherear.figures.display import PNG, still
from spherear.live import PerturbationExplorer, SphereExplorer, TokenExplorer
from spherear.live.perturbation import amplification, rows
from tests.live.test_panels import settled


@pytest.fixture(scope="module")
def kicked():
    panel = settled(PerturbationExplorer(position=4, kind="radial", size=0.3, images=2))
    yield panel
    panel.close()


def test_differences_are_amplified_until_they_are_seen(kicked):
    """By one factor on both sides, which stands beside them; grey is still no difference."""
    request, pairs = kicked._pairs
    factor = amplification(pairs)
    assert factor > 1
    assert f"{factor} times their difference" in kicked.rows.value
    pair = pairs[1]
    size, zoom = pair.before.images().shape[-1], request.zoom
    sheet = rows(pair, zoom, factor).astype(int)
    step = (size + 1) * zoom
    below = sheet[zoom + 2 * step : zoom + 2 * step + size * zoom : zoom, zoom : zoom + size * zoom : zoom, 0]
    before, after = (canvas.images().clamp(-1, 1)[0, 0] for canvas in (pair.before, pair.after))
    expected = (127.5 * (factor * (after - before) / 2).clamp(-1, 1) + 128).clamp(0, 255).int().numpy()
    np.testing.assert_allclose(below, expected, atol=1)
    assert np.abs(expected - 128).max() > 40  # it is seen
    largest = float((after - before).abs().max()) / 2
    assert np.abs(127.5 * largest) < np.abs(expected - 128).max()  # and was less so


def test_no_difference_is_not_amplified():
    panel = settled(PerturbationExplorer(size=0.0, images=1))
    assert amplification(panel._pairs[1]) == 1
    panel.close()


def test_a_model_without_a_projection_has_one_side(kicked):
    """Where both decodes are the same, and the panel says why."""
    kicked.family.value = "digits-gaussian"
    settled(kicked)
    _, pairs = kicked._pairs
    torch.testing.assert_close(pairs[0].after.tokens, pairs[1].after.tokens, rtol=0, atol=0)
    assert "it has no projection" in kicked.headings[0].value
    assert kicked.columns[1].layout.display == "none"
    kicked.family.value = "digits-power_spherical"
    settled(kicked)
    assert kicked.columns[1].layout.display == ""
    assert "without the projection" in kicked.headings[1].value


def test_the_factor_is_that_of_an_independent_decode(kicked):
    request, _ = kicked._pairs
    pipeline = kicked.models.pipeline(request.model)
    pairs = [list(perturbed_decode(pipeline, request.perturbation, projected))[-1] for projected in (True, False)]
    assert f"{amplification(pairs)} times" in kicked.browser.texts["perturbation-grid-1"]


def test_spheres_turn_one_at_a_time_or_together():
    panel = settled(SphereExplorer(samples=10))
    assert "three dimensions" in panel.children[2].value
    layout = panel.spheres.layout
    before = [layout[name].camera.eye.x for name in ("scene", "scene2", "scene3")]
    assert before == pytest.approx([0, 0, 0], abs=1e-9)
    panel.which.value = 1
    panel.turn.value = 90
    assert [layout[name].camera.eye.x for name in ("scene", "scene2", "scene3")] == pytest.approx([0, 1.7, 0], abs=1e-9)
    panel.which.value = "all"
    panel.turn.value = 60
    eyes = {layout[name].camera.eye.x for name in ("scene", "scene2", "scene3")}
    assert len(eyes) == 1
    panel.close()


def test_labels_of_arrows_stand_on_different_sides():
    panel = settled(TokenExplorer())
    places = [trace.textposition for trace in panel.space.data[5:8]]
    assert len(set(places)) == 3
    for letter in "xyz":  # and arrows within the axes, with room for their names
        low, high = panel.space.layout.scene[f"{letter}axis"].range
        values = np.concatenate([np.asarray(trace[letter], float) for trace in panel.space.data])
        room = 0.1 * (values.max() - values.min())
        assert low < values.min() - room
        assert high > values.max() + room
    panel.close()


def test_a_still_is_marked_so_that_its_panel_takes_its_place():
    panel = settled(SphereExplorer(samples=10))
    data, metadata = still(panel, "three spheres")._repr_mimebundle_()
    assert metadata == {PNG: {"alt": "three spheres"}, "needs_background": "light"}
    assert data["text/plain"] == "three spheres"
    assert "jp-needs-light-background" in panel.browser._css
    panel.close()
