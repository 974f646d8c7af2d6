"""The sphere's advantage against the length of the sequence and the numbers of a token, from one study per size.

An error of one token is fed back as often as tokens follow it, so that what the sphere removes should count more the
longer the sequence is. Of a token's numbers it removes one, whatever their count. What is compared are ratios: a
family's Frechet distance over that of S, at the same size and guidance; the judges of two lengths differ (see
`study.judges.find_judge`), and so do their distances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from spherear.console import markdown_table
from spherear.models.config import require
from spherear.sphere.families import FAMILIES, family_label, family_of_letter
from spherear.study.claims import by_seed, comparable, default_sampling, flagged, spread
from spherear.study.records import Record, shipped_records
from spherear.study.statistics import Difference, contrast

STUDIES = {
    "tokens": {16: "length16", 64: "length64", 256: "length256"},
    "numbers per token": {2: "dim2", 4: "length64", 8: "dim8"},
}
"""What varies -> its size -> the study, at equal everything else."""
S = family_of_letter("S").name


@dataclass(frozen=True)
class Advantage:
    """A family against S at one size and guidance. values, sphere: Frechet distance by seed.

    logs: the difference of their mean logarithms, unpaired, with a 95 % interval.
    lengths, sphere_lengths: of late raw tokens, relative to real ones, by seed.
    """

    size: int
    family: str
    guidance_scale: float
    values: Mapping[int, float]
    sphere: Mapping[int, float]
    logs: Difference
    lengths: Mapping[int, float]
    sphere_lengths: Mapping[int, float]

    @property
    def ratio(self) -> float:
        """The family's distance over that of S; above 1, S is the better one."""
        return exp(self.logs.mean)


@dataclass(frozen=True)
class Growth:
    """How much more S is ahead of a family at the larger size. logs: of the ratio of both ratios."""

    family: str
    guidance_scale: float
    sizes: tuple[int, int]
    logs: Difference


def advantages(studies: Mapping[int, Sequence[Record]]) -> list[Advantage]:
    """Every other family against S, by size and guidance; one variant of each. studies: size -> records.

    Points that were measured with one seed alone, of either side, are left out, and so are cells whose VAE had not
    reached its plateau. ValueError for two variants.
    """
    found = []
    for size, made in sorted(studies.items()):
        records = comparable(made)
        for family in FAMILIES:
            variants = sorted({r.variant for r in records if r.family == family})
            require(len(variants) < 2, f"{family} has variants {variants} at size {size}; expected one")
            if not variants or family == S:
                continue
            for scale in sorted({r.guidance_scale for r in default_sampling(records, family=family)}):
                values, sphere, lengths, others = (
                    by_seed(default_sampling(records, family=name, guidance_scale=scale, metric=metric))
                    for metric in ("frechet", "norm_change_late")
                    for name in (family, S)
                )
                if min(len(values), len(sphere)) > 1:
                    logs = contrast([logs_of(values), logs_of(sphere)], (1, -1))
                    found.append(Advantage(size, family, scale, values, sphere, logs, lengths, others))
    return found


def shipped_studies(what: str = "tokens") -> dict[int, list[Record]]:
    """The records that ship, by size. what: a key of STUDIES."""
    return {size: shipped_records(study) for size, study in STUDIES[what].items()}


def shipped_advantages(what: str = "tokens") -> list[Advantage]:
    """Those of the records that ship, of the families with two sizes or more. what: a key of STUDIES."""
    found = advantages(shipped_studies(what))
    sizes = {family: {a.size for a in found if a.family == family} for family in FAMILIES}
    return [a for a in found if len(sizes[a.family]) > 1]


def logs_of(values: Mapping[int, float]) -> list[float]:
    """The logarithms of a metric, of which ratios are differences."""
    return [log(value) for value in values.values()]


def growths(found: Sequence[Advantage]) -> list[Growth]:
    """For every family and guidance: the smallest size against the largest one."""
    rows = []
    for family, scale in dict.fromkeys((a.family, a.guidance_scale) for a in found):
        own = [a for a in found if (a.family, a.guidance_scale) == (family, scale)]
        small, large = min(own, key=lambda a: a.size), max(own, key=lambda a: a.size)
        if small.size < large.size:
            groups = [logs_of(side) for side in (large.values, large.sphere, small.values, small.sphere)]
            rows.append(Growth(family, scale, (small.size, large.size), contrast(groups, (1, -1, -1, 1))))
    return rows


def shipped_report(what: str = "tokens") -> str:
    """The report on the records that ship, and what is not compared. what: a key of STUDIES."""
    left_out = [flagged(records, f"at {size} {what}") for size, records in shipped_studies(what).items()]
    return "".join(left_out) + report(shipped_advantages(what), what)


def report(found: Sequence[Advantage], what: str = "tokens") -> str:
    """All of it as Markdown. what: a key of STUDIES. ValueError without any row."""
    require(len(found) > 0, "there are no families beside S; expected records of two seeds or more")
    ratios = [
        (
            str(a.size), family_label(a.family), f"{a.guidance_scale:g}", spread(a.values), spread(a.sphere),
            factor(a.logs), f"{fmean(a.lengths.values()):+.0%}", f"{fmean(a.sphere_lengths.values()):+.0%}",
        )
        for a in found
    ]  # fmt: skip
    rows = [(family_label(g.family), f"{g.guidance_scale:g}", factor(g.logs), _said(g.logs)) for g in growths(found)]
    sizes = sorted({a.size for a in found})
    return (
        f"Frechet distance of each family over that of S, at the same {what} and guidance; late length: of its raw "
        "tokens, against real ones. Seeds are unpaired; the 95 % interval is Welch's, of the logarithms.\n\n"
        + markdown_table((what, "family", "guidance", "Frechet", "of S", "ratio, 95 %", "late length", "of S"), ratios)
        + f"\n\nThe ratio at {sizes[-1]} {what} over that at {sizes[0]}; none is corrected for their number:\n\n"
        + markdown_table(("family", "guidance", "growth, 95 %", "here"), rows)
        + "\n"
    )


def factor(logs: Difference) -> str:
    """A ratio and its interval, from the difference of logarithms."""
    return f"{exp(logs.mean):.2f} [{exp(logs.low):.2f}, {exp(logs.high):.2f}]"


def _said(logs: Difference) -> str:
    if logs.low > 0:
        return "grows"
    return "shrinks" if logs.high < 0 else "undecided"
