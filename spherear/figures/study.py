"""Figures and tables of a study: metrics against guidance, the ablation, solvers, decode time.

Bands are plus and minus one standard deviation over seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spherear.bench.growth import Growth
from spherear.console import markdown_table
from spherear.figures.published_scores import ABLATION
from spherear.figures.style import FONT, GREY, band, legend_below, name_axes, new_figure, plot_family, save_figure
from spherear.models.config import require
from spherear.models.files import write_text
from spherear.sphere.families import FAMILIES, family_label
from spherear.study.claims import (
    Best,
    best,
    by_seed,
    claims,
    claims_table,
    default_sampling,
    flagged,
    floor,
    has,
    spread,
)
from spherear.study.records import Record, select
from spherear.study.solver_errors import LOWER_IS_BETTER, MARGINS, Verdict
from spherear.study.statistics import Difference

METRIC_NAMES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance (KID)",
    "saturation_shift": "saturation, generated - real",
    "contrast_shift": "contrast, generated - real",
    "accuracy": "recognised",
    "diversity": "diversity (real = 1)",
    "precision": "precision",
    "recall": "recall",
    "norm_change_late": "length of late raw tokens,\nrelative to real ones",
    "raw_variance_ratio": "variance of raw tokens,\ngenerated / real",
    "variance_ratio": "variance of tokens,\ngenerated / real",
    "effective_rank": "effective rank",
}

SOLVER_LOOKS = {
    ("euler_maruyama", "even"): ("Euler-Maruyama", "#000000", "o"),
    ("adams_bashforth", "even"): ("Adams-Bashforth 2", "#D55E00", "D"),
    ("adams_bashforth", "early"): ("Adams-Bashforth 2, early", "#E69F00", "^"),
    ("adams_bashforth_3", "even"): ("Adams-Bashforth 3", "#0072B2", "s"),
    ("adams_bashforth_3", "annealed"): ("Adams-Bashforth 3, annealed", "#009E73", "v"),
}

Curve = tuple[list[float], list[float], list[float]]


def curve(records: Sequence[Record], variant: str, metric: str) -> Curve:
    """(guidance scales, means, standard deviations over seeds) of a metric. No such records: ValueError."""
    selected = default_sampling(records, variant=variant, metric=metric)
    known = sorted({r.metric for r in records})
    require(len(selected) > 0, f"there are no records of {metric!r} of {variant}; there are some of {known}")
    scales = sorted({r.guidance_scale for r in selected})
    values = [list(by_seed(select(selected, guidance_scale=scale)).values()) for scale in scales]
    return scales, [fmean(v) for v in values], [stdev(v) if len(v) > 1 else 0.0 for v in values]


def guidance_figure(records: Sequence[Record], metric: str = "frechet") -> Figure:
    """One panel per family: its variants in colour with bands, the best variants of other families in grey."""
    families = _drawn_families(records)
    require(len(families) > 0, "there are no records of any family; expected some")
    tops = {family: best(records, family).variant for family in families}
    columns = 2 if len(families) == 4 else min(3, len(families))
    rows = -(-len(families) // columns)
    figure = new_figure(4.2 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, family in zip(axes, families, strict=False):
        label = "the other families"
        for other in families:
            if other != family:
                scales, means, _ = curve(records, tops[other], metric)
                axis.plot(scales, means, color=GREY, alpha=0.5, linewidth=1, label=label)
                label = ""
        _draw_bounds(axis, records, family, tops[family], metric)
        _draw_variants(axis, records, family, metric)
        name_axes(axis, "guidance scale", METRIC_NAMES.get(metric, metric), family_label(family))
    for axis in axes[len(families) :]:
        axis.set_visible(False)
    figure.supxlabel("bands: one standard deviation over seeds", fontsize=FONT)
    return figure


def _drawn_families(records: Sequence[Record], ablation: bool = False) -> list[str]:
    """The measured families in the order of the table; those that are only in the ablation if asked for."""
    return [name for name, row in FAMILIES.items() if ablation >= row.ablation and select(records, family=name)]


def _draw_variants(axis: Axes, records: Sequence[Record], family: str, metric: str) -> None:
    """The curve of every variant of a family, distinguished by line and marker fill; seed counts in the legend."""
    look = FAMILIES[family]
    selected = select(records, family=family, metric=metric)
    for variant, line, fill in zip(
        sorted({r.variant for r in selected}), ("-", "--", ":"), ("full", "none", "left"), strict=False
    ):
        scales, means, deviations = curve(records, variant, metric)
        seeds = len({r.seed for r in select(selected, variant=variant)})
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


def _draw_bounds(axis: Axes, records: Sequence[Record], family: str, variant: str, metric: str) -> None:
    """Dotted lines, where measured: the distance of real images from others (grey) and of reconstructions (colour)."""
    lines = (
        (GREY, "real images", select(records, metric=f"floor_{metric}")),
        (
            FAMILIES[family].color,
            f"{variant} reconstructed",
            select(records, variant=variant, metric=f"reconstruction_{metric}"),
        ),
    )
    for color, label, found in lines:
        if found:
            axis.axhline(fmean(r.value for r in found), color=color, linestyle=":", label=label)


def _band(axis: Axes, x: list[float], means: list[float], deviations: list[float], color: str) -> None:
    band(axis, x, [(m - d, m + d) for m, d in zip(means, deviations, strict=True)], color)


def drift_figure(
    records: Sequence[Record],
    metrics: Sequence[str] = ("norm_change_late", "raw_variance_ratio", "frechet"),
    ablation: bool = False,
) -> Figure:
    """One panel per metric: the best variant of every family against the guidance scale, with bands over seeds.

    ablation: with the families that are only in the ablation.
    """
    families = _drawn_families(records, ablation)
    figure = new_figure(4.8 * len(metrics), 4.6)
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for family in families:
            look, variant = FAMILIES[family], best(records, family).variant
            scales, means, deviations = curve(records, variant, metric)
            plot_family(axis, family, means, scales, f"{variant} {look.title}")
            _band(axis, scales, means, deviations, look.color)
        if floors := select(records, metric=f"floor_{metric}"):
            axis.axhline(fmean(r.value for r in floors), color=GREY, linestyle=":", label="real images")
        name_axes(axis, "guidance scale", METRIC_NAMES.get(metric, metric))
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    handles, labels = axes[0].get_legend_handles_labels()
    counts = [len(best(records, family).values) for family in families]
    seeds = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    legend_below(figure, handles, labels, 3, f"{seeds} seeds, band: one standard deviation")
    return figure


def ablation_figure(records: Sequence[Record]) -> Figure:
    """The four rows of the paper's ablation: Frechet distance, one point per seed (left); published FID (right).

    All are of one KL weight, the lowest that all were measured at, each at its best guidance. ValueError if there is
    none.
    """
    tops = _ablation(records)
    figure = new_figure(10, 3.8)
    measured, published = figure.subplots(1, 2, sharey=True)
    for line, (family, top) in enumerate(tops.items()):
        look, values = FAMILIES[family], list(top.values.values())
        measured.plot(values, [line] * len(values), look.marker, color=look.color, alpha=0.5)
        measured.plot([fmean(values)], [line], "|", color=look.color, markersize=26, markeredgewidth=3)
        published.plot([ABLATION[family][1]], [line], look.marker, color=look.color, markersize=9)
    measured.set_yticks(range(len(tops)), [ABLATION[family][0] for family in tops])
    measured.invert_yaxis()
    title = f"here: {records[0].data}, {min(len(top.values) for top in tops.values())} seeds, bar: mean"
    name_axes(measured, "Frechet distance at best guidance", "normalisation", title)
    name_axes(published, "FID", "", "published: ImageNet 256, SphereAR-L")
    return figure


def _ablation(records: Sequence[Record]) -> dict[str, Best]:
    """The rows of the ablation, by family."""
    weights = _ablation_weights(records)
    require(len(weights) > 0, f"not all of {list(ABLATION)} were measured at one KL weight; expected so")
    return {family: best(records, family, kl_weight=weights[0]) for family in ABLATION}


def _ablation_weights(records: Sequence[Record]) -> list[float]:
    """The KL weights that all rows of the ablation were measured at."""
    return [weight for weight in sorted({r.kl_weight for r in records}) if has(records, *ABLATION, kl_weight=weight)]


def has_ablation(records: Sequence[Record]) -> bool:
    """Whether all rows of the ablation were measured."""
    return bool(_ablation_weights(records))


def ablation_table(records: Sequence[Record]) -> str:
    """The ablation of `ablation_figure` as a Markdown table: mean and standard deviation over seeds, published FID."""
    distance = f"Frechet distance ({records[0].data})"
    columns = ("normalisation", "best guidance", distance, "published FID (ImageNet 256, L)")
    rows = []
    for family, top in _ablation(records).items():
        name, published = ABLATION[family]
        rows.append((f"{name}: {top.variant}", f"{top.guidance_scale:g}", spread(top.values), str(published)))
    return markdown_table(columns, rows) + "\n"


def decode_time_figure(growth: Growth) -> Figure:
    """Elapsed time over tokens drawn with a linear fit (left), and the time of each token (right)."""
    figure = new_figure(12, 4.2)
    total, per_token = figure.subplots(1, 2)
    tokens = range(1, len(growth.upto) + 1)
    total.plot(tokens, growth.upto, color="#0072B2", label="measured")
    start = sum(growth.upto) / len(growth.upto) - growth.slope * (len(growth.upto) + 1) / 2
    line = [start + growth.slope * n for n in tokens]
    label = f"{1000 * growth.slope:.3g} ms per token, r2 = {growth.r2:.4f}"
    total.plot(tokens, line, color="#D55E00", linestyle="--", label=label)
    name_axes(total, "tokens drawn", "seconds", f"{growth.preset}, batch {growth.batch}")
    total.legend(fontsize=FONT - 1)
    steps = [1000 * (b - a) for a, b in zip(growth.upto, growth.upto[1:], strict=False)]
    per_token.plot(tokens[1:], steps, ".", color="#0072B2")
    per_token.set_ylim(0, 1.05 * max(steps))
    name_axes(per_token, "token", "milliseconds", "each token")
    return figure


def quality_figure(found: Sequence[Verdict], scale: float = 4.5) -> Figure:
    """How much worse or better few evaluations are than the published settings: 95 % intervals, and the margin.

    One row per metric, one column per model, at one guidance scale.
    """
    own = [v for v in found if v.settings.guidance_scale == scale]
    models = sorted({v.model for v in own})
    require(len(models) > 0, f"there are no verdicts at guidance {scale:g}; expected some")
    figure = new_figure(3.8 * len(models), 8.4)
    axes = figure.subplots(len(MARGINS), len(models), squeeze=False, sharex=True, sharey="row")
    for column, model in enumerate(models):
        for line, (metric, margin) in enumerate(MARGINS.items()):
            axis = axes[line, column]
            axis.axhline(0, color=GREY)
            axis.axhline(margin if metric in LOWER_IS_BETTER else -margin, color=GREY, linestyle=":")
            for place, ((solver, spacing), (name, color, marker)) in enumerate(SOLVER_LOOKS.items()):
                shown = [v for v in own if (v.model, v.settings.solver, v.settings.spacing) == (model, solver, spacing)]
                x = [v.settings.evaluations + 0.15 * (place - len(SOLVER_LOOKS) // 2) for v in shown]
                sides = [_relative(v, metric) for v in shown]
                means = [d.mean for d in sides]
                reach = [[d.mean - d.low for d in sides], [d.high - d.mean for d in sides]]
                axis.errorbar(x, means, reach, color=color, marker=marker, linestyle="", capsize=3, label=name)
            axis.set_xticks([4, 6, 10])
            kind = "relative difference" if metric in LOWER_IS_BETTER else "difference"
            name = "" if column else f"{METRIC_NAMES[metric]},\n{kind}"
            name_axes(axis, "evaluations per token", name, "" if line else model)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = "95 % intervals of the difference from the published settings; dotted: the margin"
    legend_below(figure, handles, labels, 5, title)
    return figure


def _relative(verdict: Verdict, metric: str) -> Difference:
    """The difference, of a Frechet distance over that of the settings compared with."""
    d = verdict.difference[metric]
    over = verdict.mean[metric] - d.mean if metric in LOWER_IS_BETTER else 1.0
    return Difference(d.mean / over, d.low / over, d.high / over)


HIGH = 12.0  # guidance scale of the statements on high guidance, where it was measured
NOTE = """Made by `{command}`: {cells} trained models, {seeds} seeds, {vae} VAE and {ar} AR steps{batch} each.

