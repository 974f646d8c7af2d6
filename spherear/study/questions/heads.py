"""Few evaluations per token, on the records of `spherear study heads`: what they cost each family and head.

A value is the Frechet distance of one seed at the guidance scale that is best on average over the other seeds, so that
no seed chooses for itself. Heads of one seed and family share the VAE, and a distilled head its teacher's transformer:
they are compared in pairs, by Student's t of the differences. Families are unpaired groups, see `claims`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from spherear.console import markdown_table
from spherear.models.heads.table import HEADS
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.families import FAMILIES
from spherear.study.claims import BySeed, by_seed, comparable, flagged, spread
from spherear.study.records import Record, select
from spherear.study.statistics import Comparison, Difference, compare, contrast

MARGIN = 0.1  # of the reference's mean: what is within it counts as no worse
AUTO = "velocity"  # the head of tokens that are numbers, unless a variant names one
REFERENCE = (AUTO, "", 0)  # head and method: the published one, the grid's own solver


@dataclass(frozen=True)
class Curve:
    """One family, head and method. evaluations: per token.  values: Frechet distance by seed; scales: at which."""

    family: str
    head: str
    solver: str
    steps: int
    evaluations: int
    values: BySeed
    scales: BySeed

    @property
    def method(self) -> tuple[str, str, int]:
        """What may be equal in two families."""
        return self.head, self.solver, self.steps


@dataclass(frozen=True)
class Cost:
    """A head and method against the published solver of the same family, in pairs of seeds.

    verdict: `no worse` where the interval ends below the margin, `worse` where it begins above, else `undecided`.
    """

    curve: Curve
    reference: Curve
    difference: Difference
    verdict: str

    def rise(self) -> list[float]:
        """Relative rise over the reference, of every seed."""
        return [value / self.reference.values[seed] - 1 for seed, value in sorted(self.curve.values.items())]


def curves(records: Sequence[Record], solver: str, steps: int, at: float | None = None) -> list[Curve]:
    """Every family, head and method with two seeds or more, fewest evaluations first; codes have no solver.

    Cells whose VAE had not reached its plateau are left out.
    solver, steps: of the grid, which records with its own method do not name.  at: a guidance scale, in place of the
    best ones.
    """
    rows = select(comparable(records), metric="frechet", schedule="linear", project_ar=True, project_decoder=True)
    rows = [r for r in rows if not FAMILIES[r.family].discrete and at in (None, r.guidance_scale)]
    keys = sorted({(r.family, r.head, r.solver, r.steps) for r in rows})
    found = []
    for family, head, name, count in keys:
        own = select(rows, family=family, head=head, solver=name, steps=count)
        scales = sorted({r.guidance_scale for r in own})
        by_scale = {scale: by_seed(select(own, guidance_scale=scale)) for scale in scales}
        seeds = sorted(set.intersection(*(set(values) for values in by_scale.values())))
        if len(seeds) > 1:
            chosen = {seed: _best_elsewhere(by_scale, seeds, seed) for seed in seeds}
            used = SamplingSettings(solver=name or solver, steps=count or steps).evaluations
            values = {seed: by_scale[scale][seed] for seed, scale in chosen.items()}
            found.append(Curve(family, AUTO if head == "auto" else head, name, count, used, values, chosen))
    return sorted(found, key=lambda c: (list(FAMILIES).index(c.family), list(HEADS).index(c.head), c.evaluations))


def _best_elsewhere(by_scale: dict[float, BySeed], seeds: Sequence[int], seed: int) -> float:
    """The scale with the lowest mean over all seeds but one."""
    return min(by_scale, key=lambda scale: fmean(by_scale[scale][other] for other in seeds if other != seed))


def costs(found: Sequence[Curve]) -> list[Cost]:
    """Every curve of a family that has its reference, against it."""
    return [
        Cost(curve, reference, *_verdict(curve.values, reference.values))
        for curve in found
        for reference in found
        if reference.method == REFERENCE and reference.family == curve.family and curve != reference
    ]


def _verdict(values: BySeed, others: BySeed) -> tuple[Difference, str]:
    seeds = sorted(values.keys() & others.keys())
    difference = Difference.of([values[s] for s in seeds], [others[s] for s in seeds])
    return difference, _said(difference, fmean(others.values()))


def _said(difference: Difference, reference: float) -> str:
    if difference.high <= MARGIN * reference:
        return "no worse"
    return "worse" if difference.low > MARGIN * reference else "undecided"


def _interval(difference: Difference) -> str:
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def rises(rows: Sequence[Cost]) -> list[tuple[Cost, Cost, Comparison]]:
    """Do few evaluations cost less on the sphere? The rise over the reference, relatively: (left, G, left - G).

    For every family against G, where both have the head and method.
    """
    pairs = [
        (left, right)
        for right in rows
        for left in rows
        if left.curve.family != right.curve.family == "gaussian" and left.curve.method == right.curve.method
    ]
    return [(left, right, compare(left.rise(), right.rise())) for left, right in pairs]


@dataclass(frozen=True)
class Untaught(Cost):
    """The cost of a head that learnt without a teacher, beside the one that had one. Seeds are not paired."""

    taught: Curve


def untaught(found: Sequence[Curve], scratch: Sequence[Curve]) -> list[Untaught]:
    """Every curve of `scratch` whose method and family `found` has too, against the reference of the family there."""
    own = {(curve.family, *curve.method): curve for curve in found}
    rows = []
    for curve in scratch:
        taught, reference = own.get((curve.family, *curve.method)), own.get((curve.family, *REFERENCE))
        if taught and reference:
            sides = [list(side.values.values()) for side in (curve, reference)]
            difference = contrast(sides, (1, -1))
            rows.append(Untaught(curve, reference, difference, _said(difference, fmean(sides[1])), taught))
    return rows


def untaught_report(records: Sequence[Record], scratch: Sequence[Record], solver: str, steps: int) -> str:
    """Heads with and without a teacher, as Markdown. records, scratch: of `heads` and of `heads-scratch`."""
    cells = [
        (
            FAMILIES[row.curve.family].letter,
            HEADS[row.curve.head].title,
            str(row.curve.evaluations),
            *(spread(side.values) for side in (row.curve, row.taught, row.reference)),
            _interval(row.difference),
            f"**{row.verdict}**",
        )
        for row in untaught(curves(records, solver, steps), curves(scratch, solver, steps))
    ]
    names = ("family", "head", "evaluations", "without", "taught", "published solver", "difference, 95 %", "verdict")
    return (
        f"{flagged(scratch)}Heads of few evaluations, without a teacher and taught: Frechet distance at the guidance "
        f"scale that is best for the other seeds. Difference: without a teacher, from {solver} x {steps} of the "
        f"velocity head; seeds are unpaired. Margin: {100 * MARGIN:g} %.\n\n{markdown_table(names, cells)}\n"
    )


def table(rows: Sequence[Cost]) -> str:
    """The costs as a Markdown table."""
    cells = [
        (
            FAMILIES[row.curve.family].letter,
            HEADS[row.curve.head].title,
            f"{row.curve.solver} x {row.curve.steps}",
            str(row.curve.evaluations),
            spread(row.curve.values),
            spread(row.reference.values),
            _interval(row.difference),
            f"**{row.verdict}**",
        )
        for row in rows
    ]
    names = ("family", "head", "solver", "evaluations", "Frechet", "published solver", "difference, 95 %", "verdict")
    return markdown_table(names, cells) + "\n"


def rise_table(rows: Sequence[tuple[Cost, Cost, Comparison]]) -> str:
    """The rises as a Markdown table; p is not corrected for their number."""
    cells = [
        (
            f"{left.curve.evaluations}, {HEADS[left.curve.head].title}",
            *(f"{FAMILIES[side.curve.family].letter}: {100 * fmean(side.rise()):+.0f} %" for side in (left, right)),
            f"{100 * result.difference:+.0f} % [{100 * result.low:+.0f}, {100 * result.high:+.0f}]",
            f"{result.p:.2g}",
        )
        for left, right, result in rows
    ]
    return markdown_table(("evaluations, head", "rise", "rise of G", "left - G, 95 %", "p"), cells) + "\n"


def report(records: Sequence[Record], solver: str, steps: int) -> str:
    """What few evaluations cost, as Markdown: at each head's best guidance, and at the highest that was drawn."""
    high = max(r.guidance_scale for r in select(records, schedule="linear"))
    best, strong = (costs(curves(records, solver, steps, at)) for at in (None, high))
    return (
        flagged(records)
        + f"Frechet distance at the guidance scale that is best for the other seeds, in pairs of seeds with {solver} x "
        f"{steps} of the velocity head. Margin: {100 * MARGIN:g} % of that solver's mean.\n\n{table(best)}\n"
        f"At guidance {high:g}:\n\n{table(strong)}\n"
        f"The rise over that solver at the best guidance, on the sphere and in G:\n\n{rise_table(rises(best))}"
    )
