"""The paper's figures: published numbers (1), overview of the method (2), token distributions (3), densities (5).

Figures 3 and 5 also exist in 3-D. Figure 4 is in `figures.study`.
"""

import math
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from spherear.analysis.densities import DirectionLaws
from spherear.analysis.latents import TokenLaws
from spherear.analysis.trajectories import Overview
from spherear.figures.published_scores import PUBLISHED
from spherear.figures.style import FONT, GREY, THREE, name_axes, new_figure
from spherear.sampling.pixels import to_uint8

KIND_LOOKS = {
    "SphereAR (raster AR)": ("#0072B2", "o"),
    "raster AR": ("#56B4E9", "v"),
    "masked": ("#009E73", "s"),
    "diffusion": ("#D55E00", "D"),
    "next scale": ("#CC79A7", "P"),
}
CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(0.75)))  # of the simplex of three codes


def published_fid_figure() -> Figure:
    """Figure 1: FID against parameters, as published."""
    figure = new_figure(8, 5)
    axis = figure.subplots()
    for kind, (color, marker) in KIND_LOOKS.items():
        models = [m for m in PUBLISHED if m.kind == kind]
        line = "-" if len(models) > 1 else ""
        axis.plot(
            [m.parameters for m in models],
            [m.fid for m in models],
            line + marker,
            color=color,
            label=kind,
            markersize=8,
        )
    for model in PUBLISHED:
        left = model.name in ("VAR-d30", "LatentLM-L")
        axis.annotate(
            model.name, (model.parameters, model.fid), xytext=(-8 if left else 8, 6), textcoords="offset points",
            fontsize=FONT - 1, ha="right" if left else "left",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(170, 2300)
    axis.margins(y=0.1)
    axis.set_xticks([200, 500, 1000, 2000], ["200M", "500M", "1B", "2B"])
    axis.set_xticks([], minor=True)
    name_axes(axis, "parameters", "FID", "Published: ImageNet 256, 50,000 samples")
    axis.legend(fontsize=FONT - 1, loc="upper right")
    return figure


def overview_figure(o: Overview) -> Figure:
    """Figure 2, from a real run: encode and decode (top); condition, noise to token, projection, image (bottom)."""
    figure = new_figure(15, 7.2)
    axes = figure.subplots(2, 4)
    _picture(axes[0, 0], o.image, "image")
    _matrix(figure, axes[0, 1], o.tokens)
    _lengths(axes[0, 2], o)
    _picture(axes[0, 3], o.reconstruction, "its tokens, decoded")
    _condition(axes[1, 0], o)
    _path(axes[1, 1], o)
    _length_over_time(axes[1, 2], o)
    _picture(axes[1, 3], o.drawn, "an image drawn token by token")
    return figure


def _picture(axis: Axes, image: Float[Tensor, "3 size size"], title: str) -> None:
    axis.imshow(to_uint8(image[None])[0].numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=FONT + 1)
    axis.set_xlabel(f"{image.shape[-1]} pixels", fontsize=FONT)
    axis.set_ylabel(f"{image.shape[-2]} pixels", fontsize=FONT)
    axis.set_xticks([])
    axis.set_yticks([])


def _matrix(figure: Figure, axis: Axes, tokens: Float[Tensor, "tokens dim"]) -> None:
    count, dim = tokens.shape
    image = axis.imshow(
        tokens.numpy(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto", interpolation="nearest",
        extent=(0.5, dim + 0.5, count + 0.5, 0.5),
    )  # fmt: skip
    figure.colorbar(image, ax=axis, label="value")
    name_axes(axis, "dimension", "token", f"{len(tokens)} tokens of {tokens.shape[-1]} numbers")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(False)


def _lengths(axis: Axes, o: Overview) -> None:
    axis.plot(range(1, len(o.tokens) + 1), o.tokens.norm(dim=-1).numpy(), "o-", color=THREE[0], label="|token|")
    if o.radius is not None:
        axis.axhline(o.radius, color=GREY, linestyle="--", label=f"R = {o.radius:.3g}")
    axis.set_ylim(0, 1.5 * float(o.tokens.norm(dim=-1).max()))
    name_axes(axis, "token", "length", "every token has one length" if o.radius else "lengths are free")
    axis.legend(fontsize=FONT - 1)


def _condition(axis: Axes, o: Overview) -> None:
    axis.bar(range(len(o.condition)), o.condition.numpy(), color=THREE[0], width=1.0)
    name_axes(axis, "feature", "value", f"condition of token {o.position + 1}, from all before it")


def _path(axis: Axes, o: Overview) -> None:
    axis.plot(o.path[:, 0].numpy(), o.path[:, 1].numpy(), ".-", color=GREY, linewidth=1)
    axis.plot(*o.path[0, :2].tolist(), "s", color=THREE[1], markersize=9, label="noise")
    axis.plot(*o.raw[:2].tolist(), "o", color=THREE[2], markersize=9, label="raw token")
    axis.plot(*o.token[:2].tolist(), "*", color=THREE[0], markersize=14, label="projected")
    name_axes(axis, "first number", "second number", "noise to token")
    axis.legend(fontsize=FONT - 1)


def _length_over_time(axis: Axes, o: Overview) -> None:
    axis.plot(o.times.numpy(), o.path.norm(dim=-1).numpy(), ".-", color=GREY, label="|x|")
    axis.plot([1.0], [float(o.raw.norm())], "o", color=THREE[2], markersize=9, label="raw")
    axis.plot([1.0], [float(o.token.norm())], "*", color=THREE[0], markersize=14, label="projected")
    name_axes(axis, "solver time", "length", "length on the way, and projection")
    axis.legend(fontsize=FONT - 1)


def token_laws_figure(laws: TokenLaws) -> Figure:
    """Figure 3: three tokens in three colours: on the simplex, in Gaussian latents, on the sphere."""
    figure = new_figure(15, 5.2)
    _simplex(figure.add_subplot(1, 3, 1), laws)
    for column, (points, title) in enumerate(((laws.gaussian, "Gaussian"), (laws.sphere, "hyperspherical")), start=2):
        _cloud(figure.add_subplot(1, 3, column, projection="3d"), laws, points, title)
    return figure


def _cloud(axis: Any, laws: TokenLaws, points: Float[Tensor, "positions n 3"], title: str) -> None:
    """Points in space, and a sphere if all have the same length. axis: Axes3D, which has no type stubs."""
    for cloud, color, position in zip(points, THREE, laws.positions, strict=True):
        axis.scatter(*cloud.T.numpy(), s=8, color=color, alpha=0.6, label=f"token {position + 1}")
    lengths = points.norm(dim=-1)
    if float(lengths.std()) < 1e-3:
        u, v = torch.meshgrid(torch.linspace(0, math.pi, 19), torch.linspace(0, 2 * math.pi, 37), indexing="ij")
        surface = lengths.mean() * torch.stack((u.sin() * v.cos(), u.sin() * v.sin(), u.cos()))
        axis.plot_wireframe(*surface.numpy(), color=GREY, alpha=0.25, linewidth=0.5)
    limit = 1.05 * float(points.abs().max())
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), zlim=(-limit, limit))
    axis.set_box_aspect((1, 1, 1), zoom=0.82)
    axis.locator_params(nbins=5)
    axis.set_title(title, fontsize=FONT + 2, y=0.95)
    axis.set_xlabel("first number", fontsize=FONT)
    axis.set_ylabel("second number", fontsize=FONT)
    axis.set_zlabel("third number", fontsize=FONT)


