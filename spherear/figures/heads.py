"""The figure of few evaluations: Frechet distance over evaluations per token, one panel per family."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from spherear.figures.style import GREY, legend_below, name_axes, new_figure, save_figure
from spherear.models.config import require
from spherear.models.files import write_text
from spherear.models.heads.table import HEADS
from spherear.sphere.families import family_label
from spherear.study.questions.heads import MARGIN, REFERENCE, Curve, curves, report
from spherear.study.records import Record

TICKS = (0.5, 1, 2, 5, 10, 20, 50)


def heads_figure(found: Sequence[Curve]) -> Figure:
    """Lines are means over seeds, points are seeds; grey: the published solver, and the margin above it."""
    families = list(dict.fromkeys(curve.family for curve in found))
    require(len(families) > 0, "there are no curves; expected records of two seeds or more")
    used = sorted({curve.evaluations for curve in found if curve.method != REFERENCE})
    values = [value for curve in found for value in curve.values.values()]
    shown = [tick for tick in TICKS if min(values) / 1.5 < tick < 1.5 * max(values)]
    figure = new_figure(4.2 * len(families), 4.4)
    axes = figure.subplots(1, len(families), sharex=True, sharey=True, squeeze=False)[0]
    for axis, family in zip(axes, families, strict=True):
        own = [curve for curve in found if curve.family == family]
        for reference in (curve for curve in own if curve.method == REFERENCE):
            mean = fmean(reference.values.values())
            ends = [used[0], used[-1]]
            axis.plot(ends, [mean, mean], color=GREY)
            axis.fill_between(ends, mean, (1 + MARGIN) * mean, color=GREY, alpha=0.25, linewidth=0)
        for head in dict.fromkeys(curve.head for curve in own):
            look, line = HEADS[head], [curve for curve in own if curve.head == head and curve.method != REFERENCE]
            means = [fmean(curve.values.values()) for curve in line]
            x = [curve.evaluations for curve in line]
            axis.plot(x, means, color=look.color, marker=look.marker, label=look.title)
            for curve in line:
                for value in curve.values.values():
                    axis.plot(curve.evaluations, value, look.marker, color=look.color, alpha=0.35, markersize=4)
        axis.set_xscale("log")
        axis.set_yscale("log")
        for scale, ticks in ((axis.xaxis, used), (axis.yaxis, shown)):  # plain numbers, not powers of ten
            scale.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
            scale.set_minor_locator(NullLocator())
        name_axes(axis, "evaluations per token", "Frechet distance", family_label(family))
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    seeds = max(len(curve.values) for curve in found)
    title = f"{seeds} seeds; grey: the published solver, and {100 * MARGIN:g} % above"
    legend_below(figure, handles.values(), handles.keys(), 4, title)
    return figure


def write_heads(records: Sequence[Record], solver: str, steps: int, folder: Path) -> list[Path]:
    """Write heads.md, and heads.png if there are two seeds or more; solver, steps: of the grid. Returns the paths."""
    found, paths = curves(records, solver, steps), [folder / "heads.md"]
    write_text(paths[0], report(records, solver, steps))
    if found:
        paths.append(folder / "heads.png")
        save_figure(heads_figure(found), paths[1])
    return paths
