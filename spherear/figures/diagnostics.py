"""Figures of diagnostics, from the dataclasses of `analysis`. Nothing is measured here, and pyplot is not used."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.diagnostics import EffectiveRank, ProjectionJacobian, RadialShare, SpreadHistogram
from spherear.analysis.latents import CollapseRow
from spherear.analysis.perturbation import ErrorGrowth
from spherear.figures.style import FONT, GREY, KINDS, name_axes, new_figure, plot_family
from spherear.models.config import require
from spherear.sampling.pixels import tile
from spherear.sphere.families import FAMILIES, family_label


def sheets_figure(
    sheets: Mapping[str, Float[Tensor, "n 3 size size"]],
    captions: Mapping[str, str],
    columns: int,
    row_labels: Sequence[str],
    row_title: str,
) -> Figure:
    """One panel per sheet: name above, images in `columns` columns, caption below, what the rows are on the left."""
    rows = len(row_labels)
    width = 3.2 if columns <= rows else 5.0
    figure = new_figure(width * len(sheets) + 0.3, width * rows / columns + 0.7)
    axes = figure.subplots(1, len(sheets), squeeze=False, sharey=True)[0]
    for axis, (name, images) in zip(axes, sheets.items(), strict=True):
        axis.imshow(tile(images, columns).numpy(), interpolation="nearest")
        axis.set_title(name, fontsize=14)
        axis.set_xlabel(captions[name], fontsize=11)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    step = next(iter(sheets.values())).shape[-1] + 1  # a row of images and the gap below it
    axes[0].set_yticks([step * (row + 0.5) for row in range(rows)], row_labels, fontsize=11)
    axes[0].set_ylabel(row_title, fontsize=11)
    return figure


def scales_sheet_figure(
    sheets: Mapping[str, Sequence[Float[Tensor, "n 3 size size"]]],
    captions: Mapping[str, Sequence[str]],
    scales: Sequence[float],
    columns: int = 5,
) -> Figure:
    """One row of panels per name, one panel per guidance scale: its images, and its caption below.

    All rows must have a panel and a caption per scale (ValueError).
    """
    figure = new_figure(3.5 * len(scales), 3.3 * len(sheets))
    axes = figure.subplots(len(sheets), len(scales), squeeze=False, sharey="row")
    for scale, axis in zip(scales, axes[0], strict=True):
        axis.set_title(f"guidance {scale:g}", fontsize=FONT + 2)
    for line, (name, panels) in zip(axes, sheets.items(), strict=True):
        for axis, images, caption in zip(line, panels, captions[name], strict=True):
            axis.imshow(tile(images, columns).numpy(), interpolation="nearest")
            axis.set_xlabel(caption, fontsize=FONT)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=FONT + 1)
    return figure


def collapse_figure(rows: Sequence[CollapseRow]) -> Figure:
    """One row per family: length of raw tokens by position and guidance scale (left), and images (right)."""
    figure = new_figure(15, 3.1 * len(rows))
    grid = figure.add_gridspec(len(rows), 2, width_ratios=(1, 1.5))
    extent = torch.stack([norms.relative for row in rows for norms in row.norms])
    low, high = float(extent.min()), float(extent.max())
    for line, row in enumerate(rows):
        axis = figure.add_subplot(grid[line, 0])
        shades = colormaps["viridis"]
        for index, (scale, norms) in enumerate(zip(row.scales, row.norms, strict=True)):
            color = shades(0.9 * index / max(1, len(row.scales) - 1))
            axis.plot(range(1, len(norms.relative) + 1), norms.relative.numpy(), ".-", color=color, label=f"{scale:g}")
        axis.axhline(0, color=GREY, linestyle="--")
        axis.set_ylim(low - 0.02, high + 0.02)
        name_axes(axis, "token", "|raw| / |real| - 1", family_label(row.family))
        _image_rows(figure.add_subplot(grid[line, 1]), row)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles[: len(rows[0].scales)], labels, title="guidance scale", loc="outside upper left", ncols=6, fontsize=FONT
    )
    return figure


def _image_rows(axis: Axes, row: CollapseRow) -> None:
    """Images, one row per guidance scale."""
    images = torch.cat(row.images)
    axis.imshow(tile(images, columns=len(row.images[0])).numpy(), interpolation="nearest")
    step = images.shape[-1] + 1
    axis.set_yticks([step * (i + 0.5) for i in range(len(row.scales))], [f"{s:g}" for s in row.scales], fontsize=FONT)
    axis.set_xticks([])
    axis.set_ylabel("guidance", fontsize=FONT)
    axis.set_xlabel("same labels and seeds in every row", fontsize=FONT)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def perturbation_growth_figure(growths: Sequence[ErrorGrowth], floor: float = 1e-12) -> Figure:
    """Left: change of every token, for the largest size. Right: change of pixels against size, log-log.

    Changes below `floor` are rounding errors and drawn at `floor`.
    """
    require(len(growths) > 0, "there are no growths; expected some")
    figure = new_figure(13, 4.8)
    left, right = figure.subplots(1, 2)
    for kind, projected in sorted({(g.kind, g.projected) for g in growths}):
        group = sorted((g for g in growths if (g.kind, g.projected) == (kind, projected)), key=lambda g: g.size)
        look = {"color": KINDS[kind], "linestyle": "-" if projected else "--", "marker": "o" if projected else "x"}
        name = f"{kind}, {'projected' if projected else 'not projected'}"
        latents = group[-1].latents.clamp(min=floor)
        left.plot(range(1, len(latents) + 1), latents.numpy(), label=name, **look)
        right.plot([g.size for g in group], [max(floor, g.pixels) for g in group], label=name, **look)
    for axis in (left, right):
        axis.set_yscale("log")
    right.set_xscale("log")
    _slopes(right, growths)
    largest = max(g.size for g in growths)
    name_axes(
        left,
        "token",
        "change of the token (root mean square)",
        f"a perturbation of {largest:g} at token {growths[0].position + 1}",
    )
    name_axes(right, "size of the perturbation", "change of a pixel", f"at {floor:g}: nothing but rounding")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=FONT - 1)
    return figure


def _slopes(axis: Axes, growths: Sequence[ErrorGrowth]) -> None:
    """Reference lines of slope 1 and 2."""
    sizes = sorted({g.size for g in growths})
    top = max(g.pixels for g in growths)
    for order, dashes in ((1, ":"), (2, "-.")):
        line = [3 * top * (size / sizes[-1]) ** order for size in sizes]
        axis.plot(sizes, line, color="black", linewidth=1, linestyle=dashes, label=f"slope {order}")


def spread_figure(histograms: Mapping[str, SpreadHistogram]) -> Figure:
    """Histogram of the posterior spread, one panel per family; the dashed line is the median."""
    figure = new_figure(4.4 * len(histograms), 3.6)
    for axis, (family, histogram) in zip(
        figure.subplots(1, len(histograms), squeeze=False)[0], histograms.items(), strict=True
    ):
        axis.stairs(histogram.counts.numpy(), histogram.edges.numpy(), fill=True, color=FAMILIES[family].color)
        axis.axvline(float(histogram.quantiles[1]), color="black", linestyle="--")
        unit = FAMILIES[family].spread
        name_axes(axis, unit, "numbers" if unit == "standard deviation" else "tokens", family_label(family))
    return figure


def jacobian_figure(jacobian: ProjectionJacobian) -> Figure:
    """Measured and expected Jacobian of the projection, and their difference."""
    figure = new_figure(12, 3.9)
    top = float(jacobian.expected.abs().max())
    panels = (
        ("by autograd", jacobian.measured, top),
        ("(R/|z|) (I - u u^T)", jacobian.expected, top),
        ("difference", jacobian.measured - jacobian.expected, max(jacobian.difference, 1e-300)),
    )
    for axis, (title, matrix, limit) in zip(figure.subplots(1, 3), panels, strict=True):
        image = axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        figure.colorbar(image, ax=axis, shrink=0.8)
        name_axes(axis, "input", "output", title)
        axis.grid(False)
    return figure


def rank_figure(ranks: Mapping[str, EffectiveRank]) -> Figure:
    """Eigenvalues of the covariance of tokens, per family; effective rank in the legend."""
    figure = new_figure(7, 4.4)
    axis = figure.subplots()
    for family, rank in ranks.items():
        plot_family(axis, family, rank.spectrum.tolist(), label=f"{family_label(family)}: {rank.rank:.1f}")
    axis.set_ylim(bottom=0)
    name_axes(axis, "eigenvalue", "share of the variance", "effective rank of the tokens")
    axis.legend(fontsize=FONT - 1)
    return figure


def radial_share_figure(shares: Mapping[str, RadialShare]) -> Figure:
    """Radial share of a one-step prediction error by position; dashed: an isotropic error."""
    figure = new_figure(7, 4.4)
    axis = figure.subplots()
    for family, share in shares.items():
        plot_family(axis, family, share.per_token.tolist(), label=f"{family_label(family)}: {share.mean:.2f}")
        axis.axhline(share.isotropic, color=GREY, linestyle="--")
    axis.set_ylim(bottom=0)
    name_axes(axis, "token", "|radial|² / |error|²", "errors of a one-step estimate")
    axis.legend(fontsize=FONT - 1)
    return figure
