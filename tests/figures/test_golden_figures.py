"""Every figure's numbers (not pixels) against small golden files, and every figure's labels.

    python -m tests.figures.test_golden_figures     writes tests/golden/figures anew; read the difference first

A figure from formulas or records must agree to 1e-5 of its scale. One from models that draw tokens may differ in more:
another processor rounds otherwise, and sixteen tokens feed it back. Logarithmic axes are compared in decades.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from spherear.analysis.cost import cost
from spherear.analysis.diagnostics import norm_profile
from spherear.analysis.latents import token_variances, wrong_length
from spherear.analysis.trajectories import trajectories
from spherear.evaluation.classifier import load_classifier
from spherear.evaluation.metrics import frechet_distance
from spherear.figures import gallery
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
from spherear.models.presets import PRESETS
from spherear.study.records import shipped_records
from spherear.study.reference import held_out
from spherear.training.data.catalog import load_data
from tests.conftest import GOLDEN
from tests.figures.test_figures import labelled

FOLDER = GOLDEN / "figures"
POINTS = 9  # kept of a line
EXACT, DRAWN, DISCRETE = 1e-5, 2e-3, 0.02
WITH_CODES = {"figure3-tokens"}
"""A rounding can turn one code into another: of 200 images each that turns moves a mean by up to 1 / 200."""
FROM_FORMULAS = {
    "figure1-published", "figure4-guidance", "figure5-directions", "drift", "ablation", "lesson-kl", "solvers",
    "ablation-colour", "families-colour",
    "figure4-colour", "drift-colour", "lengths", "dimensions", "heads", "heads-colour", "decode-growth",
    "lesson-sequence", "lesson-rope", "lesson-costs",
}  # fmt: skip
FAMILIES = ("power_spherical", "gaussian")


def lesson_lengths() -> Figure:
    return lengths_figure({f: norm_profile(gallery.latents_of(f)[0]) for f in FAMILIES})


def lesson_variances() -> Figure:
    return variances_figure({f: token_variances(gallery.latents_of(f)[0]) for f in FAMILIES})


def lesson_ways() -> Figure:
    pipeline = gallery.shipped("power_spherical")
    return trajectories_figure(
        {f"{s:g}": trajectories(pipeline, 3, 9, range(6), steps=10, scale=s) for s in (1.0, 8.0)}
    )


def lesson_wrong_length() -> Figure:
    factors, images = (0.25, 0.5, 1.0, 2.0, 4.0), held_out("digits", 16)[0]
    errors = {f: wrong_length(gallery.shipped(f).vae, images[0], factors).errors for f in FAMILIES}
    return curves_figure(factors, errors, ("tokens made so many times as long", "change of a pixel"), log="x")


def lesson_more_images() -> Figure:
    """Frechet distances of some real digits to others, by how many there are."""
    counts, features = [50, 200, 800], load_classifier("digits").features
    with torch.no_grad():
        train = features(load_data("digits", 16).batch(torch.arange(800))[0])
        test = features(held_out("digits", 16)[0])
    distances = [frechet_distance(test, train[:count]) for count in counts]
    return curves_figure(counts, {"real digits": distances}, ("images", "Frechet distance"), log="x")


FIGURES: dict[str, Callable[[], Figure]] = {
    **gallery.FIGURES,
    "lesson-kl": lambda: kl_figure(shipped_records(), ("power_spherical", "normalized_gaussian", "gaussian")),
    "lesson-sequence": lambda: sequence_figure(4, 16),
    "lesson-rope": lambda: rope_figure(rope_table(4, 4, 24)),
    "lesson-costs": lambda: costs_figure([cost(name) for name in PRESETS]),
    "lesson-lengths": lesson_lengths,
    "lesson-variances": lesson_variances,
    "lesson-ways": lesson_ways,
    "lesson-wrong-length": lesson_wrong_length,
    "lesson-more-images": lesson_more_images,
}


def numbers(figure: Figure) -> dict[str, list[float]]:
    """What a figure shows, by a name for each thing: some points of lines, moments of clouds and images, bars."""
    found = {}
    for place, axis in enumerate(figure.axes):
        if axis.get_label() == "<colorbar>":
            continue
        for index, line in enumerate(axis.lines):
            xy = np.asarray(line.get_data(), dtype=float).T
            kept = xy[np.unique(np.linspace(0, len(xy) - 1, POINTS).round().astype(int))]
            found[f"{place}/line{index}/x"], found[f"{place}/line{index}/y"] = kept.T.tolist()
        for index, cloud in enumerate(axis.collections):
            values = _values(cloud)
            if np.size(values):
                found[f"{place}/cloud{index}"] = _moments(np.asarray(values, dtype=float).reshape(len(values), -1))
        for index, image in enumerate(axis.images):
            found[f"{place}/image{index}"] = _moments(np.asarray(image.get_array(), dtype=float).reshape(-1, 1))
        bars = [patch.get_height() for patch in axis.patches if hasattr(patch, "get_height")]
        if bars:
            found[f"{place}/bars"] = bars
    return {name: [float(f"{value:.6g}") for value in values] for name, values in found.items()}


def _values(cloud: Collection) -> np.ndarray:
    """Of a mesh its colours, of points where they are, of a band or a net its corners."""
    if cloud.get_array() is not None:
        return cloud.get_array()
    if isinstance(cloud, Line3DCollection):
        return np.concatenate(cloud._segments3d)
    if isinstance(cloud, PathCollection):
        return np.array(cloud._offsets3d).T if hasattr(cloud, "_offsets3d") else cloud.get_offsets()
    return np.concatenate([path.vertices for path in cloud.get_paths()])


def _moments(values: np.ndarray) -> list[float]:
    return [float(len(values)), *values.mean(axis=0).tolist()[:3], *values.std(axis=0).tolist()[:3]]


def logarithmic(figure: Figure) -> set[str]:
    """The names of numbers that stand on logarithmic axes."""
    scales = {"x": "get_xscale", "y": "get_yscale"}
    return {
        f"{place}/line{index}/{side}"
        for place, axis in enumerate(figure.axes)
        for side, get in scales.items()
        if getattr(axis, get)() == "log"
        for index, _ in enumerate(axis.lines)
    }


def differences(golden: dict[str, list[float]], found: dict[str, list[float]], logs: set[str]) -> dict[str, float]:
    """By name, the largest difference relative to the scale of its numbers; of logarithmic ones, in decades of ten."""
    assert golden.keys() == found.keys()
    off = {}
    for name, expected in golden.items():
        a, b = (np.asarray(values) for values in (expected, found[name]))
        assert a.shape == b.shape, name
        if name in logs:
            a, b = np.log10(a) / 10, np.log10(b) / 10
        scale = 1.0 if name in logs else max(float(np.abs(a).max()), 1e-9)
        off[name] = float(np.abs(a - b).max() / scale)
    return off


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_shows_the_golden_numbers(name):
    figure = labelled(FIGURES[name]())
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    off = differences(golden, numbers(figure), logarithmic(figure))
    limit = EXACT if name in FROM_FORMULAS else DISCRETE if name in WITH_CODES else DRAWN
    beyond = {part: value for part, value in off.items() if not value <= limit}  # what is not a number is not, either
    assert not beyond, f"off by these shares of their scales; expected {limit:g} at most: {beyond}"


def test_golden_files_are_those_of_the_figures():
    paths = sorted(FOLDER.glob("*.json"))
    assert sorted(path.stem for path in paths) == sorted(FIGURES)
    assert sum(path.stat().st_size for path in paths) < 200_000
    for path in paths:
        clouds = {name: values for name, values in json.loads(path.read_text()).items() if "cloud" in name}
        assert all(any(values[1:]) for values in clouds.values()), path.stem


def test_what_differs_is_seen():
    golden = {"0/line0/x": [1.0, 2.0], "0/line0/y": [1.0, 100.0]}
    assert differences(golden, golden, set()) == {"0/line0/x": 0.0, "0/line0/y": 0.0}
    moved = {**golden, "0/line0/y": [1.0, 110.0]}
    assert differences(golden, moved, set())["0/line0/y"] == pytest.approx(0.1)
    assert differences(golden, moved, {"0/line0/y"})["0/line0/y"] == pytest.approx(math.log10(1.1) / 10)
    assert math.isnan(differences(golden, {**golden, "0/line0/y": [1.0, math.nan]}, set())["0/line0/y"])
    with pytest.raises(AssertionError):
        differences(golden, {"0/line0/x": [1.0, 2.0]}, set())


def test_bands_and_clouds_are_seen():
    figure = Figure()
    flat, solid = figure.add_subplot(121), figure.add_subplot(122, projection="3d")
    flat.fill_between([0, 1], [0, 0], [2, 2])
    flat.scatter([1.0, 3.0], [5.0, 7.0])
    solid.scatter([1.0, 3.0], [5.0, 7.0], [0.0, 4.0])
    found = numbers(figure)
    assert found["0/cloud1"] == [2, 2, 6, 1, 1]
    assert found["1/cloud0"] == [2, 2, 6, 2, 1, 1, 2]
    flat.fill_between([0, 1], [0, 0], [4, 4])
    assert numbers(figure)["0/cloud2"][2] == pytest.approx(2 * found["0/cloud0"][2], rel=1e-5) != 0  # twice as high


def main(*names: str) -> None:
    """Write the golden files (those named, or all), one number after another, small enough to be read."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or FIGURES:
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(numbers(FIGURES[name]()), indent=0).replace(",\n", ", ") + "\n")
        print(Path(path).name, path.stat().st_size)


if __name__ == "__main__":
    main(*sys.argv[1:])
