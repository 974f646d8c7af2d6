"""Figures show the data they are given: lines, labels, limits; and the numbers modules behind them."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from spherear import Pipeline, SamplingSettings
from spherear.analysis.densities import direction_laws, projected_gaussian_log_density
from spherear.analysis.diagnostics import (
    EffectiveRank,
    RadialShare,
    compare_norms,
    projection_jacobian,
    spread_histogram,
)
from spherear.analysis.latents import TokenLaws, collapse_row, token_laws
from spherear.analysis.perturbation import ErrorGrowth
from spherear.analysis.trajectories import overview
from spherear.bench.growth import Growth
from spherear.figures import diagnostics as plots
from spherear.figures.paper import (
    direction_laws_figure,
    direction_laws_figure_3d,
    overview_figure,
    published_fid_figure,
    token_laws_figure,
    token_laws_figure_3d,
)
from spherear.figures.published_scores import ABLATION, PUBLISHED
from spherear.figures.study import (
    ablation_figure,
    ablation_table,
    curve,
    decode_time_figure,
    drift_figure,
    guidance_figure,
    has_ablation,
    report,
    write_report,
)
from spherear.sampling.decode import trace
from spherear.sphere.bottlenecks import BOTTLENECKS
from spherear.sphere.families import FAMILIES
from tests.study.test_claims import FAMILIES as VARIANTS
from tests.study.test_claims import record, study

F64 = torch.float64


def labelled(figure):
    """No axis of the figure is without labels, and nothing was drawn outside of it: no line, and no legend's word."""
    figure.canvas.draw()
    for legend in figure.legends + [legend for axis in figure.axes if (legend := axis.get_legend())]:
        box = legend.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, [text.get_text() for text in legend.get_texts()]
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.height, [text.get_text() for text in legend.get_texts()]
    for axis in figure.axes:
        if axis.get_visible() and axis.get_label() != "<colorbar>":
            assert axis.get_xlabel(), axis.get_title()
            assert axis.get_ylabel() or len(axis.get_shared_y_axes().get_siblings(axis)) > 1, axis.get_title()
            lines = [line.get_xydata() for line in axis.lines if line.get_transform() == axis.transData]
            (low, high), (bottom, top) = axis.get_xlim(), sorted(axis.get_ylim())
            for data in lines:
                if axis.name != "3d" and axis.get_title() != "one is axially symmetric, one is not":
                    assert (data[:, 0] >= low).all()
                    assert (data[:, 0] <= high).all()
                    assert (data[:, 1] >= bottom).all()
                    assert (data[:, 1] <= top).all()
    assert plt.get_fignums() == []
    return figure


def lines(axis):
    """Labelled lines of an axis: name -> (x, y)."""
    return {line.get_label(): line.get_data() for line in axis.lines if not line.get_label().startswith("_")}


def test_every_family_has_its_own_look():
    assert sorted(FAMILIES) == sorted(BOTTLENECKS)
    for field in ("color", "marker", "letter", "name"):
        assert len({getattr(look, field) for look in FAMILIES.values()}) == len(FAMILIES)


def test_published_numbers_are_drawn_as_published():
    figure = labelled(published_fid_figure())
    (axis,) = figure.axes
    assert "Published" in axis.get_title()
    drawn = {(x, y) for xs, ys in lines(axis).values() for x, y in zip(xs, ys, strict=True)}
    assert drawn == {(model.parameters, model.fid) for model in PUBLISHED}
    assert {text.get_text() for text in axis.texts} == {model.name for model in PUBLISHED}


def three_seeds():
    """Frechet distances that are best at guidance 2, and 0.1 higher from seed to seed."""
    points = ((1.0, 1.5), (2.0, 1.0), (12.0, 10.0))
    return [
        record(variant, family, seed, scale, factor * (base / 10 + 0.1 * seed))
        for seed in range(3)
        for variant, (family, base) in VARIANTS.items()
        for scale, factor in points
    ]