def _simplex(axis: Axes, laws: TokenLaws) -> None:
    axis.plot(*zip(*CORNERS, CORNERS[0], strict=True), color=GREY)
    for cloud, color, position in zip(laws.discrete, THREE, laws.positions, strict=True):
        points = cloud.double() @ cloud.new_tensor(CORNERS).double()  # (n, 2)
        x, y = points.T.numpy()
        axis.scatter(x, y, s=14, color=color, alpha=0.6, label=f"token {position + 1}")
    for code, (corner, shift) in enumerate(zip(CORNERS, ((-8, -18), (8, -18), (0, 8)), strict=True), start=1):
        axis.annotate(f"code {code}", corner, xytext=shift, textcoords="offset points", ha="center", fontsize=FONT)
    axis.set_title("discrete: probabilities of three codes", fontsize=FONT + 2)
    axis.set_xlabel("each point: what the model gave one image", fontsize=FONT)
    axis.set_ylabel("barycentric coordinates", fontsize=FONT)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.12)
    axis.legend(fontsize=FONT - 1, loc="upper left")


def direction_laws_figure(laws: DirectionLaws) -> Figure:
    """Figure 5: both densities on the half of the sphere around the axis (equal area), and along great circles."""
    figure = new_figure(14, 4.6)
    top = float(max(laws.spherical.max(), laws.projected.max()))
    sides = ((laws.spherical, "Power Spherical"), (laws.projected, "Gaussian, projected"))
    for column, (density, title) in enumerate(sides, start=1):
        axis = figure.add_subplot(1, 3, column)
        mesh = _lambert(axis, laws, density, top)
        name_axes(axis, "first number", "second number", title)
        axis.grid(False)
    figure.colorbar(mesh, ax=figure.axes, label="density", shrink=0.8)
    axis = figure.add_subplot(1, 3, 3)
    quarter = len(laws.azimuth) // 4
    for meridian, color, name in ((0, THREE[1], "first"), (quarter, THREE[2], "second")):
        axis.plot(
            laws.polar.numpy(), laws.projected[:, meridian].numpy(), color=color, label=f"projected, towards the {name}"
        )
    axis.plot(laws.polar.numpy(), laws.spherical[:, 0].numpy(), color=THREE[0], label="Power Spherical, anywhere")
    axis.set_xlim(0, math.pi / 2)
    axis.set_ylim(0, 1.4 * top)
    name_axes(axis, "angle from the axis (radians)", "density", "one is axially symmetric, one is not")
    axis.legend(fontsize=FONT - 1)
    return figure


