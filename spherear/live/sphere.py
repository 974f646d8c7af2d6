"""The sphere panel: samples of three distributions on the sphere, and their densities over angle."""

from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.densities import BINS, NAMES, AngleLaw, AngleLaws, angle_histogram, angle_laws, sphere_mesh
from spherear.figures.panels import LAW_LOOKS, angle_laws_figure
from spherear.live import controls
from spherear.live.figure import camera, live_figure, mesh_corners
from spherear.live.latest_wins import Cancellation

ALL = "all"
LOWEST, HIGHEST = 0.1, 300.0
DIMENSION = "Directions in three dimensions, d = 3, where a sphere can be drawn; the models' tokens have more."


@dataclass(frozen=True)
class SphereRequest:
    """concentration: of Power Spherical.  matched: whether all distributions have the same mean cosine."""

    concentration: float
    matched: bool
    samples: int
    seed: int


class SphereExplorer(controls.Panel[SphereRequest]):
    """Power Spherical, von Mises-Fisher and a projected Gaussian, side by side, from broad to narrow.

    concentration: initial value for Power Spherical, 0.1 to 300.  samples: points per sphere.
    """

    def __init__(self, concentration: float | int = 10.0, *, samples: int = 200, seed: int = 0) -> None:
        angle_laws(concentration, samples=1)  # refuses invalid concentrations
        controls.within("concentration", concentration, LOWEST, HIGHEST)
        self.concentration = controls.tagged(
            widgets.FloatLogSlider(
                value=concentration, base=10, min=np.log10(LOWEST), max=np.log10(HIGHEST), step=0.02,
                description="concentration", style=controls.WIDE,
                layout=widgets.Layout(width="420px", max_width="100%"),
            ),
            "concentration",
        )  # fmt: skip
        self.matched = controls.checkbox("same mean cosine (else: same kappa)", True, "matched")
        self.samples = controls.int_slider("samples", samples, 10, 1000, "samples")
        self.seed = controls.int_field("seed", seed, 2**31 - 1, "sphere-seed")
        self.turn = controls.int_slider("turn the view", 0, -180, 180, "turn")
        turned = [(ALL, ALL), *((LAW_LOOKS[name].name, place) for place, name in enumerate(NAMES))]
        self.which = controls.dropdown("of", turned, ALL, "turn-which")
        self.numbers = controls.text("sphere-numbers")
        self.spheres = _spheres()
        self.density = _density()
        self._laws: AngleLaws | None = None
        children = [
            controls.row(self.concentration, self.matched),
            controls.row(self.samples, self.seed, self.turn, self.which),
            controls.tagged(widgets.HTML(DIMENSION), "sphere-dimension"),
            self.numbers,
            controls.row(controls.scrolled(self.spheres, "600px"), controls.column(self.density, width="410px")),
        ]
        super().__init__(children, (self.concentration, self.matched, self.samples, self.seed))
        self.turn.observe(self._turn, "value")
        self.browser.describe(
            spheres="Three spheres with draws of three distributions, coloured by density",
            density="Densities of the three distributions over the angle from the axis, and histograms of the draws",
        )
        self.changed()

    def _turn(self, change: Any) -> None:
        """Rotate the chosen sphere, or all; dragging one by the mouse turns it alone."""
        with self.showing_errors():
            places = range(len(NAMES)) if self.which.value == ALL else [self.which.value]
            with self.spheres.batch_update():
                for place in places:
                    self.spheres.layout[_scene(place)].camera.eye = _eye(change["new"])

    def read(self) -> SphereRequest:
        """The request for the current values of the controls."""
        return SphereRequest(self.concentration.value, self.matched.value, self.samples.value, self.seed.value)

    def draw(self, request: SphereRequest, cancellation: Cancellation) -> None:
        """Update the colours, points and lines of the existing figures."""
        laws = angle_laws(request.concentration, request.matched, request.samples, request.seed)
        if cancellation.stale:
            return
        polar = sphere_mesh()[0][:, 2].clamp(-1, 1).arccos().numpy()
        # One batch per property: plotly erases a property that a batch does not set for all traces.
        with self.spheres.batch_update():
            for mesh, law in zip(self.spheres.data, laws.laws, strict=False):
                shares = law.density / law.density.max()
                mesh.intensity = np.interp(polar, laws.angles.numpy(), shares.numpy()).astype(np.float32)
        with self.spheres.batch_update():
            for index, law in enumerate(laws.laws):
                x, y, z = (1.02 * law.samples).float().numpy().T
                cloud = self.spheres.data[3 + index]
                cloud.x, cloud.y, cloud.z = (np.ascontiguousarray(part) for part in (x, y, z))
        with self.density.batch_update():
            for index, law in enumerate(laws.laws):
                centres, shares = angle_histogram(law.samples)
                line, marks = self.density.data[index], self.density.data[3 + index]
                line.x, line.y = np.rad2deg(_single(laws.angles)), _single(law.by_angle)
                marks.x, marks.y = np.rad2deg(_single(centres)), _single(shares)
        self._laws = laws
        self.numbers.value = "<br>".join(describe(law) for law in laws.laws)

    def still(self) -> Figure:
        """The current spheres and densities."""
        assert self._laws is not None
        return angle_laws_figure(self._laws)


