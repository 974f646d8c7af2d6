"""The figures of sizes, as of sequences and tokens: each family against S over guidance, one curve per size."""

from collections.abc import Sequence
from math import exp, log
from statistics import fmean, stdev

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from spherear.figures.style import GREY, band, legend_below, name_axes, new_figure
from spherear.models.config import require
from spherear.sphere.families import family_label
from spherear.study.questions.sizes import Advantage

TICKS = (0.5, 0.7, 1, 1.5, 2, 3, 5)
MARKERS = ("o", "s", "D", "^")


def sizes_figure(found: Sequence[Advantage], what: str = "tokens") -> Figure:
    """Above: Frechet distance over that of S. Below: length of late raw tokens, and dotted that of S.
    One column per family, one curve per size.

    what: a key of STUDIES.  Bands: one standard deviation over seeds, above of both families (of the logarithms).
    """
    families = list(dict.fromkeys(a.family for a in found))
    require(len(families) > 0, "there are no families beside S; expected records of two seeds or more")
    sizes = sorted({a.size for a in found})
    colors = {size: colormaps["viridis"](0.8 - 0.7 * n / max(1, len(sizes) - 1)) for n, size in enumerate(sizes)}
    figure = new_figure(max(10.4, 4.2 * len(families)), 7.4)
    axes = figure.subplots(2, len(families), sharex=True, sharey="row", squeeze=False)
    for (above, below), family in zip(axes.T, families, strict=True):
        above.axhline(1, color=GREY)
        below.axhline(0, color=GREY)
        for size, marker in zip(sizes, MARKERS, strict=False):
            own = [a for a in found if (a.family, a.size) == (family, size)]
            seeds = min(min(len(a.values), len(a.sphere)) for a in own)
            look = {"color": colors[size], "marker": marker, "label": f"{size} {what} ({seeds} seeds)"}
            scales = [a.guidance_scale for a in own]
            spreads = [_spread(a) for a in own]
            above.plot(scales, [a.ratio for a in own], **look)
            logs = [(a.logs.mean, d) for a, d in zip(own, spreads, strict=True)]
            band(above, scales, [(exp(mean - d), exp(mean + d)) for mean, d in logs], colors[size])
            means = [fmean(a.lengths.values()) for a in own]
            below.plot(scales, means, **look)
            sides = [(m - d, m + d) for m, d in zip(means, (stdev(a.lengths.values()) for a in own), strict=True)]
            band(below, scales, sides, colors[size])
            sphere = [fmean(a.sphere_lengths.values()) for a in own]
            below.plot(scales, sphere, ":", color=colors[size], label=f"S at {size}")
        above.set_yscale("log")
        above.yaxis.set_minor_locator(NullLocator())
        low, high = above.get_ylim()
        ticks = [tick for tick in TICKS if low < tick < high]
        above.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        scales = sorted({a.guidance_scale for a in found})
        below.set_xticks(scales, [f"{scale:g}" for scale in scales])
        name_axes(above, "guidance scale", "Frechet distance / that of S", family_label(family))
        name_axes(below, "guidance scale", "length of late raw tokens\nover that of real ones, - 1")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    legend_below(figure, handles, labels, 2 * len(sizes), "band: one standard deviation over seeds")
    return figure


def _spread(row: Advantage) -> float:
    """Standard deviation of the logarithms of both families."""
    return sum(stdev([log(v) for v in side.values()]) ** 2 for side in (row.values, row.sphere)) ** 0.5