def _lambert(axis: Axes, laws: DirectionLaws, density: Float[Tensor, "polar azimuth"], top: float) -> QuadMesh:
    """The half of the sphere around the axis, in Lambert's equal-area projection."""
    half = laws.polar < math.pi / 2
    r = 2 * (laws.polar[half] / 2).sin()[:, None]
    x, y = r * laws.azimuth.cos(), r * laws.azimuth.sin()
    mesh = axis.pcolormesh(
        *(closed(z).numpy() for z in (x, y, density[half])), cmap="viridis", vmin=0, vmax=top, shading="gouraud"
    )
    axis.set_aspect("equal")
    return mesh


def closed(z: Float[Tensor, "polar azimuth"]) -> Float[Tensor, "polar more"]:
    """`z` with the first azimuth repeated at the end, so that a plot has no gap."""
    return z[:, [*range(z.shape[1]), 0]]


def capped(z: Float[Tensor, "polar azimuth"]) -> Float[Tensor, "more azimuth"]:
    """`z` with the mean of the first ring before it and that of the last one after it, so that poles are no holes."""
    first, last = (ring.mean().expand(1, z.shape[1]) for ring in (z[0], z[-1]))
    return torch.cat((first, z, last))


AXES = {
    f"{name}axis": {"title": {"text": f"{word} number", "font": {"size": 14}}, "nticks": 5, "tickfont": {"size": 12}}
    for name, word in zip("xyz", ("first", "second", "third"), strict=True)
}
SPACE = {
    "width": 720, "height": 440, "margin": {"l": 0, "r": 0, "t": 40, "b": 0}, "template": "plotly_white",
    "paper_bgcolor": "white", "font": {"size": 14, "color": "black"},
    "legend": {"x": 0, "y": 1, "itemsizing": "constant"},
}  # fmt: skip
"""Layout of figures in space: below their picture on one screen, legible in a dark theme too."""


def token_laws_figure_3d(laws: TokenLaws, which: str = "sphere") -> go.Figure:
    """Three tokens in three colours. which: discrete, gaussian or sphere."""
    figure = go.Figure()
    for cloud, color, position in zip(getattr(laws, which), THREE, laws.positions, strict=True):
        x, y, z = cloud.float().T.numpy()
        marker = {"size": 3, "color": color, "opacity": 0.7}
        figure.add_scatter3d(x=x, y=y, z=z, mode="markers", marker=marker, name=f"token {position + 1}")
    scene = {**AXES, "aspectmode": "cube", "camera": {"eye": dict.fromkeys("xyz", 1.5)}}
    figure.update_layout(scene=scene, title={"text": f"tokens: {which}"}, **SPACE)
    return figure


def direction_laws_figure_3d(laws: DirectionLaws) -> go.Figure:
    """Both densities as colour on spheres, side by side."""
    figure = go.Figure()
    top = float(max(laws.spherical.max(), laws.projected.max()))
    sides = (("Power Spherical", laws.spherical, -1.2), ("Gaussian, projected", laws.projected, 1.2))
    for name, density, shift in sides:
        x, y, z, color = (closed(capped(n)).float().numpy() for n in (*laws.points.unbind(-1), density))
        figure.add_surface(
            x=x + shift, y=y, z=z, surfacecolor=color, cmin=0, cmax=top, colorscale="Viridis", showscale=shift > 0,
            name=name, hovertemplate="%{surfacecolor:.2f}", colorbar={"title": {"text": "density"}},
        )  # fmt: skip
    scene: dict[str, Any] = {f"{name}axis": {"visible": False} for name in "xyz"}  # shifted, so ticks would be wrong
    scene |= {"aspectmode": "data", "camera": {"eye": {"x": 0, "y": -1.2, "z": 1.2}}}
    figure.update_layout(
        scene=scene, title={"text": "Power Spherical (left), and a Gaussian projected (right)"}, **SPACE
    )
    return figure
