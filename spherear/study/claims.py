"""The paper's statements, tested on the records of a study: confirmed, contradicted or undecided.

One rule applies to all. A family's best point is the variant and guidance scale (linear schedule, all projections)
with the lowest Frechet distance, averaged over seeds. Two sides are compared seed by seed: a statement is confirmed
if the difference has the stated sign in every seed, contradicted if it has the other sign in every seed, and
undecided otherwise. With three seeds, chance alone confirms one statement in eight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from spherear.console import markdown_table
from spherear.models.config import require
from spherear.sphere.families import BY_LETTER, FAMILIES
from spherear.study.records import Record, select

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Best:
    """The best point of a family. values: the metric at this point, by seed."""

    family: str
    variant: str
    guidance_scale: float
    values: BySeed


@dataclass(frozen=True)
class Claim:
    """A statement of the paper. left, right: the compared values; it says left < right.  verdict: by the rule above."""

    statement: str
    left: str
    right: str
    verdict: str


def by_seed(records: Sequence[Record]) -> BySeed:
    """The value of each seed. Two records with the same seed: ValueError."""
    values = {r.seed: r.value for r in records}
    require(len(values) == len(records), f"{len(records)} records of {len(values)} seeds; expected one per seed")
    return values


def spread(values: BySeed) -> str:
    """mean ± standard deviation over seeds."""
    numbers = list(values.values())
    deviation = stdev(numbers) if len(numbers) > 1 else math.nan
    return f"{fmean(numbers):.3g} ± {deviation:.2g}"


def default_sampling(records: Sequence[Record], **fields: object) -> list[Record]:
    """Records with the linear schedule and both projections."""
    return select(records, schedule="linear", project_ar=True, project_decoder=True, **fields)


def best(records: Sequence[Record], family: str, metric: str = "frechet", **fields: object) -> Best:
    """The point with the lowest mean metric. A family without records: ValueError."""
    candidates = default_sampling(records, family=family, metric=metric, **fields)
    require(len(candidates) > 0, f"there are no records of {metric} of {family!r}; expected some")
    points = sorted({(r.variant, r.guidance_scale) for r in candidates})
    values = {point: by_seed(select(candidates, variant=point[0], guidance_scale=point[1])) for point in points}
    variant, scale = min(points, key=lambda point: fmean(values[point].values()))
    return Best(family, variant, scale, values[variant, scale])


def verdict(smaller: BySeed, larger: BySeed) -> str:
    """confirmed, contradicted or undecided: whether `smaller` is below `larger` in every seed that both have."""
    seeds = sorted(smaller.keys() & larger.keys())
    require(len(seeds) > 0, f"seeds are {sorted(smaller)} and {sorted(larger)}; expected some in common")
    signs = {smaller[seed] < larger[seed] for seed in seeds}
    if len(signs) == 2:
        return "undecided"
    return "confirmed" if signs == {True} else "contradicted"


def claims(records: Sequence[Record], high: float, ablation: float) -> list[Claim]:
    """All statements whose families and points were measured.

    high: guidance scale for the statements on high guidance.  ablation: the scale of the runs without projections.
    """
    return [
        *_order(records),
        *_degradation(records, high),
        *_drift(records, high),
        *_sides(records, ablation),
        *_ablation(records),
    ]


def has(records: Sequence[Record], *families: str, metric: str = "frechet", **fields: object) -> bool:
    """Whether every family has records of `metric` with these field values."""
    return all(select(records, family=family, metric=metric, **fields) for family in families)


S, N, G, F, D = (BY_LETTER[letter].name for letter in ("S", "N", "G", "F", "D"))


def _order(records: Sequence[Record]) -> list[Claim]:
    pairs = (
        (S, N, "S is below N, each at its best guidance"),
        (N, G, "N is below G, each at its best guidance"),
        (S, G, "S is below G, each at its best guidance"),
        (G, F, "F is no better than G, each at its best guidance"),
    )
    return [_compared(text, best(records, a), best(records, b)) for a, b, text in pairs if has(records, a, b)]


def _compared(statement: str, left: Best, right: Best) -> Claim:
    summaries = [f"{side.variant} at {side.guidance_scale:g}: {spread(side.values)}" for side in (left, right)]
    return Claim(statement, summaries[0], summaries[1], verdict(left.values, right.values))


def degradation(records: Sequence[Record], family: str, high: float) -> BySeed:
    """Frechet distance of the best variant at the high guidance scale / at its best scale, by seed."""
    top = best(records, family)
    at_high = by_seed(
        default_sampling(records, family=family, metric="frechet", variant=top.variant, guidance_scale=high)
    )
    return {seed: at_high[seed] / value for seed, value in top.values.items() if seed in at_high}


def _degradation(records: Sequence[Record], high: float) -> list[Claim]:
    out = []
    for spherical in (S, N):
        for free in (G, F):
            if not has(records, spherical, free, guidance_scale=high):
                continue
            left, right = (degradation(records, family, high) for family in (spherical, free))
            text = f"{FAMILIES[free].letter} degrades faster than {FAMILIES[spherical].letter}: "
            text += f"Frechet at guidance {high:g} / at best"
            out.append(Claim(text, spread(left), spread(right), verdict(left, right)))
    return out


def drift(records: Sequence[Record], family: str, high: float) -> BySeed:
    """|mean length of raw tokens / of real tokens - 1| in the last quarter of positions, best variant, by seed."""
    point = {"variant": best(records, family).variant, "guidance_scale": high}
    values = by_seed(default_sampling(records, family=family, metric="norm_change_late", **point))
    return {seed: abs(value) for seed, value in values.items()}


def _drift(records: Sequence[Record], high: float) -> list[Claim]:
    out = []
    for spherical in (S, N):
        for free in (G, F):
            if has(records, spherical, free, guidance_scale=high, metric="norm_change_late"):
                left, right = (drift(records, family, high) for family in (spherical, free))
                text = (
                    f"Guidance makes lengths drift in {FAMILIES[free].letter} more than in {FAMILIES[spherical].letter}"
                )
                text += f": late raw tokens at {high:g}"
                out.append(Claim(text, spread(left), spread(right), verdict(left, right)))
    return out


def _sides(records: Sequence[Record], scale: float) -> list[Claim]:
    out = []
    for family in (S, N):
        if not has(records, family, guidance_scale=scale, project_ar=False):
            continue
        top = best(records, family).variant
        point = {"family": family, "variant": top, "metric": "frechet", "schedule": "linear", "guidance_scale": scale}
        without_decoder = by_seed(select(records, **point, project_ar=True, project_decoder=False))
        without_ar = by_seed(select(records, **point, project_ar=False, project_decoder=True))
        text = (
            f"AR-side projection matters more than decoder-side: {top} at {scale:g}, decoder's left out / AR's left out"
        )
        summaries = spread(without_decoder), spread(without_ar)
        out.append(Claim(text, *summaries, verdict(without_decoder, without_ar)))
    return out


def _ablation(records: Sequence[Record], kl_weight: float = 0.004) -> list[Claim]:
    steps = (
        (D, G, "Normalising on the decoder's side helps"),
        (N, D, "Normalising on the AR side too helps more"),
        (S, N, "A spherical posterior helps beyond that"),
    )
    return [
        _compared(f"{text} (KL weight {kl_weight:g})", *(best(records, f, kl_weight=kl_weight) for f in (a, b)))
        for a, b, text in steps
        if has(records, a, b, kl_weight=kl_weight)
    ]


def claims_table(rows: Sequence[Claim]) -> str:
    """The claims as a Markdown table."""
    cells = [(c.statement, c.left, c.right, f"**{c.verdict}**") for c in rows]
    return markdown_table(("statement of the paper", "left", "right", "here"), cells) + "\n"
