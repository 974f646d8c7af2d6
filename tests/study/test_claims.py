"""Statements held against records made up to confirm, contradict or leave them open."""

import math
import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from spherear.study.claims import FLOORS, Best, best, by_seed, claims, claims_table, floor, halves, spread, unfinished
from spherear.study.records import Record

SELECTION, REPORT = (6, 7), range(6)


def record(variant, family, seed, scale, value, kl_weight=0.004, **changes):
    fields = {
        "noise_scale": 0.0, "schedule": "linear", "project_ar": True, "project_decoder": True, "metric": "frechet",
        "images": 10, "data": "digits", "command": "test", "commit": "none", "hardware": "none",
    } | changes  # fmt: skip
    return Record(
        variant=variant, family=family, kl_weight=kl_weight, seed=seed, guidance_scale=scale, value=value, **fields
    )


FAMILIES = {
    "S-04": ("power_spherical", 10.0),
    "N-04": ("normalized_gaussian", 20.0),
    "D-04": ("decoder_normalized", 25.0),
    "G-04": ("gaussian", 30.0),
    "F-02": ("fixed_variance", 40.0),
}
SHIFTS = {"norm_change_late": 0.0, "raw_variance_ratio": 1.0, "saturation_shift": 0.0}


def study(seeds=(*REPORT, *SELECTION), steep=10.0, decoder_off=50.0, ar_off=60.0, shift=0.2, noise=0.1):
    """Best at guidance 2, all families in the paper's order; the free ones shift by `shift`, others by 0.02."""
    rows, rng = [], random.Random(0)
    for seed in seeds:
        rows.append(record("S-04", "power_spherical", seed, 1.0, 0.5, metric="floor_frechet"))
        for variant, (family, base) in FAMILIES.items():
            free = family in ("gaussian", "fixed_variance")

            points = [
                (1.0, 1.5 * base, {}),
                (2.0, base, {}),
                (12.0, base + (steep if free else 5.0), {}),
                (4.5, decoder_off, {"project_decoder": False}),
                (4.5, ar_off, {"project_ar": False}),
                (1.0, base / 5, {"metric": "kl"}),
                (1.0, base / 5, {"metric": "reconstruction_frechet"}),
            ]
            for scale, value, fields in points:
                rows.append(record(variant, family, seed, scale, value + noise * rng.random(), **fields))
            for metric, origin in SHIFTS.items():
                size = (shift if free else 0.02) * (1 + 0.01 * rng.random())
                value = origin - size if seed % 2 else origin + size
                rows.append(record(variant, family, seed, 12.0, value, metric=metric))
    return rows


def split(rows):
    """(report, selection)."""
    return [r for r in rows if r.seed in REPORT], [r for r in rows if r.seed in SELECTION]


def told(rows, high=12.0, ablation=4.5):
    report, selection = split(rows)
    return {claim.statement.text: claim for claim in claims(report, high, ablation, selection)}


def test_a_cell_below_its_plateau_is_not_compared():
    rows = study()
    slopes = [
        record("G-04", "gaussian", seed, 1.0, -0.2 if seed == 3 else -0.01, metric="vae_slope") for seed in REPORT
    ]
    text = "S is below G, each at its best guidance"
    assert 3 in told(rows)[text].statement.right
    flagged = told(rows + slopes)[text].statement
    assert (sorted(flagged.left), sorted(flagged.right)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5])
    assert unfinished(rows + slopes) == [("G-04", 3)]
    rising = [record("S-04", "power_spherical", 0, 1.0, 0.2, metric="vae_slope")]
    assert unfinished(rows + rising) == []


def test_best_is_the_lowest_mean():
    rows = [record("S-04", "power_spherical", s, g, v) for s, g, v in ((0, 1.0, 3.0), (1, 1.0, 1.0), (0, 2.0, 1.9))]
    rows.append(record("S-04", "power_spherical", 1, 2.0, 1.9))
    rows.append(record("S-04", "power_spherical", 0, 9.0, 0.0, schedule="constant"))
    rows.append(record("S-04", "power_spherical", 0, 9.0, 0.0, project_ar=False))
    assert best(rows, "power_spherical") == Best("power_spherical", "S-04", 2.0, {0: 1.9, 1: 1.9})
    with pytest.raises(ValueError, match="no records of frechet of 'vq'"):
        best(rows, "vq")


def test_a_study_in_the_papers_order_confirms_all():
    rows = told(study())
    assert len(rows) == 4 + 4 + 4 + 4 + 2 + 3
    assert {claim.verdict for claim in rows.values()} == {"confirmed"}
    first = rows["S is below N, each at its best guidance"]
    assert first.statement.labels == ("S-04 at 2", "N-04 at 2")
    assert first.comparison.low < -10 < first.comparison.high < 0
    assert first.comparison.p == pytest.approx(2 / 924)