def test_guidance_figure_draws_means_and_bands():
    records = three_seeds()
    figure = labelled(guidance_figure(records))
    (axis,) = [a for a in figure.axes if a.get_title().startswith("G ")]
    x, y = lines(axis)["G-04 (3 seeds)"]
    assert list(x) == [1.0, 2.0, 12.0]
    assert list(y) == pytest.approx([1.5 * 3.1, 3.1, 31.0])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(31.0 + 1.0)  # one standard deviation of 10 x (3.0, 3.1, 3.2)
    assert len([a for a in figure.axes if a.get_visible()]) == 4  # D is of the ablation alone


def test_drift_figure_has_a_line_per_family_in_every_panel():
    records = three_seeds()
    both = records + [replace(r, metric="norm_change_late", value=r.value / 100) for r in records]
    figure = labelled(drift_figure(both, ("norm_change_late", "frechet")))
    for axis in figure.axes:
        assert {name.split()[0] for name in lines(axis)} == {"S-04", "N-04", "G-04", "F-02"}
    assert figure.legends[0].get_title().get_text().startswith("3 seeds")
    with pytest.raises(ValueError, match=r"no records of 'speed' of S-04; there are some of \['frechet'"):
        drift_figure(both, ("speed",))


def test_floor_and_reconstruction_are_drawn():
    records = study()
    figure = labelled(guidance_figure(records))
    (axis,) = [a for a in figure.axes if a.get_title().startswith("G ")]
    drawn = lines(axis)
    assert set(drawn["real images"][1]) == {0.5}
    reconstruction = [r.value for r in records if r.metric == "reconstruction_frechet" and r.variant == "G-04"]
    assert drawn["G-04 reconstructed"][1][0] == pytest.approx(np.mean(reconstruction))
    assert "real images" in lines(drift_figure(records, ("frechet",)).axes[0])


def test_curve_leaves_other_ways_of_sampling_out():
    rows = [*three_seeds(), record("S-04", "power_spherical", 0, 2.0, 99.0, schedule="constant")]
    assert curve(rows, "S-04", "frechet")[1] == pytest.approx([1.65, 1.1, 11.0])


def test_ablation_stands_beside_the_published():
    figure = labelled(ablation_figure(three_seeds()))
    measured, published = figure.axes
    assert measured.get_yticklabels()[0].get_text() == "none (Gaussian)"
    assert [float(line.get_xdata()[0]) for line in published.lines] == [fid for _, fid in ABLATION.values()]
    assert "published" in published.get_title()
    table = ablation_table(three_seeds()).splitlines()
    assert table[2] == "| none (Gaussian): G-04 | 2 | 3.1 ± 0.1 | 2.97 |"
    assert len(table) == 6


def test_the_ablation_is_of_one_kl_weight():
    """That of all four rows; a study without one has no ablation, and can still be reported."""
    every = three_seeds()
    low = [replace(r, kl_weight=0.002, variant=r.variant[:-2] + "02", value=r.value / 2, data="shapes") for r in every]
    three = [r for r in low if r.family != "power_spherical"]
    assert not has_ablation(three)
    assert has_ablation([*every, *three])
    for draw in (ablation_figure, ablation_table):
        with pytest.raises(ValueError, match="were measured at one KL weight; expected so"):
            draw(three)
    assert ablation_table([*every, *three]) == ablation_table(every)
    assert "| none (Gaussian): G-02 | 2 | 1.55 ± 0.05 | 2.97 |" in ablation_table(low)
    assert "Frechet distance (shapes)" in ablation_table(low)
    title, _ = (axis.get_title() for axis in labelled(ablation_figure(low)).axes)
    assert title == "here: shapes, 3 seeds, bar: mean"


