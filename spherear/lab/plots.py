"""Figures: numbers and images in, a matplotlib figure out; no computation, no pyplot, no kernel.

Knows: how things should look.  Does not know: how they were computed.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from spherear.sampling.pixels import tile


def sheets_figure(
    sheets: Mapping[str, Float[Tensor, "n 3 size size"]],
    captions: Mapping[str, str],
    columns: int,
    row_labels: Sequence[str],
) -> Figure:
    """One panel a sheet: its name above, its images `columns` a row, its caption below, rows named at the left."""
    rows = len(row_labels)
    figure = Figure(figsize=(3.2 * len(sheets) + 0.3, 3.2 * rows / columns + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(sheets), squeeze=False)[0]
    for axis, (name, images) in zip(axes, sheets.items(), strict=True):
        axis.imshow(tile(images, columns).numpy(), interpolation="nearest")
        axis.set_title(name, fontsize=14)
        axis.set_xlabel(captions[name], fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    step = next(iter(sheets.values())).shape[-1] + 1  # a row of images and the gap below it
    axes[0].set_yticks([step * (row + 0.5) for row in range(rows)], row_labels, fontsize=11)
    axes[0].tick_params(length=0)
    return figure
