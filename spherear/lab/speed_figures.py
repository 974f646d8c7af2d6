"""Figures of speed: time over tokens, and quality over evaluations.

Knows: how they should look.  Does not know: how anything was timed or judged.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from spherear.bench.growth import Growth
from spherear.lab.style import FONT, GREY, name_axes, new_figure
from spherear.lab.sweep import METRICS, REFERENCE, Row

SOLVER_LOOKS = {
    "euler_maruyama": ("Euler-Maruyama", "#000000", "o", "-"),
    "euler": ("Euler", "#E69F00", "^", "--"),
    "heun": ("Heun", "#0072B2", "s", "-."),
    "adams_bashforth": ("Adams-Bashforth", "#D55E00", "D", ":"),
}
METRIC_NAMES = {"frechet": "Frechet distance", "accuracy": "recognised", "recall": "recall"}


def growth_figure(growth: Growth) -> Figure:
    """Time since the start over tokens drawn, the straight line through it, and the time of each token."""
    figure = new_figure(12, 4.2)
    total, each = figure.subplots(1, 2)
    tokens = range(1, len(growth.upto) + 1)
    total.plot(tokens, growth.upto, color="#0072B2", label="measured")
    start = sum(growth.upto) / len(growth.upto) - growth.slope * (len(growth.upto) + 1) / 2
    line = [start + growth.slope * n for n in tokens]
    label = f"{1000 * growth.slope:.3g} ms a token, r2 = {growth.r2:.4f}"
    total.plot(tokens, line, color="#D55E00", linestyle="--", label=label)
    name_axes(total, "tokens drawn", "seconds", f"{growth.preset}, batch {growth.batch}")
    total.legend(fontsize=FONT - 1)
    steps = [1000 * (b - a) for a, b in zip(growth.upto, growth.upto[1:], strict=False)]
    each.plot(tokens[1:], steps, ".", color="#0072B2")
    each.set_ylim(0, 1.05 * max(steps))
    name_axes(each, "token", "milliseconds", "each token")
    return figure


def sweep_figure(rows: Sequence[Row]) -> Figure:
    """Each metric over evaluations a token, even spacing, a column a model and scale; the band is the reference's."""
    points = sorted({(row.model, row.guidance_scale) for row in rows})
    figure = new_figure(3.6 * len(points), 3.0 * len(METRICS) + 0.6)
    axes = figure.subplots(len(METRICS), len(points), squeeze=False, sharex=True)
    for column, point in enumerate(points):
        here = [row for row in rows if (row.model, row.guidance_scale) == point and row.settings.spacing == "even"]
        (ideal,) = [r for r in here if (r.settings.solver, r.settings.steps) == (REFERENCE.solver, REFERENCE.steps)]
        for line, metric in enumerate(METRICS):
            axis = axes[line, column]
            mean, deviation = ideal.mean[metric], 2 * ideal.deviation[metric]
            axis.axhspan(mean - deviation, mean + deviation, color=GREY, alpha=0.25)
            for solver, (name, color, marker, dash) in SOLVER_LOOKS.items():
                mine = sorted((r.settings.evaluations, r.mean[metric]) for r in here if r.settings.solver == solver)
                axis.plot(*zip(*mine, strict=True), color=color, marker=marker, linestyle=dash, label=name)
            axis.set_xscale("log")
            title = f"{point[0].removeprefix('digits-')}, guidance {point[1]:g}" if line == 0 else ""
            name_axes(axis, "evaluations a token", METRIC_NAMES[metric], title)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=FONT,
                  title="grey: 100 Euler-Maruyama steps, two standard deviations over blocks of images")  # fmt: skip
    return figure
