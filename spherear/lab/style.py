"""How figures look: one colour, marker and name a family; sizes that can be read from the back of a room.

Knows: matplotlib's objects and a palette for all eyes (Okabe & Ito).  Does not know: what is drawn.
"""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FONT = 12


@dataclass(frozen=True)
class Look:
    """A family's letter, name, colour and marker, the same in every figure."""

    letter: str
    name: str
    color: str
    marker: str


FAMILIES = {
    "power_spherical": Look("S", "Power Spherical", "#0072B2", "o"),
    "vmf": Look("vMF", "von Mises-Fisher", "#56B4E9", "v"),
    "normalized_gaussian": Look("N", "normalised Gaussian", "#009E73", "s"),
    "gaussian": Look("G", "Gaussian", "#D55E00", "D"),
    "fixed_variance": Look("F", "fixed variance", "#E69F00", "^"),
    "vq": Look("VQ", "vector quantised", "#CC79A7", "P"),
    "decoder_normalized": Look("D", "normalised for the decoder alone", "#000000", "X"),
}
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


def label_of(family: str) -> str:
    """'S Power Spherical' and the like."""
    return f"{FAMILIES[family].letter} {FAMILIES[family].name}"
