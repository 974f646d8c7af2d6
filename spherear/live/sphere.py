"""The sphere panel: samples of three distributions on the sphere, and their densities over angle."""

from dataclasses import dataclass

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

APART = 2.6
LOWEST, HIGHEST = 0.1, 300.0


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
        self.numbers = controls.text("sphere-numbers")
        self.spheres = _spheres()
        self.density = _density()
        self._laws: AngleLaws | None = None
        children = [
            controls.row(self.concentration, self.matched),
            controls.row(self.samples, self.seed, self.turn),
            self.numbers,
            controls.row(controls.scrolled(self.spheres, "425px"), controls.column(self.density, width="410px")),
        ]
        super().__init__(children, (self.concentration, self.matched, self.samples, self.seed))
        self.turn_view(self.turn, self.spheres, _eye)
        self.changed()

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
                cloud.x, cloud.y, cloud.z = x + APART * (index - 1), np.ascontiguousarray(y), np.ascontiguousarray(z)
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


def _spheres() -> go.FigureWidget:
    """The figure of three spheres (meshes, points, names); later only its data changes."""
    vertices, faces = sphere_mesh()
    corners = mesh_corners(faces)
    meshes, clouds = [], []
    bar = {"title": {"text": "density / maximum"}, "len": 0.7, "thickness": 12}
    bar |= {"orientation": "h", "y": -0.05, "yanchor": "top"}
    for index, name in enumerate(NAMES):
        look = LAW_LOOKS[name]
        x, y, z = vertices.float().numpy().T
        meshes.append(
            go.Mesh3d(
                x=x + APART * (index - 1), y=np.ascontiguousarray(y), z=np.ascontiguousarray(z), **corners,
                intensity=np.zeros(len(vertices), np.float32), cmin=0, cmax=1, colorscale="Viridis",
                showscale=index == 2, colorbar=bar, name=look.name,
                opacity=1, hoverinfo="name",
            )
        )  # fmt: skip
        marker = {"size": 2.5, "color": "white", "line": {"color": "black", "width": 1}}
        clouds.append(go.Scatter3d(mode="markers", marker=marker, name=look.name, showlegend=False))
    names = go.Scatter3d(
        x=[-APART, 0, APART], y=[0, 0, 0], z=[1.5] * 3, mode="text", showlegend=False, hoverinfo="skip",
        text=[LAW_LOOKS[name].name for name in NAMES], textfont={"size": 14, "color": "black"},
    )  # fmt: skip
    hidden = {f"{axis}axis": {"visible": False} for axis in "xyz"}
    scene = {**hidden, "aspectmode": "data", "camera": {"eye": _eye(0)}}
    margin = {"l": 0, "r": 0, "t": 0, "b": 60}
    return live_figure("spheres", [*meshes, *clouds, names], "", "", height=340, scene=scene, margin=margin)


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
