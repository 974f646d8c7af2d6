"""The paper's statements, tested on the records of a study: confirmed, contradicted, undecided, or not enough.

One rule applies to all. A family's best point is the variant and guidance scale (linear schedule, all projections)
with the lowest Frechet distance, averaged over the seeds of a selection study; what is compared are the values of
other seeds at these points. The seeds of two families are unpaired groups, compared by an exact permutation test with
a 95 % interval, and corrected for the number of statements (Holm). A statement is confirmed, or contradicted, if the
corrected p-value is at most 0.05 and, for Frechet distances, the difference is at least five times the distance
between two sets of real images; otherwise it is undecided. Where the groups are so small that no difference at all
could pass, the study is not enough; such statements do not count in the correction (Tarone 1990).

Families that were trained with as many strengths, at like rates, are also compared over all their cells, each at the
lowest of its own distances: as nothing is chosen there between cells, all seeds count.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean, stdev
from typing import Any

from spherear.console import markdown_table
from spherear.models.config import require
from spherear.sphere.families import FAMILIES, family_of_letter
from spherear.study.records import Record, select
from spherear.study.statistics import LEVEL, Comparison, compare, holm

BySeed = Mapping[int, float]
ByCell = Mapping[tuple[str, int], float]

USUAL: dict[str, object] = {
    "schedule": "linear", "project_ar": True, "project_decoder": True, "solver": "", "steps": 0,
}  # fmt: skip
FLOORS = 5  # a Frechet difference must be this many times the floor
PLATEAU = 0.05  # a VAE whose loss fell by more over the last tenth of its training is not at its plateau
LIKE = 0.15  # strengths of two families whose rates differ by less, relatively, are at like rates
ALIKE = 0.1  # rates or reconstructions that differ by less, relatively, count as equal


@dataclass(frozen=True)
class Best:
    """The best point of a family. values: the metric at this point, by seed."""

    family: str
    variant: str
    guidance_scale: float
    values: BySeed


@dataclass(frozen=True)
class Statement:
    """A statement of the paper: `left` is below `right`. distance: the values are Frechet distances."""

    text: str
    left: BySeed | ByCell
    right: BySeed | ByCell
    labels: tuple[str, str]
    distance: bool = True


@dataclass(frozen=True)
class Claim:
    """A tested statement. comparison: left - right.  p: corrected for all statements.  verdict: by the rule above."""

    statement: Statement
    comparison: Comparison
    p: float
    verdict: str


def by_seed(records: Sequence[Record]) -> BySeed:
    """The value of each seed. Two records with the same seed: ValueError."""
    values = {r.seed: r.value for r in records}
    require(len(values) == len(records), f"{len(records)} records of {len(values)} seeds; expected one per seed")
    return values


def spread(values: BySeed | ByCell) -> str:
    """mean ± standard deviation over seeds, or cells."""
    numbers = list(values.values())
    return f"{fmean(numbers):.3g}" + (f" ± {stdev(numbers):.2g}" if len(numbers) > 1 else "")


def default_sampling(records: Sequence[Record], **fields: object) -> list[Record]:
    """Records with the linear schedule, both projections and the grid's solver."""
    return select(records, **(USUAL | fields))


