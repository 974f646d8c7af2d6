"""The sphere's advantage against the length: ratios by closed forms, intervals by scipy, and what is refused."""

import re
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from scipy import stats

from spherear.figures.sizes import sizes_figure
from spherear.study.cell import sizes_of
from spherear.study.claims import flagged
from spherear.study.design import GRIDS, Variant
from spherear.study.questions.sizes import STUDIES, advantages, growths, report, shipped_advantages, shipped_report
from spherear.study.records import Record
from spherear.study.statistics import contrast

FAMILIES = {"power_spherical": "S-02", "gaussian": "G-04", "fixed_variance": "F-04"}
FACTORS = {"power_spherical": 1.0, "gaussian": 1.5, "fixed_variance": 1.2}
NOISE = (0.97, 1.01, 1.02)


def made(growth, seeds=3):
    """Records in which every family is its factor above S, times `growth` at guidance 12."""
    records = []
    for family, variant in FAMILIES.items():
        for seed in range(seeds):
            for scale in (1.0, 12.0):
                times = growth if scale == 12.0 and family != "power_spherical" else 1.0
                for metric, value in (
                    ("frechet", 2.0 * FACTORS[family] * times * NOISE[seed]),
                    ("norm_change_late", 0.1 * times - 0.1),
                ):
                    records.append(
                        Record(
                            variant, family, 0.004, 0.0, seed, scale, "linear", True, True, metric, value, 1000,
                            "shapes", "a test", "0", "none",
                        )
                    )  # fmt: skip
    return records


def test_a_contrast_is_welchs():
    a, b = [1.0, 2.0, 4.0], [0.5, 0.7, 0.4, 0.6]
    found = contrast([a, b], (1, -1))
    test = stats.ttest_ind(a, b, equal_var=False)
    half = stats.t.ppf(0.975, int(test.df)) * (np.mean(a) - np.mean(b)) / test.statistic
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.high - found.mean, found.mean - found.low) == pytest.approx((half, half), rel=1e-3)
    assert contrast([a, b, a, b], (1, -1, -1, 1)).mean == pytest.approx(0)
    with pytest.raises(ValueError, match=r"groups have \[3, 1\] values; expected at least 2 each"):
        contrast([a, [1.0]], (1, -1))
    with pytest.raises(ValueError, match="no group varies"):
        contrast([[1.0, 1.0], [2.0, 2.0]], (1, -1))


def test_the_interval_of_a_contrast_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    scales = np.array([0.5, 1.0, 2.0, 1.0])
    held = []
    for _ in range(2000):
        groups = [list(row) for row in scales[:, None] * generator.standard_normal((4, 3))]
        found = contrast(groups, (1, -1, -1, 1))
        held.append(found.low <= 0 <= found.high)
    assert 0.94 <= np.mean(held) <= 0.995  # degrees of freedom are rounded down: rather too wide


def test_ratios_and_their_growth_are_those_that_were_put_in():
    found = advantages({16: made(1.0), 64: made(1.3), 256: made(1.6)})
    assert [(a.size, a.family, a.guidance_scale) for a in found[:4]] == [
        (16, "gaussian", 1.0), (16, "gaussian", 12.0), (16, "fixed_variance", 1.0), (16, "fixed_variance", 12.0),
    ]  # fmt: skip
    for a in found:
        times = {16: 1.0, 64: 1.3, 256: 1.6}[a.size] if a.guidance_scale == 12 else 1.0
        assert a.ratio == pytest.approx(FACTORS[a.family] * times)
        assert a.logs.low < log(a.ratio) < a.logs.high
        assert set(a.lengths.values()) == {0.1 * times - 0.1}
        assert set(a.sphere_lengths.values()) == {0.0}
    for row in growths(found):
        assert row.sizes == (16, 256)
        assert exp(row.logs.mean) == pytest.approx(1.6 if row.guidance_scale == 12 else 1.0)
    text = report(found)
    assert re.search(r"\| G Gaussian \| 12 \| 1\.60 \[1\.\d\d, 1\.\d\d\] \| grows \|", text)
    assert re.search(r"\| G Gaussian \| 1 \| 1\.00 \[0\.\d\d, 1\.\d\d\] \| undecided \|", text)
    assert "| shrinks |" in report(advantages({16: made(1.6), 64: made(1.0)}))


