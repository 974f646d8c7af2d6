"""How figures look: sizes that can be read from the back of a room, and the colours of what is no family.

The palette is Okabe & Ito's, which colour-blind readers can tell apart; families have theirs in `sphere.families`.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spherear.models.files import atomic_path

FONT = 12


KINDS = {"radial": "#D55E00", "turning": "#009E73", "tangential": "#0072B2"}
THREE = ("#0072B2", "#D55E00", "#009E73")  # for three of anything
GREY = "#999999"


def new_figure(width: float | int, height: float | int) -> Figure:
    """A figure of that many inches, with a canvas of its own: no pyplot, no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def name_axes(axis: Axes, x: str, y: str, title: str = "") -> None:
    """Labels and title at a size that can be read."""
    axis.set_xlabel(x, fontsize=FONT)
    axis.set_ylabel(y, fontsize=FONT)
    axis.tick_params(labelsize=FONT - 1)
    if title:
        axis.set_title(title, fontsize=FONT + 1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def save_figure(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=dpi)