def _single(values: Tensor) -> np.ndarray:
    """float32, which plotly sends fastest."""
    return values.float().numpy()


def describe(law: AngleLaw) -> str:
    """One line of HTML on a distribution: name, parameter and mean cosine."""
    symbol = "sigma" if law.name == "projected_gaussian" else "kappa"
    look = LAW_LOOKS[law.name]
    return f"{look.glyph} <b>{look.name}</b>: {symbol} = {law.parameter:.3g}, mean cosine {law.mean_cosine:.3f}"


def _eye(degrees: float | int) -> dict[str, float]:
    """Camera position, rotated about the vertical; 0 degrees is the front."""
    return camera(degrees - 90, distance=1.7, height=0.7)


def _scene(place: int) -> str:
    """Plotly's name of the scene of a sphere."""
    return "scene" if place == 0 else f"scene{place + 1}"


def _spheres() -> go.FigureWidget:
    """The figure of three spheres, each in a scene of its own that turns alone; later only its data changes."""
    vertices, faces = sphere_mesh()
    corners = mesh_corners(faces)
    meshes, clouds = [], []
    bar = {"title": {"text": "density / maximum"}, "len": 0.7, "thickness": 12}
    bar |= {"orientation": "h", "y": -0.02, "yanchor": "top"}
    x, y, z = (np.ascontiguousarray(part) for part in vertices.float().numpy().T)
    for index, name in enumerate(NAMES):
        look, scene = LAW_LOOKS[name], _scene(index)
        meshes.append(
            go.Mesh3d(
                x=x, y=y, z=z, **corners, intensity=np.zeros(len(vertices), np.float32), cmin=0, cmax=1,
                colorscale="Viridis", showscale=index == 2, colorbar=bar, name=look.name, opacity=1, hoverinfo="name",
                scene=scene,
            )
        )  # fmt: skip
        marker = {"size": 2.5, "color": "white", "line": {"color": "black", "width": 1}}
        clouds.append(go.Scatter3d(mode="markers", marker=marker, name=look.name, showlegend=False, scene=scene))
    names = [
        go.Scatter3d(
            x=[0], y=[0], z=[1.35], mode="text", text=[LAW_LOOKS[name].name], showlegend=False, hoverinfo="skip",
            textfont={"size": 14, "color": "black"}, scene=_scene(index),
        )
        for index, name in enumerate(NAMES)
    ]  # fmt: skip
    margin = {"l": 0, "r": 0, "t": 0, "b": 60}
    scenes = {_scene(place): _look(place) for place in range(len(NAMES))}
    return live_figure("spheres", [*meshes, *clouds, *names], "", "", height=330, margin=margin, **scenes)


def _look(place: int) -> dict[str, Any]:
    """Where a sphere stands in the figure, and from where it is seen; its name stands above it."""
    ends = {"x": [-1.1, 1.1], "y": [-1.1, 1.1], "z": [-1.1, 1.6]}
    axes = {f"{letter}axis": {"visible": False, "range": limits} for letter, limits in ends.items()}
    shape = {letter: (high - low) / 2.2 for letter, (low, high) in ends.items()}
    domain = {"x": [place / len(NAMES), (place + 1) / len(NAMES)], "y": [0, 1]}
    return {**axes, "aspectmode": "manual", "aspectratio": shape, "camera": {"eye": _eye(0)}, "domain": domain}


def _density() -> go.FigureWidget:
    lines, points = [], []
    for name in NAMES:
        look = LAW_LOOKS[name]
        lines.append(
            go.Scatter(mode="lines", line={"color": look.color, "dash": look.dash, "width": 3}, name=look.name)
        )
        marker = {"color": look.color, "symbol": look.symbol, "size": 8}
        points.append(
            go.Scatter(x=np.zeros(BINS, np.float32), mode="markers", marker=marker, showlegend=False,
                       name=f"{look.name}, samples")
        )  # fmt: skip
    return live_figure(
        "density", [*lines, *points], "angle from the axis, degrees", "density (line), samples (marks)", height=340
    )