def best(records: Sequence[Record], family: str, metric: str = "frechet", **fields: object) -> Best:
    """The point with the lowest mean metric. A family without records: ValueError."""
    candidates = default_sampling(records, family=family, metric=metric, **fields)
    require(len(candidates) > 0, f"there are no records of {metric} of {family!r}; expected some")
    points = sorted({(r.variant, r.guidance_scale) for r in candidates})
    values = {point: by_seed(select(candidates, variant=point[0], guidance_scale=point[1])) for point in points}
    variant, scale = min(points, key=lambda point: fmean(values[point].values()))
    return Best(family, variant, scale, values[variant, scale])


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(selection, report) of one study: every other seed; the same records twice if there is only one seed."""
    chosen = sorted({r.seed for r in records})[::2]
    selection = [r for r in records if r.seed in chosen]
    return selection, [r for r in records if r.seed not in chosen] or selection


def floor(records: Sequence[Record]) -> float:
    """Mean Frechet distance between two sets of real images, of the size of the generated ones; NaN if not measured."""
    return fmean([r.value for r in select(records, metric="floor_frechet")] or [math.nan])


def unfinished(records: Sequence[Record]) -> list[tuple[str, int]]:
    """The cells (variant, seed) whose VAE was not at its plateau, where that was measured."""
    return sorted({(r.variant, r.seed) for r in select(records, metric="vae_slope") if r.value < -PLATEAU})


def flagged(records: Sequence[Record], where: str = "") -> str:
    """A paragraph that names them; empty if there are none.  where: such as "at 16 tokens"."""
    listed = ", ".join(f"{variant} seed {seed}" for variant, seed in unfinished(records))
    if not listed:
        return ""
    place = f" {where}" if where else ""
    return f"Not compared{place}, because the loss of their VAE still fell at its last step: {listed}.\n\n"


def comparable(records: Sequence[Record]) -> list[Record]:
    """The records of all other cells."""
    excluded = set(unfinished(records))
    return [r for r in records if (r.variant, r.seed) not in excluded]


def claims(
    records: Sequence[Record], high: float, ablation: float, selection: Sequence[Record] | None = None
) -> list[Claim]:
    """All statements whose families and points were measured, in cells whose VAE reached its plateau.

    high: guidance scale for the statements on high guidance.  ablation: the scale of the runs without projections.
    selection: records of other seeds, to choose the best points; by default every other seed of `records`.
    """
    records = comparable(records)
    chosen, report = (comparable(selection), records) if selection is not None else halves(records)
    made = _Statements(chosen, report, records)
    statements = [
        *made.order(), *made.equal("kl", "rate"), *made.equal("reconstruction_frechet", "reconstruction"),
        *made.degradation(high), *made.drift(high), *made.sides(ablation), *made.ablation(),
        *made.over_strengths(high),
    ]  # fmt: skip
    sides = [(tuple(s.left.values()), tuple(s.right.values())) for s in statements]
    results = {pair: compare(*pair) for pair in sides}  # equal sides are one test, whatever they say
    testable = [pair for pair, result in results.items() if result.smallest_p <= LEVEL]
    corrected = dict(zip(testable, holm([results[pair].p for pair in testable]), strict=True))
    lowest, rows = FLOORS * floor(report), []
    for statement, pair in zip(statements, sides, strict=True):
        result, p = results[pair], corrected.get(pair, 1.0)
        enough = result.smallest_p * max(1, len(testable)) <= LEVEL
        verdict = _verdict(result, p, lowest if statement.distance else 0.0) if enough else "not enough"
        rows.append(Claim(statement, result, p, verdict))
    return rows


def _verdict(comparison: Comparison, p: float, lowest: float) -> str:
    """lowest: smallest difference that counts; an unknown one, NaN, lets none pass."""
    if p > LEVEL or not abs(comparison.difference) >= lowest:
        return "undecided"
    return "confirmed" if comparison.difference < 0 else "contradicted"


def has(records: Sequence[Record], *families: str, metric: str = "frechet", **fields: object) -> bool:
    """Whether every family has records of `metric` with these field values."""
    return all(select(records, family=family, metric=metric, **fields) for family in families)


S, N, G, F, D = (family_of_letter(letter).name for letter in ("S", "N", "G", "F", "D"))
CONSTRAINED, FREE = (S, N), (G, F)


@dataclass(frozen=True)
class _Statements:
    """The statements, from the records that points are chosen on, those that are reported, and all of the study."""

    selection: Sequence[Record]
    report: Sequence[Record]
    whole: Sequence[Record] = ()

    def at(self, variant: str, scale: float, metric: str = "frechet", **fields: object) -> BySeed:
        """The reported values of a point."""
        return by_seed(default_sampling(self.report, variant=variant, guidance_scale=scale, metric=metric, **fields))

    def best(self, family: str, **fields: Any) -> Best | None:
        """The chosen point with its reported values; None if it was not measured."""
        if not has(self.selection, family, **fields):
            return None
        top = best(self.selection, family, **fields)
        values = self.at(top.variant, top.guidance_scale)
        return Best(family, top.variant, top.guidance_scale, values) if values else None

    @cached_property
    def tops(self) -> dict[str, Best | None]:
        """The best point of each family."""
        return {family: self.best(family) for family in (*CONSTRAINED, *FREE)}

    def at_best(self, text: str, left: Best | None, right: Best | None) -> list[Statement]:
        if left is None or right is None:
            return []
        labels = tuple(f"{side.variant} at {side.guidance_scale:g}" for side in (left, right))
        return [Statement(text, left.values, right.values, (labels[0], labels[1]))]

    def order(self) -> list[Statement]:
        """Each family at its best."""
        rows = []
        for a, b in ((S, N), (N, G), (S, G), (G, F)):
            text = f"{FAMILIES[a].letter} is below {FAMILIES[b].letter}, each at its best guidance"
            rows += self.at_best(text, self.tops[a], self.tops[b])
        return rows

    def equal(self, metric: str, name: str) -> list[Statement]:
        """Families at the variants whose `metric` is most alike, if there are any within `ALIKE`."""
        rows = []
        for a, b in ((S, N), (S, G)):
            means = [self._means(family, metric) for family in (a, b)]
            pairs = [(abs(x / y - 1), left, right) for (left, x), (right, y) in product(*(m.items() for m in means))]
            if not pairs or min(pairs)[0] > ALIKE:
                continue
            _, left, right = min(pairs)
            values = f"{means[0][left]:.3g}, {means[1][right]:.3g}"
            text = f"{FAMILIES[a].letter} is below {FAMILIES[b].letter} at equal {name} ({values})"
            rows += self.at_best(text, self.best(a, variant=left), self.best(b, variant=right))
        return rows

    def _means(self, family: str, metric: str, records: Sequence[Record] = ()) -> dict[str, float]:
        """Mean of a metric of the VAE, by variant."""
        rows = select(records or self.report, family=family, metric=metric)
        return {v: fmean(r.value for r in select(rows, variant=v)) for v in sorted({r.variant for r in rows})}

    def degradation(self, high: float) -> list[Statement]:
        """The rise of the Frechet distance from the best to a high guidance scale."""
        rises = {family: self._rise(family, high) for family in (*CONSTRAINED, *FREE)}
        return [
            Statement(
                f"{FAMILIES[b].letter} degrades more than {FAMILIES[a].letter}: Frechet at guidance {high:g} - at best",
                left, right, (FAMILIES[a].letter, FAMILIES[b].letter),
            )
            for a, b in product(CONSTRAINED, FREE)
            if (left := rises[a]) and (right := rises[b])
        ]  # fmt: skip

    def _rise(self, family: str, high: float) -> BySeed:
        top = self.tops[family]
        if top is None:
            return {}
        at_high = self.at(top.variant, high)
        return {seed: at_high[seed] - value for seed, value in top.values.items() if seed in at_high}

    def drift(self, high: float) -> list[Statement]:
        """Sizes of shifts against real tokens and images at high guidance."""
        rows = []
        for metric, origin, name, free in (
            ("norm_change_late", 0.0, "the length of late raw tokens", FREE),
            ("raw_variance_ratio", 1.0, "the variance of raw tokens", (G,)),
            ("saturation_shift", 0.0, "the saturation of images", (G,)),
        ):
            for a, b in product(CONSTRAINED, free):
                tops = [self.tops[family] for family in (a, b)]
                values = [self.at(top.variant, high, metric) if top else {} for top in tops]
                if all(values):
                    left, right = ({seed: abs(v - origin) for seed, v in side.items()} for side in values)
                    text = (
                        f"At guidance {high:g}, {name} shifts more in {FAMILIES[b].letter} than in {FAMILIES[a].letter}"
                    )
                    rows.append(Statement(text, left, right, (FAMILIES[a].letter, FAMILIES[b].letter), distance=False))
        return rows

    def sides(self, scale: float) -> list[Statement]:
        """One projection left out against the other."""
        rows = []
        for family in CONSTRAINED:
            top = self.tops[family]
            variant = top.variant if top else ""
            left, right = self.at(variant, scale, project_decoder=False), self.at(variant, scale, project_ar=False)
            if left and right:
                text = f"Projection before the AR model matters more than before the decoder: {variant} at {scale:g}"
                rows.append(Statement(text, left, right, ("without the decoder's", "without the AR model's")))
        return rows

    def ablation(self) -> list[Statement]:
        """The paper's ablation of normalisation, at every KL weight that D was trained with."""
        steps = (
            (D, G, "Normalising on the decoder's side helps"),
            (N, D, "Normalising on the AR side too helps more"),
            (S, N, "A spherical posterior helps beyond that"),
        )
        weights = {r.kl_weight for r in self.report if r.family == D}
        rows = []
        for weight, (a, b, text) in product(sorted(weights), steps):
            sides = [self.best(family, kl_weight=weight) for family in (a, b)]
            rows += self.at_best(f"{text} (KL weight {weight:g})", *sides)
        return rows

    def over_strengths(self, high: float) -> list[Statement]:
        """Families over all their strengths: the order, the rise to a high guidance, and the drift of lengths there."""
        free = tuple(product(CONSTRAINED, FREE))
        text = "{0} is below {1} over {2} strengths, each cell at its best guidance"
        rows = self._over(text, ((S, N), (N, G), (S, G), (G, F)), "frechet", lambda v: min(v.values()))
        if any(
            high not in values for family in (*CONSTRAINED, *FREE) for values in self._cells(family, "frechet").values()
        ):
            return rows  # guidance was not as high in every cell
        text = f"{{1}} degrades more than {{0}} over {{2}} strengths: Frechet at guidance {high:g} - at best"
        rows += self._over(text, free, "frechet", lambda v: v[high] - min(v.values()))
        text = f"At guidance {high:g}, the length of late raw tokens shifts more in {{1}} than in {{0}}"
        text += " over {2} strengths"
        rows += self._over(text, free, "norm_change_late", lambda v: abs(v[high]))
        return rows

    def _over(
        self, text: str, pairs: Iterable[tuple[str, str]], metric: str, of: Callable[[Mapping[float, float]], float]
    ) -> list[Statement]:
        """Statements on all cells of two families. of: the values of a cell, by guidance -> what is compared."""
        rows = []
        for pair in pairs:
            strengths = self._like_rates(*pair)
            if strengths is None:
                continue
            left, right = ({cell: of(v) for cell, v in self._cells(family, metric).items()} for family in pair)
            said = text.format(*(FAMILIES[family].letter for family in pair), len(strengths[0]))
            labels = tuple(", ".join(variants) for variants in strengths)
            rows.append(Statement(said, left, right, (labels[0], labels[1]), distance=metric == "frechet"))
        return rows

    def _like_rates(self, a: str, b: str) -> tuple[list[str], list[str]] | None:
        """The strengths of two families in the order of their rates, if there are as many, two or more, and alike."""
        means = [self._means(family, "kl", self.whole) for family in (a, b)]
        left, right = (sorted(m, key=m.__getitem__) for m in means)
        alike = all(abs(means[0][x] / means[1][y] - 1) < LIKE for x, y in zip(left, right, strict=False))
        return (left, right) if len(left) == len(right) > 1 and alike else None

    def _cells(self, family: str, metric: str) -> dict[tuple[str, int], dict[float, float]]:
        """Every cell's values of a metric, by guidance scale."""
        found: dict[tuple[str, int], dict[float, float]] = {}
        for r in default_sampling(self.whole, family=family, metric=metric):
            found.setdefault((r.variant, r.seed), {})[r.guidance_scale] = r.value
        return found


def claims_table(rows: Sequence[Claim]) -> str:
    """The claims as a Markdown table."""
    cells = [
        (
            row.statement.text,
            f"{row.statement.labels[0]}: {spread(row.statement.left)}",
            f"{row.statement.labels[1]}: {spread(row.statement.right)}",
            interval(row.comparison),
            f"{row.p:.2g}",
            f"**{row.verdict}**",
        )
        for row in rows
    ]
    head = ("statement of the paper", "left", "right", "left - right, 95 %", "p, corrected", "here")
    return markdown_table(head, cells) + "\n"


def interval(comparison: Comparison) -> str:
    """difference [low, high]."""
    return f"{comparison.difference:.3g} [{comparison.low:.3g}, {comparison.high:.3g}]"
