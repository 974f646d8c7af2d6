"""Every family beside S, in small batches: ratios of made records, and what ships."""

import math

import pytest

from spherear.sphere.families import FAMILIES
from spherear.study.design import GRIDS, Variant
from spherear.study.questions.families import HIGH, STUDIES, beside, every_family, report
from spherear.study.records import Record


def made(variant, factor, seeds=(0, 1, 2), slope=0.0):
    """Frechet distances factor * (1, 1.1, 1.2) at guidance 3, half as much again at 1, twice at 12."""
    own = Variant.named(variant)
    base = {
        "variant": variant, "family": own.family, "kl_weight": own.kl_weight, "noise_scale": own.noise_scale,
        "schedule": "linear", "project_ar": True, "project_decoder": True, "images": 100, "data": "shapes",
        "command": "test", "commit": "0", "hardware": "none", "vae_steps": 5, "ar_steps": 6, "batch_size": 8,
    }  # fmt: skip
    rows = []
    for seed in seeds:
        values = {(1.0, "kl"): 5.0, (1.0, "reconstruction_frechet"): 1.5, (1.0, "vae_slope"): slope}
        for scale, times in ((1.0, 1.5), (3.0, 1.0), (HIGH, 2.0)):
            values |= {
                (scale, "frechet"): factor * times * (1 + seed / 10),
                (scale, "accuracy"): 0.5 + seed / 100,
                (scale, "norm_change_late"): factor / 100,
            }
        rows += [
            Record(**base, seed=seed, guidance_scale=scale, metric=metric, value=value)
            for (scale, metric), value in values.items()
        ]
    return rows


def test_ratios_are_those_of_the_distances():
    found = beside([*made("G-02", 3.0), *made("G-04", 2.0), *made("VQ-256", 4.0), *made("S-02", 1.0)])
    assert found[0].variant == "S-02"  # then the families in their order
    rows = {b.variant: b for b in found}
    assert rows["S-02"].ratio is None
    for variant, factor in (("G-02", 3.0), ("G-04", 2.0), ("VQ-256", 4.0)):
        row = rows[variant]
        assert row.top.guidance_scale == 3.0
        assert math.exp(row.ratio.mean) == pytest.approx(factor)
        assert math.exp(row.high_ratio.mean) == pytest.approx(factor)
        assert row.ratio.low < math.log(factor) < row.ratio.high
        assert row.high == pytest.approx({0: 2 * factor, 1: 2.2 * factor, 2: 2.4 * factor})
        assert row.lengths == pytest.approx(dict.fromkeys((0, 1, 2), factor / 100))
        assert (row.nats, row.reconstructed) == (5.0, 1.5)


def test_cells_that_had_not_finished_learning_are_named_and_left_out():
    rows = [*made("S-02", 1.0), *made("G-04", 2.0, (0, 1)), *made("G-04", 9.0, (2,), slope=-0.2)]
    (row,) = [b for b in beside(rows) if b.variant == "G-04"]
    assert sorted(row.top.values) == [0, 1]
    assert "still fell at its last step: G-04 seed 2" in report(rows)
    with pytest.raises(ValueError, match="there are no records of S; expected some"):
        beside(made("G-04", 2.0))
    with pytest.raises(ValueError, match=r"groups have \[1, 3\] values; expected at least 2 each"):
        beside([*made("S-02", 1.0), *made("G-04", 2.0, (0,))])


def test_what_ships_is_of_one_setup():
    first, second = (GRIDS[name] for name in STUDIES)
    same = (
        "preset",
        "seeds",
        "vae_steps",
        "ar_steps",
        "batch_size",
        "images",
        "scales",
        "solver",
        "solver_steps",
        "half",
    )
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert {Variant.named(v).family for v in (*first.variants, *second.variants)} == set(FAMILIES)
    assert {r.data for r in every_family()} == {"shapes"}


def test_in_colour_feeding_one_length_back_is_what_keeps_lengths():
    """In every seed, at guidance 12: D lies between those who feed one length back, and those without any."""
    rows = {b.variant: b for b in beside(every_family())}
    held, half, free = (
        [length for v in names for length in rows[v].lengths.values()]
        for names in (("S-02", "N-02", "vMF-02", "VQ-256"), ("D-02",), ("G-02", "G-04", "F-04"))
    )
    assert max(held) < min(half) / 2
    assert max(half) < min(free) / 1.5
    codes = rows.pop("VQ-256")
    assert min(codes.top.values.values()) > max(max(row.top.values.values()) for row in rows.values())
    for variant in ("N-02", "vMF-02", "D-02"):
        assert rows[variant].ratio.low < 0 < rows[variant].ratio.high
        assert len(rows[variant].top.values) == 3