def test_shuffled_seeds_change_no_verdict():
    """Groups are unpaired: which seed of one family stands beside which of another means nothing."""
    rows, rng = study(noise=15.0), random.Random(3)
    verdicts = {text: claim.verdict for text, claim in told(rows).items()}
    assert len(set(verdicts.values())) > 1
    names = {}
    for family in {r.family for r in rows}:
        names[family] = dict(zip(REPORT, rng.sample(REPORT, 6), strict=True))
    shuffled = [replace(r, seed=names[r.family].get(r.seed, r.seed)) for r in rows]
    assert {text: claim.verdict for text, claim in told(shuffled).items()} == verdicts


def test_swapping_two_families_swaps_the_verdicts():
    swap = {"power_spherical": "gaussian", "gaussian": "power_spherical"}
    letters = {"S-04": "G-04", "G-04": "S-04"}
    rows = [replace(r, family=swap.get(r.family, r.family), variant=letters.get(r.variant, r.variant)) for r in study()]
    found = told(rows)
    assert found["S is below G, each at its best guidance"].verdict == "contradicted"
    assert found["N is below G, each at its best guidance"].verdict == "contradicted"
    assert found["G degrades more than S: Frechet at guidance 12 - at best"].verdict == "contradicted"
    assert found["At guidance 12, the length of late raw tokens shifts more in G than in S"].verdict == "contradicted"


def test_equal_families_are_undecided():
    rows = [replace(r, value=20.0 + r.value / 1000) if r.metric == "frechet" else r for r in study()]
    order = [claim for text, claim in told(rows).items() if "best guidance" in text]
    assert {claim.verdict for claim in order} == {"undecided"}  # a difference, but far below the floor
    assert max(claim.p for claim in order) <= 0.05


def test_the_floor_is_measured_or_lets_nothing_pass():
    rows = study()
    assert floor(rows) == 0.5
    lifted = [replace(r, value=10.0 / FLOORS * 1.02) if r.metric == "floor_frechet" else r for r in rows]
    found = told(lifted)
    assert found["S is below N, each at its best guidance"].verdict == "undecided"  # 10 apart
    assert found["S is below G, each at its best guidance"].verdict == "confirmed"  # 20 apart
    without = [r for r in rows if r.metric != "floor_frechet"]
    assert math.isnan(floor(without))
    found = told(without)
    assert found["S is below G, each at its best guidance"].verdict == "undecided"
    assert found["At guidance 12, the saturation of images shifts more in G than in S"].verdict == "confirmed"


def test_shifts_count_by_their_size():
    found = told(study(shift=0.0))
    shifts = [claim for text, claim in found.items() if text.startswith("At guidance 12")]
    assert len(shifts) == 8
    assert {claim.verdict for claim in shifts} == {"contradicted"}


def test_a_small_study_is_not_enough_whatever_it_shows():
    for seeds in ((0,), (0, 1), (0, 1, 2), range(6)):  # of six seeds, three choose and three report
        rows = claims(study(seeds), 12.0, 4.5)
        assert rows
        assert {claim.verdict for claim in rows} == {"not enough"}
    assert {claim.verdict for claim in claims(study(range(12)), 12.0, 4.5)} == {"confirmed"}


def test_points_are_chosen_on_other_seeds():
    """A lucky value of a reported seed chooses nothing."""
    rows = [*study(), *(record("S-04", "power_spherical", seed, 3.0, 9.0) for seed in REPORT)]
    rows += [record("S-04", "power_spherical", seed, 3.0, 99.0) for seed in SELECTION]
    assert told(rows)["S is below N, each at its best guidance"].statement.labels[0] == "S-04 at 2"
    selection, report = halves(study(range(5)))
    assert ({r.seed for r in selection}, {r.seed for r in report}) == ({0, 2, 4}, {1, 3})
    assert halves(study((4,))) == (study((4,)), study((4,)))


def test_families_meet_at_equal_rate():
    rows = study()
    for seed in (*REPORT, *SELECTION):
        rows.append(record("G-01", "gaussian", seed, 1.0, 2.1, 0.001, metric="kl"))
        rows.append(record("G-01", "gaussian", seed, 2.0, 33.0 + seed, 0.001))
    found = told(rows)
    (text,) = [text for text in found if "equal rate" in text]
    assert text.startswith("S is below G at equal rate (2.0")
    assert found[text].statement.labels == ("S-04 at 2", "G-01 at 2")
    assert not [text for text in told(study()) if "equal rate" in text]  # none are alike


