"""Statements held against records made up to confirm, contradict or leave them open."""

from dataclasses import replace

import pytest

from spherear.study.claims import Best, best, by_seed, claims, claims_table, degradation, spread, verdict
from spherear.study.records import Record


def record(variant, family, seed, scale, value, kl_weight=0.004, **changes):
    fields = {
        "noise_scale": 0.0, "schedule": "linear", "project_ar": True, "project_decoder": True, "metric": "frechet",
        "images": 10, "data": "digits", "command": "test", "commit": "none", "hardware": "none",
    } | changes  # fmt: skip
    return Record(
        variant=variant, family=family, kl_weight=kl_weight, seed=seed, guidance_scale=scale, value=value, **fields
    )


FAMILIES = {
    "S-04": ("power_spherical", 1.0),
    "N-04": ("normalized_gaussian", 2.0),
    "D-04": ("decoder_normalized", 2.5),
    "G-04": ("gaussian", 3.0),
    "F-02": ("fixed_variance", 4.0),
}


def study(high=10.0, decoder_off=5.0, ar_off=6.0):
    """Best at guidance 2, all families in the paper's order, in three seeds."""
    rows = []
    for seed in range(3):
        for variant, (family, base) in FAMILIES.items():
            base = base + 0.1 * seed
            steep = high if family in ("gaussian", "fixed_variance") else high / 5
            rows += [record(variant, family, seed, s, base * f) for s, f in ((1.0, 1.5), (2.0, 1.0), (12.0, steep))]
            rows.append(record(variant, family, seed, 4.5, decoder_off + seed, project_decoder=False))
            rows.append(record(variant, family, seed, 4.5, ar_off + seed, project_ar=False))
    return rows


def test_best_is_the_lowest_mean():
    rows = [record("S-04", "power_spherical", s, g, v) for s, g, v in ((0, 1.0, 3.0), (1, 1.0, 1.0), (0, 2.0, 1.9))]
    rows.append(record("S-04", "power_spherical", 1, 2.0, 1.9))
    rows.append(record("S-04", "power_spherical", 0, 9.0, 0.0, schedule="constant"))
    rows.append(record("S-04", "power_spherical", 0, 9.0, 0.0, project_ar=False))
    assert best(rows, "power_spherical") == Best("power_spherical", "S-04", 2.0, {0: 1.9, 1: 1.9})
    with pytest.raises(ValueError, match="no records of frechet of 'vq'"):
        best(rows, "vq")


def test_verdicts():
    assert verdict({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}) == "confirmed"
    assert verdict({0: 3.0, 1: 4.0}, {0: 2.0, 1: 3.0}) == "contradicted"
    assert verdict({0: 1.0, 1: 4.0}, {0: 2.0, 1: 3.0}) == "undecided"
    assert verdict({0: 1.0, 5: 9.0}, {0: 2.0, 6: 0.0}) == "confirmed"  # seeds in common alone
    with pytest.raises(ValueError, match=r"seeds are \[0\] and \[1\]"):
        verdict({0: 1.0}, {1: 1.0})


def with_lengths(rows, late):
    """The same points with a change of length each: of the loose families, and a tenth of it of the others."""
    loose = ("gaussian", "fixed_variance")
    changes = [replace(r, metric="norm_change_late", value=late if r.family in loose else -late / 10) for r in rows]
    return [*rows, *changes]


def test_drift_of_lengths_counts_by_its_size():
    told = claims(with_lengths(study(), 0.2), high=12.0, ablation=4.5)
    driven = [row for row in told if row.statement.startswith("Guidance makes lengths drift")]
    assert [row.verdict for row in driven] == ["confirmed"] * 4
    assert (driven[0].left, driven[0].right) == ("0.02 ± 0", "0.2 ± 0")
    told = claims(with_lengths(study(), 0.0), high=12.0, ablation=4.5)
    assert {row.verdict for row in told if row.statement.startswith("Guidance makes")} == {"contradicted"}


def test_a_study_in_the_papers_order_confirms_all():
    rows = claims(study(), high=12.0, ablation=4.5)
    assert len(rows) == 4 + 4 + 2 + 3
    assert {row.verdict for row in rows} == {"confirmed"}
    assert rows[0].left == "S-04 at 2: 1.1 ± 0.1"


def test_other_orders_are_told():
    told = {row.statement: row.verdict for row in claims(study(decoder_off=9.0), 12.0, 4.5)}
    assert {v for s, v in told.items() if s.startswith("AR-side")} == {"contradicted"}
    reversed_steepness = [r for r in study() if r.guidance_scale != 12.0]
    for seed in range(3):
        for variant, (family, base) in FAMILIES.items():
            steep = 2 if family in ("gaussian", "fixed_variance") else 10
            reversed_steepness.append(record(variant, family, seed, 12.0, steep * (base + 0.1 * seed)))
    told = {row.statement: row.verdict for row in claims(reversed_steepness, 12.0, 4.5)}
    assert {v for s, v in told.items() if "degrades faster" in s} == {"contradicted"}


def test_degradation_is_a_ratio_seed_by_seed():
    ratios = degradation(study(high=10.0), "gaussian", 12.0)
    assert ratios == pytest.approx({0: 10.0, 1: 10.0, 2: 10.0})


def test_one_record_a_seed():
    rows = [record("S-04", "power_spherical", 0, 1.0, 1.0)] * 2
    with pytest.raises(ValueError, match="2 records of 1 seeds; expected one per seed"):
        by_seed(rows)
    assert spread({0: 1.0, 1: 3.0}) == "2 ± 1.4"


def test_the_table_has_a_row_a_claim():
    table = claims_table(claims(study(), 12.0, 4.5)).splitlines()
    assert len(table) == 2 + 13
    assert all(line.count("|") == 5 for line in table)
