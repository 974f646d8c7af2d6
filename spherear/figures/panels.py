"""The live panels as static matplotlib figures, for `snapshot()`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.densities import AngleLaw, AngleLaws, angle_histogram
from spherear.analysis.sight import RealTokens
from spherear.analysis.trajectories import TokenPath, arrow_tips
from spherear.figures.style import FONT, GREY, name_axes, new_figure
from spherear.sphere.families import FAMILIES

RAW, HANDED_ON = FAMILIES["gaussian"].color, FAMILIES["power_spherical"].color


@dataclass(frozen=True)
class Pane:
    """A sheet of images of one model, and the lengths of its tokens before and after projection; real: of real ones."""

    title: str
    pixels: UInt8[np.ndarray, "height width 3"]
    raw: Float[Tensor, "batch tokens"]
    token: Float[Tensor, "batch tokens"]
    expected: float
    real: RealTokens | None = None


def panes_figure(panes: Sequence[Pane], caption: str) -> Figure:
    """One column per model: the sheet above, lengths by position below, with a shared y axis."""
    rows, columns = panes[0].pixels.shape[:2]
    picture = 4.6 * rows / columns  # inches; a sheet may be wide or square
    figure = new_figure(5.2 * len(panes), picture + 3.2)
    grid = figure.subplots(2, len(panes), squeeze=False, height_ratios=(picture, 2.4))
    for column, pane in enumerate(panes):
        bare(grid[0, column], pane.pixels, pane.title)
        lengths_axes(grid[1, column], pane)
    top = math.ceil(1.1 * max(_longest(pane) for pane in panes))
    for axis in grid[1]:
        axis.set_ylim(0, top)
    figure.suptitle(caption, fontsize=FONT)
    return figure


def _longest(pane: Pane) -> float:
    """The greatest length of a real token or of a mean; single raw tokens may be longer."""
    means = [pane.expected, float(pane.raw.mean(0).max()), float(pane.token.mean(0).max())]
    return max(means + ([float(pane.real.high.max())] if pane.real is not None else []))


def bare(axis: Axes, pixels: UInt8[np.ndarray, "height width 3"], title: str) -> None:
    """Show pixels with a title and without axes."""
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=FONT + 1)
    axis.set_axis_off()


def lengths_axes(axis: Axes, pane: Pane) -> None:
    """Raw lengths (band and mean), lengths after projection (squares), and the expected length (dashed)."""
    positions = np.arange(1, pane.raw.shape[1] + 1)
    low, high = pane.raw.amin(0), pane.raw.amax(0)
    axis.fill_between(positions, low, high, color=RAW, alpha=0.2, label="raw, min to max")
    axis.plot(positions, pane.raw.mean(0), ".-", color=RAW, label="raw, mean")
    axis.plot(positions, pane.token.mean(0), "s", markerfacecolor="none", color=HANDED_ON, label="handed on, mean")
    axis.axhline(pane.expected, color=GREY, linestyle="--", linewidth=2, label=f"expected: {pane.expected:.2f}")
    if pane.real is not None:
        axis.fill_between(positions, pane.real.low, pane.real.high, color=GREY, alpha=0.3, label="real, 5 to 95 %")
    name_axes(axis, "token", "length")
    axis.legend(fontsize=FONT - 3)


@dataclass(frozen=True)
class LawLook:
    """Style of a distribution, for plotly (dash, symbol), matplotlib (style, marker) and text (glyph)."""

    name: str
    color: str
    dash: str
    style: str
    symbol: str
    marker: str
    glyph: str


LAW_LOOKS = {
    "power_spherical": LawLook("Power Spherical", "#0072B2", "solid", "-", "circle", "o", "●"),
    "vmf": LawLook("von Mises-Fisher", "#009E73", "dash", "--", "square", "s", "■"),
    "projected_gaussian": LawLook("Gaussian, projected", "#D55E00", "dot", ":", "diamond", "D", "◆"),
}


def angle_laws_figure(laws: AngleLaws) -> Figure:
    """One sphere per distribution, seen from the side, and the three densities over angle with samples."""
    figure = new_figure(14, 4.2)
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.9))
    for axis, law in zip(axes, laws.laws, strict=False):
        _side_view(axis, laws, law)
    for law in laws.laws:
        look = LAW_LOOKS[law.name]
        degrees = np.rad2deg(laws.angles.numpy())
        axes[3].plot(degrees, law.by_angle, look.style, color=look.color, linewidth=2.5, label=look.name)
        centres, heights = angle_histogram(law.samples)
        axes[3].plot(np.rad2deg(centres.numpy()), heights, look.marker, color=look.color, markersize=5)
    name_axes(axes[3], "angle from the axis, degrees", "density (line), samples (marks)")
    axes[3].legend(fontsize=FONT - 2)
    return figure


def _side_view(axis: Axes, laws: AngleLaws, law: AngleLaw) -> None:
    """The hemisphere y <= 0, coloured by density, with its samples; the axis points up."""
    side = np.linspace(-1, 1, 200)
    x, z = np.meshgrid(side, side)
    inside = x**2 + z**2 <= 1
    color = np.interp(np.arccos(np.clip(z, -1, 1)), laws.angles.numpy(), (law.density / law.density.max()).numpy())
    axis.imshow(np.where(inside, color, np.nan), extent=(-1, 1, -1, 1), origin="lower", cmap="viridis", vmin=0, vmax=1)
    visible = law.samples[law.samples[:, 1] <= 0]
    axis.plot(visible[:, 0], visible[:, 2], "o", color="white", markeredgecolor="black", markersize=3.5)
    symbol = "sigma" if law.name == "projected_gaussian" else "kappa"
    axis.set_title(f"{LAW_LOOKS[law.name].name}\n{symbol} = {law.parameter:.3g}", fontsize=FONT)
    axis.set_axis_off()


@dataclass(frozen=True)
class StrokeLook:
    """Style of a line and its markers, for plotly (dash, symbol) and matplotlib (style, marker)."""

    name: str
    color: str
    dash: str = "solid"
    style: str = "-"
    symbol: str = "circle"
    marker: str = "o"
    size: int = 4
    width: int = 5
    text: str = "top center"


PATHS = (
    StrokeLook("guided path", "#D55E00"),
    StrokeLook("unguided path", "#56B4E9", "dash", "--", "x", "x", 3, 3),
    StrokeLook("projected onto the sphere", "#0072B2", "dot", ":", "square", "s", 6, 6),
    StrokeLook("initial noise", "#000000", symbol="diamond", marker="D", size=6),
)
ARROWS = (
    StrokeLook("conditional", "#009E73", text="middle right"),
    StrokeLook("null", "#000000", text="middle left"),
    StrokeLook("guided", "#CC79A7", text="bottom center"),
)
"""Velocities: the tip of an arrow is the end point along that velocity."""


def token_path_figure(path: TokenPath, step: int, radius: float, position: int) -> Figure:
    """Left: paths, velocity arrows and sphere in space. Right: length over time."""
    figure = new_figure(12.5, 5.4)
    space = figure.add_subplot(1, 2, 1, projection="3d")
    _wire(space, radius)
    ends = torch.stack((path.points[-1], path.token))
    for look, points in zip(PATHS, (path.points, path.unguided, ends, path.points[:1]), strict=True):
        space.plot(*points.numpy().T, look.style, marker=look.marker, markersize=4, color=look.color, label=look.name)
    for look, tip in zip(ARROWS, arrow_tips(path, step), strict=True):
        space.quiver(
            *path.points[step].tolist(), *(tip - path.points[step]).tolist(), color=look.color, arrow_length_ratio=0.15
        )
        space.text(*tip.tolist(), look.name, color=look.color, fontsize=FONT)
    space.set_aspect("equal")
    space.set_axis_off()
    space.view_init(elev=20, azim=_azimuth(path.points[step]))
    space.set_title(f"token {position + 1}, guidance {path.scale:.2f}; arrows at step {step + 1}", fontsize=FONT)
    space.legend(fontsize=FONT - 3, loc="upper left")
    axis = figure.add_subplot(1, 2, 2)
    for look, points in zip(PATHS, (path.points, path.unguided), strict=False):
        axis.plot(
            path.times.numpy(),
            points.norm(dim=-1).numpy(),
            look.style,
            marker=look.marker,
            color=look.color,
            label=look.name,
        )
    axis.plot([1.0], [float(path.token.norm())], "s", color=PATHS[2].color, markersize=9, label="handed on")
    axis.axhline(radius, color=GREY, linestyle="--", linewidth=2, label=f"R = {radius:.2f}")
    axis.axvline(float(path.times[step]), color="black", linewidth=1)
    name_axes(axis, "time, from noise (0) to token (1)", "length")
    axis.legend(fontsize=FONT - 2)
    return figure


def _azimuth(point: Float[Tensor, " 3"]) -> float:
    """Azimuth of the camera, in degrees, so that the point is in front, next to the centre."""
    return float(torch.rad2deg(torch.atan2(point[1], point[0]))) - 35


def _wire(axis: Any, radius: float) -> None:
    polar, azimuth = np.meshgrid(np.linspace(0, np.pi, 13), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    sphere = np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)
    axis.plot_wireframe(*(radius * x for x in sphere), color=GREY, alpha=0.35, linewidth=0.6)


SIDES = {
    "with the projection": ("#0072B2", "solid", "circle"),
    "without the projection": ("#D55E00", "dash", "diamond"),
}


def perturbation_figure(
    sheets: Sequence[UInt8[np.ndarray, "height width 3"]],
    changes: Sequence[Float[Tensor, " tokens"]],
    pixels: Sequence[float],
    position: int,
    caption: str,
    floor: float,
) -> Figure:
    """Images with and without the projection (unperturbed, perturbed, difference), and the change of every token."""
    figure = new_figure(13, 4.4)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    styles = (("-", "o"), ("--", "D"))
    for axis, name, pixel_change, picture in zip(axes, SIDES, pixels, sheets, strict=False):
        bare(axis, picture, f"{name}\npixel change {pixel_change:.2g}")
    for (name, (color, _, _)), change, (style, marker) in zip(SIDES.items(), changes, styles, strict=True):
        axes[2].plot(range(1, len(change) + 1), change.clamp(min=floor), style, marker=marker, color=color, label=name)
    axes[2].axvline(position + 1, color="black", linewidth=1)
    axes[2].set_yscale("log")
    name_axes(axes[2], "token", "change of the token")
    axes[2].legend(fontsize=FONT - 2)
    figure.suptitle(caption, fontsize=FONT)
    return figure


LOSSES = (
    ("#0072B2", "solid", "circle", "-"),
    ("#D55E00", "dash", "diamond", "--"),
    ("#009E73", "dot", "square", ":"),
    ("#CC79A7", "dashdot", "x", "-."),
    ("#E69F00", "longdash", "triangle-up", "-"),
    ("#56B4E9", "longdashdot", "cross", "--"),
)
"""Colour, dash, marker (plotly) and line (matplotlib) of the losses, at most six."""


def training_figure(
    steps: Sequence[int], losses: Mapping[str, Sequence[float]], preview: np.ndarray | None, total: int
) -> Figure:
    """Losses by step, and the latest preview images."""
    figure = new_figure(12 if preview is not None else 7, 4.4)
    axes = figure.subplots(1, 2 if preview is not None else 1, squeeze=False)[0]
    for (name, values), (color, _, _, line) in zip(losses.items(), LOSSES, strict=False):
        axes[0].plot(steps, values, line, color=color, linewidth=2, label=name)
    name_axes(axes[0], "step", "loss", f"step {steps[-1] if steps else 0} of {total}")
    if losses:
        axes[0].legend(fontsize=FONT - 2)
    if preview is not None:
        bare(axes[1], preview, "model output")
    return figure