def test_cells_whose_vae_still_learnt_are_left_out():
    """Their seed is missing on their side alone; the report names them."""
    records = made(1.0)
    slopes = [replace(r, metric="vae_slope", value=-0.01 - 0.05 * (r.variant == "G-04" and r.seed == 2))
              for r in records if r.metric == "frechet" and r.guidance_scale == 1.0]  # fmt: skip
    found = {a.family: a for a in advantages({16: [*records, *slopes]})}
    assert (set(found["gaussian"].values), set(found["gaussian"].sphere)) == ({0, 1}, {0, 1, 2})
    assert set(found["gaussian"].lengths) == {0, 1}
    assert set(found["fixed_variance"].values) == {0, 1, 2}
    assert flagged([*records, *slopes], "at 16 tokens").startswith("Not compared at 16 tokens, because the loss of")
    assert flagged([*records, *slopes]).endswith(" last step: G-04 seed 2.\n\n")
    assert flagged(records) == ""
    assert shipped_report("tokens").startswith("Not compared at 16 tokens, because the loss of their VAE still fell")
    assert "last step: F-04 seed 0, N-02 seed 2.\n" in shipped_report("tokens")
    assert shipped_report("numbers per token").startswith("Frechet distance of each family")


def test_families_that_change_places_are_seen():
    names = {"gaussian": "power_spherical", "power_spherical": "gaussian", "fixed_variance": "fixed_variance"}
    swapped = [replace(r, family=names[r.family], variant=FAMILIES[names[r.family]]) for r in made(1.0)]
    (before, after) = (advantages({64: rows})[0] for rows in (made(1.0), swapped))
    assert (before.family, after.family) == ("gaussian", "gaussian")
    assert before.ratio == pytest.approx(1.5)
    assert after.ratio == pytest.approx(1 / 1.5)


def test_one_seed_is_left_out_and_two_variants_are_refused():
    assert advantages({64: made(1.0, seeds=1)}) == []
    assert growths(advantages({64: made(1.3)})) == []
    other = [replace(r, variant="G-02") for r in made(1.0) if r.family == "gaussian"]
    with pytest.raises(ValueError, match=r"gaussian has variants \['G-02', 'G-04'\] at size 64; expected one"):
        advantages({64: [*made(1.0), *other]})
    with pytest.raises(ValueError, match="there are no families beside S"):
        sizes_figure([])


def test_the_figure_draws_every_size_and_s_beside_it():
    figure = sizes_figure(advantages({16: made(1.0), 64: made(1.3)}))
    above, below = figure.axes[0], figure.axes[2]
    assert (above.get_title(), below.get_title()) == ("G Gaussian", "")
    drawn = [line.get_ydata()[-1] for line in above.get_lines() if line.get_label().endswith("(3 seeds)")]
    assert drawn == pytest.approx([1.5, 1.5 * 1.3])
    lengths = {line.get_label(): line.get_ydata()[-1] for line in below.get_lines()}
    assert lengths["64 tokens (3 seeds)"] == pytest.approx(0.03)
    assert lengths["S at 64"] == pytest.approx(0.0)


def test_lengths_drift_less_the_more_numbers_a_token_has():
    """Of late tokens at guidance 12, in every pair of seeds: G by a half to all of it at two numbers, S by little."""
    own = [a for a in shipped_advantages("numbers per token") if (a.family, a.guidance_scale) == ("gaussian", 12.0)]
    (two, four, eight) = (list(a.lengths.values()) for a in own)
    assert [a.size for a in own] == [2, 4, 8]
    assert min(two) > max(four) > min(four) > max(eight) > 0.2
    assert max(value for a in own for value in a.sphere_lengths.values()) < 0.07


def test_every_size_has_its_study():
    for what, size_of in (("tokens", lambda ar: ar.tokens), ("numbers per token", lambda ar: ar.latent_dim)):
        for size, study in STUDIES[what].items():
            grid = GRIDS[study]
            sizes = sizes_of(grid, Variant.named(grid.variants[0]))
            assert size_of(sizes.ar) == size
            assert set(grid.variants) <= set(GRIDS["length64"].variants)
            assert set(grid.scales) <= set(GRIDS["length64"].scales)


def test_what_ships_has_two_sizes_of_every_family():
    found = shipped_advantages("tokens")
    for family in ("normalized_gaussian", "gaussian", "fixed_variance"):
        assert {a.size for a in found if a.family == family} == {16, 64, 256}
    assert "| tokens | family |" in report(found, "tokens")
    found = shipped_advantages("numbers per token")
    for family in ("normalized_gaussian", "gaussian"):
        assert {a.size for a in found if a.family == family} == {2, 4, 8}
        assert {len(side) for a in found for side in (a.values, a.sphere)} == {3}
    assert {a.family for a in found} == {"normalized_gaussian", "gaussian"}
    with pytest.raises(ValueError, match="there are no families beside S"):
        report([])
