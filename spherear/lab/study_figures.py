"""Figures of a study's records: metrics against guidance, the ablation; means and bands over seeds.

Knows: records and how they should look.  Does not know: how they were measured.
Bands are plus and minus one standard deviation over seeds.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spherear.lab.claims import best, by_seed, has, spread, usual
from spherear.lab.published import ABLATION
from spherear.lab.records import Record, select
from spherear.lab.style import FAMILIES, FONT, GREY, label_of, name_axes, new_figure
from spherear.models.config import require

ABLATION_ROWS = {
    "gaussian": "none (Gaussian)",
    "decoder_normalized": "decoder side",
    "normalized_gaussian": "decoder and AR side",
    "power_spherical": "both, spherical posterior",
}
SMALL = ("power_spherical", "normalized_gaussian", "gaussian", "fixed_variance", "vmf", "vq")
METRICS = {
    "frechet": "Frechet distance",
    "accuracy": "recognised",
    "diversity": "diversity (real = 1)",
    "precision": "precision",
    "recall": "recall",
    "norm_change_late": "length of late raw tokens,\nrelative to real ones",
    "raw_variance_ratio": "variance of raw tokens,\ngenerated / real",
    "variance_ratio": "variance of tokens,\ngenerated / real",
    "effective_rank": "effective rank",
}

Curve = tuple[list[float], list[float], list[float]]


def curve(records: Sequence[Record], variant: str, metric: str) -> Curve:
    """(guidance scales, means, standard deviations) of a metric over seeds. No such records: ValueError."""
    mine = usual(records, variant=variant, metric=metric)
    known = sorted({r.metric for r in records})
    require(len(mine) > 0, f"there are no records of {metric!r} of {variant}; there are some of {known}")
    scales = sorted({r.guidance_scale for r in mine})
    values = [list(by_seed(select(mine, guidance_scale=scale)).values()) for scale in scales]
    return scales, [fmean(v) for v in values], [stdev(v) if len(v) > 1 else 0.0 for v in values]


def guidance_figure(records: Sequence[Record], metric: str = "frechet") -> Figure:
    """A panel a family: its variants in colour with bands, the best variants of the others in grey."""
    families = [family for family in SMALL if select(records, family=family)]
    require(len(families) > 0, "there are no records of any family; expected some")
    tops = {family: best(records, family).variant for family in families}
    columns = min(3, len(families))
    rows = -(-len(families) // columns)
    figure = new_figure(4.2 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, family in zip(axes, families, strict=False):
        for other in families:
            if other != family:
                scales, means, _ = curve(records, tops[other], metric)
                axis.plot(scales, means, color=GREY, alpha=0.5, linewidth=1)
        _draw_variants(axis, records, family, metric)
        name_axes(axis, "guidance scale", METRICS.get(metric, metric), label_of(family))
    for axis in axes[len(families) :]:
        axis.set_visible(False)
    return figure


def _draw_variants(axis: Axes, records: Sequence[Record], family: str, metric: str) -> None:
    """Every variant of a family, told apart by line and marker filling; the number of seeds in the legend."""
    look = FAMILIES[family]
    mine = select(records, family=family, metric=metric)
    for variant, line, fill in zip(
        sorted({r.variant for r in mine}), ("-", "--", ":"), ("full", "none", "left"), strict=False
    ):
        scales, means, deviations = curve(records, variant, metric)
        seeds = len({r.seed for r in select(mine, variant=variant)})
        axis.plot(
            scales,
            means,
            line,
            color=look.color,
            marker=look.marker,
            fillstyle=fill,
            label=f"{variant} ({seeds} seeds)",
        )
        _band(axis, scales, means, deviations, look.color)
    axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axis.legend(fontsize=FONT - 2)


def _band(axis: Axes, x: list[float], means: list[float], deviations: list[float], color: str) -> None:
    low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
    axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def drift_figure(
    records: Sequence[Record], metrics: Sequence[str] = ("norm_change_late", "raw_variance_ratio", "frechet")
) -> Figure:
    """A panel a metric: every family's best variant against the guidance scale, with bands over seeds."""
    families = [family for family in SMALL if select(records, family=family)]
    figure = new_figure(4.8 * len(metrics), 4.6)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for family in families:
            look, variant = FAMILIES[family], best(records, family).variant
            scales, means, deviations = curve(records, variant, metric)
            axis.plot(scales, means, color=look.color, marker=look.marker, label=f"{variant} {look.name}")
            _band(axis, scales, means, deviations, look.color)
        name_axes(axis, "guidance scale", METRICS.get(metric, metric))
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    handles, labels = axes[0].get_legend_handles_labels()
    seeds = len({r.seed for r in records})
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=3,
        fontsize=FONT,
        title=f"{seeds} seeds, band: one standard deviation",
    )
    return figure


def ablation_figure(records: Sequence[Record], kl_weight: float = 0.004) -> Figure:
    """Frechet distance of the four rows of the paper's ablation, every seed a point; published FID beside it."""
    figure = new_figure(10, 3.8)
    ours, theirs = figure.subplots(1, 2, sharey=True)
    for place, family in enumerate(ABLATION_ROWS):
        look, top = FAMILIES[family], best(records, family, kl_weight=kl_weight)
        values = list(top.values.values())
        ours.plot(values, [place] * len(values), look.marker, color=look.color, alpha=0.5)
        ours.plot([fmean(values)], [place], "|", color=look.color, markersize=26, markeredgewidth=3)
        theirs.plot([ABLATION[family]], [place], look.marker, color=look.color, markersize=9)
    ours.set_yticks(range(len(ABLATION_ROWS)), list(ABLATION_ROWS.values()))
    ours.invert_yaxis()
    seeds = len({r.seed for r in records})
    name_axes(ours, "Frechet distance at best guidance", "normalisation", f"here: digits, {seeds} seeds, bar: mean")
    name_axes(theirs, "FID", "", "published: ImageNet 256, SphereAR-L")
    return figure


def has_ablation(records: Sequence[Record]) -> bool:
    """Whether all rows of the ablation were measured."""
    return has(records, *ABLATION_ROWS)


def ablation_table(records: Sequence[Record], kl_weight: float = 0.004) -> str:
    """The ablation as a Markdown table: mean and standard deviation over seeds, published FID beside."""
    columns = ("normalisation", "best guidance", "Frechet distance (digits)", "published FID (ImageNet 256, L)")
    head = f"| {' | '.join(columns)} |\n|---|---|---|---|\n"
    rows = []
    for family, name in ABLATION_ROWS.items():
        top = best(records, family, kl_weight=kl_weight)
        rows.append(f"| {name}: {top.variant} | {top.guidance_scale:g} | {spread(top.values)} | {ABLATION[family]} |\n")
    return head + "".join(rows)