def test_a_report_is_files_to_augmentation_at(tmp_path):
    records = study(range(12))
    paths = write_report(records, tmp_path)
    assert [p.name for p in paths] == ["guidance.png", "drift.png", "ablation.png", "claims.md"]
    assert all(p.stat().st_size > 0 for p in paths)
    text = report(records)
    assert "`test`: 60 trained models, 12 seeds" in text
    assert "between two sets of real\nimages: 0.5." in text
    assert (text.count("**confirmed**"), text.count("**")) == (21, 42)
    assert report(study((0, 1))).count("**not enough**") == 21
    assert report([r for r in records if r.family in ("gaussian", "power_spherical")]).count("**") == 2 * 6


def test_points_are_chosen_on_the_records_given_for_it(tmp_path):
    """The selection finds G best at 12, the report at 2: what is reported is G at 12."""
    records = study(range(6))
    chosen = [replace(r, value=0.0) if (r.variant, r.guidance_scale) == ("G-04", 12.0) else r for r in study((6, 7))]
    text = write_report(records, tmp_path, chosen)[-1].read_text()
    assert "| S-04 at 2: 10.1 ± " in text
    assert "| G-04 at 12: 40" in text
    assert "G-04 at 12" not in write_report(records, tmp_path / "own")[-1].read_text()


def growth(kind, size, projected, pixels):
    return ErrorGrowth(kind, 2, size, projected, torch.tensor([0.0, 0.0, 1.0, 0.5], dtype=F64), pixels)


def test_growth_figure():
    growths = [growth("radial", s, p, 0.0 if p else s) for s in (0.01, 0.1) for p in (True, False)]
    left, right = labelled(plots.perturbation_growth_figure(growths)).axes
    assert list(lines(right)["radial, not projected"][1]) == [0.01, 0.1]
    assert list(lines(right)["radial, projected"][1]) == [1e-12, 1e-12]
    assert list(lines(left)["radial, projected"][1]) == [1e-12, 1e-12, 1.0, 0.5]
    for name, order in (("slope 1", 1), ("slope 2", 2)):
        x, y = lines(right)[name]
        assert math.log(y[1] / y[0]) / math.log(x[1] / x[0]) == pytest.approx(order)


@pytest.fixture(scope="module")
def shipped():
    return Pipeline.from_pretrained("digits-power_spherical")


@pytest.fixture(scope="module")
def image():
    from spherear.training.data.catalog import load_data

    images, labels = load_data("digits:test", 16).batch(torch.arange(40))
    return images, labels


def test_collapse_figure_shows_norms_beside_images(shipped, image):
    latents = shipped.vae.encode(image[0], torch.Generator().manual_seed(0)).sample
    row = collapse_row(shipped, latents, (1.0, 8.0), images=20, shown=5, steps=4)
    settings = SamplingSettings(8.0, steps=4)
    raw = trace(shipped.steps(torch.arange(20) % 10, settings, 0)).raw
    assert_close(row.norms[1].relative, compare_norms(raw, latents).relative)
    assert_close(row.images[1], shipped.sample(torch.arange(5), settings, 0), atol=1e-4, rtol=0)
    figure = labelled(plots.collapse_figure([row, row]))
    assert len(figure.axes) == 4
    assert_close(torch.tensor(lines(figure.axes[0])["8"][1]), row.norms[1].relative)
    assert figure.axes[0].get_title() == "S Power Spherical"


