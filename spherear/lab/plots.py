"""Figures: numbers and images in, a matplotlib figure out; no computation, no pyplot, no kernel.

Knows: how things should look.  Does not know: how they were computed.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from spherear.sampling.pixels import tile


def guidance_figure(
    images: Mapping[float, Float[Tensor, "n 3 size size"]],
    captions: Mapping[float, str],
    columns: int,
    title: str,
    row_labels: Sequence[str] | None = None,
) -> Figure:
    """One panel a guidance scale, each a sheet of images with `columns` a row and a caption below."""
    rows = -(-len(next(iter(images.values()))) // columns)
    figure = Figure(figsize=(3.4 * len(images), 3.4 * rows / columns + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(images), squeeze=False)[0]
    for axis, (scale, batch) in zip(axes, images.items(), strict=True):
        axis.imshow(tile(batch, columns).numpy(), interpolation="nearest")
        axis.set_title(f"guidance {scale:g}", fontsize=14)
        axis.set_xlabel(captions[scale], fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    if row_labels is not None:
        size = images[next(iter(images))].shape[-1] + 1
        axes[0].set_yticks([size * (row + 0.5) for row in range(rows)], row_labels, fontsize=11)
        axes[0].tick_params(length=0)
    figure.suptitle(title, fontsize=15)
    return figure