All families have the same backbone, budget, data and labels; none was tuned alone. A family's best point is the variant
and guidance scale with the lowest Frechet distance, mean over the seeds it is chosen on; other seeds are reported (mean
± standard deviation). Families are unpaired groups of seeds, compared by an exact permutation test, with a 95 %
interval and p-values corrected for all statements (Holm). *confirmed* or *contradicted*: the corrected p-value is at
most 0.05 and a difference of Frechet distances is at least five times the floor, the distance between two sets of real
images: {floor}. *undecided*: otherwise. *not enough*: with so few seeds, no difference at all could pass.
*Over strengths*: all cells of two families with as many strengths at like rates, where nothing is chosen.

"""


def write_report(records: Sequence[Record], folder: Path, selection: Sequence[Record] | None = None) -> list[Path]:
    """Write guidance.png, drift.png, claims.md and, if all its rows were measured, ablation.png; returns the paths.

    selection: records to choose the best points on, see `claims`.
    """
    figures = {"guidance.png": guidance_figure(records), "drift.png": drift_figure(records)}
    if has_ablation(records):
        figures["ablation.png"] = ablation_figure(records)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    write_text(folder / "claims.md", report(records, selection))
    return [folder / name for name in (*figures, "claims.md")]


def report(records: Sequence[Record], selection: Sequence[Record] | None = None) -> str:
    """The claims and the ablation as Markdown, preceded by a note on the method."""
    first = records[0]
    cells = {(r.variant, r.seed) for r in records}
    seeds = sorted({r.seed for r in records})
    commands = "` and `".join(dict.fromkeys(r.command for r in records))
    text = NOTE.format(
        command=commands, cells=len(cells), seeds=len(seeds), vae=first.vae_steps, ar=first.ar_steps,
        batch=f" of {first.batch_size} images" if first.batch_size else "",
        floor=f"{floor(records):.2g}" if select(records, metric="floor_frechet") else "not measured here",
    )  # fmt: skip
    high = min(HIGH, max(r.guidance_scale for r in select(records, schedule="linear")))
    without = {r.guidance_scale for r in select(records, project_ar=False)}
    text += flagged(records)
    text += claims_table(claims(records, high, max(without, default=high), selection))
    return text + ("\n" + ablation_table(records) if has_ablation(records) else "")