def test_a_sheet_of_scales_says_what_stands_where():
    panels = {name: [torch.full((10, 3, 8, 8), level) for level in (-1.0, 1.0)] for name in ("S", "G")}
    captions = {name: [f"{name} first", f"{name} second"] for name in panels}
    figure = labelled(plots.scales_sheet_figure(panels, captions, (1.0, 20.0)))
    assert [axis.get_title() for axis in figure.axes] == ["guidance 1", "guidance 20", "", ""]
    assert [axis.get_xlabel() for axis in figure.axes] == ["S first", "S second", "G first", "G second"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["S", "", "G", ""]
    assert [axis.images[0].get_array()[1, 1, 0] for axis in figure.axes] == [0, 255, 0, 255]
    with pytest.raises(ValueError, match="shorter"):
        plots.scales_sheet_figure(panels, captions, (1.0, 4.5, 20.0))


def test_overview_follows_a_real_decode(shipped, image):
    seen = overview(shipped, image[0][0], int(image[1][0]), position=5, steps=10, seed=3)
    settings = SamplingSettings(guidance_scale=1.0, solver="euler", steps=10)
    step = list(shipped.steps([int(image[1][0])], settings, 3))[5]
    assert_close(seen.raw, step.raw[0], atol=0, rtol=0)
    assert_close(seen.path[-1], step.raw[0], atol=1e-4, rtol=0)
    assert_close(shipped.vae.project(seen.raw), seen.token, atol=1e-5, rtol=0)
    assert len(seen.path) == len(seen.times) == 11
    assert_close(seen.drawn, shipped.sample([int(image[1][0])], settings, 3)[0], atol=0, rtol=0)
    figure = labelled(overview_figure(seen))
    way = figure.axes[5]
    assert_close(torch.tensor(way.lines[0].get_xydata()), seen.path[:, :2].to(F64), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="position is 16; expected 0 to 15"):
        overview(shipped, image[0][0], 3, position=16)


def test_projected_gaussian_density_is_the_radial_integral():
    laws = direction_laws(mean=(0.3, -0.2, 0.8), sigma=(0.5, 0.2, 0.3), resolution=60)
    mean, sigma = (torch.tensor(x, dtype=F64) for x in (laws.mean, laws.sigma))
    r = torch.linspace(0, 6, 6001, dtype=F64)
    for u in laws.points[::17, ::31].flatten(0, 1):
        density = torch.distributions.Normal(mean, sigma).log_prob(r[:, None] * u).sum(-1).exp()
        expected = torch.trapezoid(r.square() * density, r)
        assert_close(projected_gaussian_log_density(u, mean, sigma).exp(), expected, rtol=1e-6, atol=1e-12)


def test_direction_laws_are_densities():
    laws = direction_laws(resolution=120)
    area = (math.pi / 120) ** 2 * laws.polar.sin()[:, None]
    for density in (laws.spherical, laws.projected):
        assert float((density * area).sum()) == pytest.approx(1.0, abs=1e-3)
    wide = direction_laws(kappa=0.0, mean=(0.0, 0.0, 0.0), sigma=(1.0, 1.0, 1.0), resolution=10)
    assert_close(wide.spherical, torch.full_like(wide.spherical, 1 / (4 * math.pi)))
    assert_close(wide.projected, torch.full_like(wide.projected, 1 / (4 * math.pi)))


def test_projected_gaussian_density_is_that_of_draws():
    """The polar angle of 20,000 projected draws against the density, summed over azimuths."""
    laws = direction_laws(resolution=200)
    y = torch.tensor(laws.mean) + torch.tensor(laws.sigma) * torch.randn(
        20_000, 3, generator=torch.Generator().manual_seed(0)
    )
    polar = torch.acos((y / y.norm(dim=-1, keepdim=True))[:, 2].double())
    mass = (laws.projected.sum(1) * laws.polar.sin()).cumsum(0)
    edges = torch.arange(201) * math.pi / 200
    upto = np.concatenate(([0.0], (mass / mass[-1]).numpy()))
    assert stats.kstest(polar.numpy(), lambda angle: np.interp(angle, edges.numpy(), upto)).pvalue > 0.01


def test_direction_laws_figure():
    laws = direction_laws(resolution=40)
    figure = labelled(direction_laws_figure(laws))
    profile = next(axis for axis in figure.axes if axis.lines)
    assert_close(torch.tensor(lines(profile)["Power Spherical, anywhere"][1]), laws.spherical[:, 0])
    turning = direction_laws_figure_3d(laws)
    assert [trace.name for trace in turning.data] == ["Power Spherical", "Gaussian, projected"]
    for surface, density, shift in zip(turning.data, (laws.spherical, laws.projected), (-1.2, 1.2), strict=True):
        assert surface.surfacecolor.shape == (42, 81)
        assert surface.surfacecolor[1:-1, :-1] == pytest.approx(density.numpy(), rel=1e-6)
        for pole, height in ((0, 1), (-1, -1)):  # no hole: the first and the last ring are points, on the axis
            assert np.abs(surface.x[pole] - shift).max() < 1e-6
            assert np.abs(surface.y[pole]).max() < 1e-6
            assert surface.z[pole] == pytest.approx(height, abs=1e-3)
            assert surface.surfacecolor[pole] == pytest.approx(float(density[pole].mean()), rel=1e-5)


def test_token_laws_of_the_models_that_ship():
    models = [Pipeline.from_pretrained(f"digits3-{name}") for name in ("vq", "gaussian", "power_spherical")]
    laws = token_laws(*models, positions=(0, 7, 15), label=3, images=20, steps=3)
    assert laws.discrete.shape == laws.gaussian.shape == laws.sphere.shape == (3, 20, 3)
    assert_close(laws.discrete.sum(-1), torch.ones(3, 20), atol=1e-5, rtol=0)
    assert_close(laws.sphere.norm(dim=-1), torch.full((3, 20), math.sqrt(3)), atol=1e-5, rtol=0)
    assert laws.gaussian.norm(dim=-1).std() > 0.1
    with pytest.raises(ValueError, match="the discrete model has 0 codes; expected 3"):
        token_laws(models[1], models[1], models[2], positions=(0,), label=3)


def test_token_laws_figures():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(3, 9, 3, generator=generator)
    laws = TokenLaws(
        (0, 7, 15), points / points.sum(-1, keepdim=True), points, points / points.norm(dim=-1, keepdim=True)
    )
    figure = labelled(token_laws_figure(laws))
    simplex = figure.axes[0]
    place = torch.tensor(simplex.collections[0].get_offsets().data)
    _, second, third = laws.discrete[0].double().unbind(-1)
    assert_close(place[:, 0], second + third / 2, atol=1e-6, rtol=0)
    assert_close(place[:, 1], third * math.sqrt(0.75), atol=1e-6, rtol=0)
    turning = token_laws_figure_3d(laws, "gaussian")
    assert_close(torch.tensor(turning.data[1].x), laws.gaussian[1, :, 0])
    assert [trace.name for trace in turning.data] == ["token 1", "token 8", "token 16"]


def test_small_figures_show_their_numbers():
    histogram = spread_histogram(torch.linspace(0, 1, 100))
    axis = labelled(plots.spread_figure({"gaussian": histogram, "vmf": histogram})).axes[1]
    assert axis.get_xlabel() == "concentration"
    jacobian = projection_jacobian(lambda z: z / z.norm(), torch.ones(4))
    images = [a.images[0].get_array() for a in labelled(plots.jacobian_figure(jacobian)).axes if a.images]
    assert_close(torch.tensor(images[0].data), jacobian.measured)
    rank = EffectiveRank(1.9, torch.tensor([0.6, 0.4], dtype=F64))
    (axis,) = labelled(plots.rank_figure({"vq": rank})).axes
    assert list(lines(axis)["VQ vector quantised: 1.9"][1]) == [0.6, 0.4]
    share = RadialShare(torch.tensor([0.1, 0.3], dtype=F64), 0.2, 0.125)
    (axis,) = labelled(plots.radial_share_figure({"gaussian": share})).axes
    assert list(lines(axis)["G Gaussian: 0.20"][1]) == [0.1, 0.3]


def test_growth_is_drawn_with_its_line():
    growth = Growth("digits", 1, [0.1 * n for n in range(1, 17)], 0.1, 1.0, 0.1, 0.1)
    total, each = labelled(decode_time_figure(growth)).axes
    measured, line = (axis.get_ydata() for axis in total.lines)
    assert list(measured) == growth.upto
    assert list(line) == pytest.approx(growth.upto)
    assert list(each.lines[0].get_ydata()) == pytest.approx([100.0] * 15)
