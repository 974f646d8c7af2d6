"""Style of figures: font sizes, and all colours except those of families, which are in `sphere.families`.

The palette is Okabe & Ito's, which colour-blind readers can distinguish.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spherear.models.files import atomic_path
from spherear.sphere.families import FAMILIES, family_label

FONT = 12
LETTERS = 11  # of a legend's title per inch, at most
KINDS = {"radial": "#D55E00", "turning": "#009E73", "tangential": "#0072B2"}
THREE = ("#0072B2", "#D55E00", "#009E73")  # for any three items
GREY = "#999999"
DPI = 100  # of a figure in a file


def new_figure(width: float | int, height: float | int) -> Figure:
    """An empty figure of that size in inches, with its own canvas instead of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def name_axes(axis: Axes, x: str, y: str, title: str = "") -> None:
    """Set labels and title of an axis, and the common style."""
    axis.set_xlabel(x, fontsize=FONT)
    axis.set_ylabel(y, fontsize=FONT)
    axis.tick_params(labelsize=FONT - 1)
    if title:
        axis.set_title(title, fontsize=FONT + 1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def plot_family(axis: Axes, family: str, y: Sequence[float], x: Sequence[float] | None = None, label: str = "") -> None:
    """Plot values of a family in its colour and marker; x: 1, 2, 3, ... by default.  label: its title by default."""
    look, x = FAMILIES[family], range(1, len(y) + 1) if x is None else x
    axis.plot(x, y, color=look.color, marker=look.marker, label=label or family_label(family))


def band(axis: Axes, x: Sequence[float], sides: Sequence[tuple[float, float]], color: object) -> None:
    """Shade between the two values of each position, as for a spread about a line."""
    low, high = zip(*sides, strict=True)
    axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def legend_below(figure: Figure, handles: Iterable[Any], labels: Iterable[str], columns: int, title: str) -> None:
    """One legend for all axes, below them, in so many columns, or in a half, a quarter ... where they are too wide."""
    handles, labels = list(handles), list(labels)
    title = textwrap.fill(title, round(LETTERS * figure.get_figwidth()))
    while True:
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=FONT, title=title)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()
        columns = max(1, columns // 2)


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Write a PNG atomically. dpi: dots per inch."""
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