def test_chance_confirms_seldom():
    """Families without any difference: hardly ever a verdict among all statements."""
    rng, found = np.random.default_rng(0), 0
    made = [r for r in study() if r.metric not in SHIFTS]
    for _ in range(60):
        rows = [replace(r, value=float(rng.normal(30, 3))) if r.metric == "frechet" else r for r in made]
        found += any(claim.verdict in ("confirmed", "contradicted") for claim in told(rows).values())
    assert found <= stats.binom.ppf(0.999, 60, 0.05)


def test_one_record_per_seed():
    rows = [record("S-04", "power_spherical", 0, 1.0, 1.0)] * 2
    with pytest.raises(ValueError, match="2 records of 1 seeds; expected one per seed"):
        by_seed(rows)
    assert spread({0: 1.0, 1: 3.0}) == "2 ± 1.4"
    assert spread({0: 1.0}) == "1"


def test_the_table_has_a_row_per_claim():
    table = claims_table([*told(study()).values()]).splitlines()
    assert len(table) == 2 + 21
    assert all(line.count("|") == 7 for line in table)


def strengths(low, rates=(7.0, 5.0, 4.0), late=0.2):
    """Two seeds of three strengths each of S, N, G and F; `low`: the lowest Frechet distance of a family."""
    rows = [record("S-01", "power_spherical", seed, 1.0, 0.1, metric="floor_frechet") for seed in SELECTION]
    letters = {"S": "power_spherical", "N": "normalized_gaussian", "G": "gaussian", "F": "fixed_variance"}
    for (letter, family), seed, (number, rate) in product(letters.items(), SELECTION, enumerate(rates)):
        variant, base = f"{letter}-0{2**number}", low[letter] + 0.1 * number + 0.01 * seed
        free = letter in "GF"
        shared = {"kl_weight": 0.001 * 2**number}
        for scale, value in ((1.0, base + 1), (4.5, base), (12.0, base + (5 if free else 2))):
            rows.append(record(variant, family, seed, scale, value, **shared))
        rows.append(
            record(variant, family, seed, 12.0, -late if free else 0.01 * base, metric="norm_change_late", **shared)
        )
        rate = 1.1 * rate if letter == "F" else rate
        rows.append(record(variant, family, seed, 1.0, rate, metric="kl", **shared))
    return rows


def over(rows):
    return {c.statement.text: c for c in claims(rows, 12.0, 12.0) if "over 3 strengths" in c.statement.text}


def test_families_are_compared_over_all_cells_where_their_strengths_are_at_like_rates():
    found = over(strengths({"S": 4.0, "N": 7.0, "G": 10.0, "F": 13.0}))
    assert len(found) == 4 + 4 + 4
    assert {claim.verdict for claim in found.values()} == {"confirmed"}
    first = found["S is below N over 3 strengths, each cell at its best guidance"]
    assert first.statement.labels == ("S-04, S-02, S-01", "N-04, N-02, N-01")
    assert first.statement.left[("S-02", 7)] == pytest.approx(4.0 + 0.1 + 0.07)
    values = [list(side.values()) for side in (first.statement.left, first.statement.right)]
    assert first.comparison.p == pytest.approx(
        stats.permutation_test(values, lambda x, y: np.mean(x) - np.mean(y)).pvalue
    )
    late = found["At guidance 12, the length of late raw tokens shifts more in G than in S over 3 strengths"]
    assert set(late.statement.right.values()) == {0.2}
    swapped = over(strengths({"S": 7.0, "N": 4.0, "G": 10.0, "F": 13.0}))
    assert swapped["S is below N over 3 strengths, each cell at its best guidance"].verdict == "contradicted"


def test_a_guidance_that_a_cell_lacks_is_not_compared_over_strengths():
    rows = strengths({"S": 4.0, "N": 7.0, "G": 10.0, "F": 13.0})
    for lacking in (12.0, 20.0):  # in one cell, and everywhere
        kept = [r for r in rows if (r.variant, r.seed, r.guidance_scale) != ("G-02", 7, lacking)]
        found = {c.statement.text for c in claims(kept, lacking, lacking) if "over 3 strengths" in c.statement.text}
        assert len(found) == 4
        assert all("below" in text for text in found)


def test_strengths_at_other_rates_are_not_compared():
    rows = strengths({"S": 4.0, "N": 7.0, "G": 10.0, "F": 13.0})
    other = [replace(r, value=2 * r.value) if (r.family, r.metric) == ("gaussian", "kl") else r for r in rows]
    assert not [text for text in over(other) if " G " in text]
    assert [text for text in over(other) if "S is below N" in text]
    fewer = over([r for r in rows if r.variant != "S-04"])  # two strengths of S, three of the others
    assert len(fewer) == 2 + 2 + 2
    assert all(claim.statement.labels[0].startswith(("N", "G")) for claim in fewer.values())
