"""Every family beside S in colour, in one study of small batches: also those too dear for six seeds and large batches.

The families of `length64` and `others` share everything but the latents. Each is compared with S twice: both at the
guidance that is best for them (mean over all seeds, so both are flattered alike), and both at a high guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from spherear.console import markdown_table
from spherear.models.config import require
from spherear.sphere.families import FAMILIES, family_label, family_of_letter
from spherear.study.claims import Best, best, by_seed, comparable, default_sampling, flagged, spread
from spherear.study.questions.sizes import factor, logs_of
from spherear.study.records import Record, select, shipped_records
from spherear.study.statistics import Difference, contrast

STUDIES = "length64", "others"
HIGH = 12.0  # guidance scale
S = family_of_letter("S").name


@dataclass(frozen=True)
class Beside:
    """A variant, with values by seed. top: its best point.  high: its Frechet distance at HIGH.

    ratio, high_ratio: its mean logarithm minus that of S, at both places; None for S itself.
    accuracy, lengths: recognised images, and lengths of late raw tokens relative to real ones, at HIGH.
    """

    variant: str
    top: Best
    ratio: Difference | None
    high: Mapping[int, float]
    high_ratio: Difference | None
    accuracy: Mapping[int, float]
    lengths: Mapping[int, float]
    nats: float
    reconstructed: float


def every_family() -> list[Record]:
    """The records that ship of both studies."""
    return [record for study in STUDIES for record in shipped_records(study)]


def beside(records: Sequence[Record]) -> list[Beside]:
    """Every variant, in the order of the families; S first. Cells whose VAE had not reached its plateau are left out.

    ValueError without S, and for a variant with one seed.
    """
    kept = comparable(records)
    require(len(select(kept, family=S)) > 0, "there are no records of S; expected some, to compare with")
    sphere = best(kept, S)

    def at_high(variant: str, metric: str) -> Mapping[int, float]:
        return by_seed(default_sampling(kept, variant=variant, guidance_scale=HIGH, metric=metric))

    sphere_high = at_high(sphere.variant, "frechet")
    rows = []
    for family in sorted(FAMILIES, key=lambda name: name != S):
        for variant in sorted({r.variant for r in kept if r.family == family}):
            top, high = best(kept, family, variant=variant), at_high(variant, "frechet")
            own = variant == sphere.variant
            rows.append(
                Beside(
                    variant, top, None if own else _ratio(top.values, sphere.values), high,
                    None if own else _ratio(high, sphere_high), at_high(variant, "accuracy"),
                    at_high(variant, "norm_change_late"), _mean(kept, variant, "kl"),
                    _mean(kept, variant, "reconstruction_frechet"),
                )
            )  # fmt: skip
    return rows


def _ratio(values: Mapping[int, float], sphere: Mapping[int, float]) -> Difference:
    return contrast([logs_of(values), logs_of(sphere)], (1, -1))


def _mean(records: Sequence[Record], variant: str, metric: str) -> float:
    return fmean(r.value for r in select(records, variant=variant, metric=metric))


def report(records: Sequence[Record]) -> str:
    """What is not compared, and a row for every variant, as Markdown."""
    header = (
        "family", "seeds", "nats per token", "reconstructed", "best guidance", "Frechet there", "over that of S, 95 %",
        f"Frechet at {HIGH:g}", "over that of S, 95 %", "recognised", "late length",
    )  # fmt: skip
    rows = [
        (
            f"{family_label(b.top.family)}, {b.variant}", str(len(b.top.values)), f"{b.nats:.3g}",
            f"{b.reconstructed:.3g}", f"{b.top.guidance_scale:g}", spread(b.top.values),
            factor(b.ratio) if b.ratio else "", spread(b.high), factor(b.high_ratio) if b.high_ratio else "",
            f"{fmean(b.accuracy.values()):.0%}", f"{fmean(b.lengths.values()):+.0%}",
        )
        for b in beside(records)
    ]  # fmt: skip
    first = records[0]
    return (
        f"{first.vae_steps} VAE and {first.ar_steps} AR steps of {first.batch_size} images each. Every "
        "family is at the guidance that is best for it in the mean of all seeds, then at one high guidance. Seeds are "
        "unpaired; the 95 % interval of a ratio is Welch's, of the logarithms, and not corrected for the number of "
        "rows.\n\n" + flagged(records) + markdown_table(header, rows) + "\n"
    )
