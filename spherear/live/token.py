"""The token panel: the path of one token in space, from noise to the sphere, with the velocities along it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.canvas import expected_length, length_symbol
from spherear.analysis.densities import sphere_mesh
from spherear.analysis.trajectories import TokenPath, arrow_tips, token_path
from spherear.figures.panels import ARROWS, PATHS, token_path_figure
from spherear.figures.style import GREY
from spherear.live import controls
from spherear.live.figure import camera, live_figure, mesh_corners
from spherear.live.latest_wins import Cancellation
from spherear.live.parts.classes import class_control
from spherear.live.parts.models import Model, Models, named_model
from spherear.models.ar import ARConfig
from spherear.models.config import require
from spherear.sampling.placement import placement_of
from spherear.sampling.settings import SCHEDULES, SamplingSettings
from spherear.sampling.solvers import SOLVERS

PRESET, FAMILY = "digits3", "power_spherical"


@dataclass(frozen=True)
class TokenRequest:
    """A token of one image. step: solver step, from 0, whose velocities are shown."""

    model: str
    label: int
    position: int
    seed: int
    settings: SamplingSettings
    step: int

    def same_path(self, other: "TokenRequest") -> bool:
        """Whether both requests have the same path; `step` may differ."""
        return replace(self, step=other.step) == other


class TokenExplorer(controls.Panel[TokenRequest]):
    """The path of a three-dimensional token: guidance moves it off the sphere, and the projection moves it back.

    family, ar, vae, device, dtype, engine: the model, as in `GuidanceExplorer`; its tokens are continuous and have
    three dimensions, as those of the shipped power_spherical and gaussian.  label: as in `GuidanceExplorer`.
    position: of the token, from 0.  step: solver step, from 0, at which velocities are shown as arrows.
    """

    def __init__(
        self,
        family: Model = FAMILY,
        *,
        ar: Path | str | None = None,
        vae: Path | str | None = None,
        label: int | str = "auto",
        position: int = 9,
        seed: int = 0,
        guidance_scale: float | int = 4.0,
        solver: str = "euler",
        steps: int = 12,
        step: int = 3,
        device: str = "auto",
        dtype: str = "auto",
        engine: str = "auto",
    ) -> None:
        self.models = Models(named_model(FAMILY, family, ar), placement_of(device, dtype, engine), PRESET, vae)
        config, first = self.models.outline(self.models.first).ar, self.models.first
        require(_in_space(config), f"{first} has {_kind(config)}; expected continuous tokens of 3 dimensions")
        options = [(title, name) for title, name in self.models.options if _in_space(self.models.outline(name).ar)]
        require(0 <= position < config.tokens, f"position is {position}; expected 0 to {config.tokens - 1}")
        require(0 <= step < steps <= 50, f"step and steps are {step} and {steps}; expected 0 <= step < steps <= 50")
        self.family = controls.dropdown("model", options, first, "token-family")
        self.label = class_control(config, label, "token-label")
        self.token = controls.int_slider("token", position + 1, 1, config.tokens, "token")
        self.scale = controls.float_slider("guidance scale", guidance_scale, 0.0, 15.0, 0.1, "token-scale")
        self.schedule = controls.dropdown("schedule", list(SCHEDULES), "constant", "token-schedule")
        self.solver = controls.dropdown("solver", list(SOLVERS), solver, "token-solver")
        self.steps = controls.int_slider("solver steps", steps, 1, 50, "token-steps")
        self.step = controls.int_slider("arrows at step", step + 1, 1, steps, "token-step")
        self.project = controls.checkbox("project tokens onto the sphere", True, "token-project")
        self.seed = controls.int_field("seed", seed, 2**31 - 1, "token-seed")
        self.turn = controls.int_slider("turn the view", 35, 0, 360, "token-turn")
        self.numbers, self.machine = controls.text("token-numbers"), controls.text("token-machine")
        self.space, self.lengths = _space(), _lengths()
        self._path: tuple[TokenRequest, TokenPath] | None = None
        self._limits: list[list[float]] = []
        children = [
            controls.row(self.label),
            controls.row(self.scale, self.token, self.step),
            controls.row(self.steps, self.solver, self.schedule, self.family),
            controls.row(self.seed, self.project, self.turn),
            self.numbers,
            self.machine,
            controls.row(controls.column(self.space, width="425px"), controls.column(self.lengths, width="410px")),
        ]
        watched = (
            self.family,
            self.label,
            self.token,
            self.scale,
            self.schedule,
            self.solver,
            self.steps,
            self.project,
        )
        super().__init__(children, (*watched, self.seed, self.step))
        self.steps.observe(self._bound_step, "value")
        self.turn_view(self.turn, self.space, _eye)
        self.changed()

    def _bound_step(self, change: Any) -> None:
        with self.showing_errors(), self.together():
            self.step.max = change["new"]

    def read(self) -> TokenRequest:
        """The request for the current values of the controls."""
        settings = SamplingSettings(
            guidance_scale=round(self.scale.value, 6),
            schedule=self.schedule.value,
            solver=self.solver.value,
            steps=self.steps.value,
            project=self.project.value,
        )
        step = min(self.step.value, self.steps.value) - 1
        return TokenRequest(self.family.value, self.label.value, self.token.value - 1, self.seed.value, settings, step)

    def draw(self, request: TokenRequest, cancellation: Cancellation) -> None:
        """Update the paths, the three velocity arrows, and the lengths over time."""
        self.machine.value = f"<small>{self.models.sentences((request.model,))}</small>"
        pipeline = self.models.pipeline(request.model)
        path = self._path[1] if self._path is not None and self._path[0].same_path(request) else None
        if path is None:
            path = token_path(
                pipeline, request.label, request.position, request.settings, request.seed, lambda: cancellation.over
            )
        if path is None or cancellation.stale:
            return
        self._path, radius = (request, path), expected_length(pipeline)
        self._draw_space(path, request.step, radius)
        self._draw_lengths(path, request.step, radius)
        self.numbers.value = describe(path, radius, length_symbol(pipeline))

    def _draw_space(self, path: TokenPath, step: int, radius: float) -> None:
        sphere, _ = sphere_mesh()
        tips = arrow_tips(path, step)
        lines = [path.points, path.unguided, torch.stack((path.points[-1], path.token)), path.points[:1]]
        lines += [torch.stack((path.points[step], tip)) for tip in tips]
        limits = _limits(torch.cat([radius * sphere.to(lines[0]), *lines]))
        if limits != self._limits:
            self._limits = limits
            self.space.layout.scene.update({f"{a}axis": {"range": ends} for a, ends in zip("xyz", limits, strict=True)})
        with self.space.batch_update():
            _set_points(self.space.data[0], radius * sphere)
            for trace, points in zip(self.space.data[1:], lines, strict=True):
                _set_points(trace, points)

    def _draw_lengths(self, path: TokenPath, step: int, radius: float) -> None:
        times = path.times.numpy().astype(np.float32)
        with self.lengths.batch_update():
            for trace, points in zip(self.lengths.data, (path.points, path.unguided), strict=False):
                trace.x, trace.y = times, points.norm(dim=-1).float().numpy()
            end = np.array([1.0], np.float32)
            self.lengths.data[2].x, self.lengths.data[2].y = end, path.token.norm()[None].float().numpy()
            self.lengths.data[3].x = np.array([0.0, 1.0], np.float32)
            self.lengths.data[3].y = np.array([radius, radius], np.float32)
            self.lengths.data[4].x = np.full(2, times[step])
            self.lengths.data[4].y = np.array(
                [0.0, 1.2 * max(radius, float(path.points.norm(dim=-1).max()))], np.float32
            )

    def still(self) -> Figure:
        """The path in space and its length over time."""
        assert self._path is not None
        request, path = self._path
        return token_path_figure(
            path, request.step, expected_length(self.models.pipeline(request.model)), request.position
        )


def _in_space(config: ARConfig) -> bool:
    return config.latent_dim == 3 and not config.codes


def _kind(config: ARConfig) -> str:
    return f"a codebook of {config.codes}" if config.codes else f"tokens of {config.latent_dim} dimensions"


def describe(path: TokenPath, radius: float, name: str) -> str:
    """A line of text on the end of a path. name: symbol of the expected length."""
    raw, token = path.points[-1], path.token
    return (
        f"raw length {float(raw.norm()):.3f}, unguided {float(path.unguided[-1].norm()):.3f}, "
        f"handed on {float(token.norm()):.3f} ({name} = {radius:.3f}); the projection moves it by "
        f"{float((raw - token).norm()):.3f}; guidance at this token: {path.scale:.2f}"
    )


def _limits(points: Float[Tensor, "n 3"]) -> list[list[float]]:
    """Ends of the three axes, with room for the names of the arrows, which plotly cuts off at the ends."""
    low, high = points.amin(0), points.amax(0)
    room = 0.2 * float((high - low).max())
    ends = zip((2 * (low - room)).floor().tolist(), (2 * (high + room)).ceil().tolist(), strict=True)
    return [[first / 2, last / 2] for first, last in ends]


def _set_points(trace: Any, points: Float[Tensor, "n 3"]) -> None:
    trace.x, trace.y, trace.z = (np.ascontiguousarray(coordinate) for coordinate in points.float().cpu().numpy().T)


def _eye(degrees: float | int) -> dict[str, float]:
    return camera(degrees, distance=2.0, height=0.85)


def _space() -> go.FigureWidget:
    """The figure of sphere, paths and arrows; later only its data changes."""
    _, faces = sphere_mesh()
    traces: list[Any] = [
        go.Mesh3d(**mesh_corners(faces), color=GREY, opacity=0.2, hoverinfo="skip", name="sphere of radius R"),
    ]
    for look in PATHS:
        marker = {"size": look.size, "color": look.color, "symbol": look.symbol}
        stroke = {"color": look.color, "width": look.width, "dash": look.dash}
        traces.append(go.Scatter3d(mode="lines+markers", line=stroke, marker=marker, name=look.name))
    for look in ARROWS:
        marker = {"size": [0, 6], "color": look.color, "symbol": look.symbol}
        stroke = {"color": look.color, "width": look.width}
        traces.append(
            go.Scatter3d(mode="lines+markers+text", line=stroke, marker=marker, name=look.name, text=["", look.name],
                         textfont={"size": 14, "color": look.color}, textposition=look.text)
        )  # fmt: skip
    axes = {f"{axis}axis": {"title": {"text": ""}, "showticklabels": False} for axis in "xyz"}
    scene = {**axes, "aspectmode": "data", "camera": {"eye": _eye(35), "center": {"x": 0, "y": 0, "z": -0.1}}}
    return live_figure("space", traces, "", "", height=460, scene=scene, margin={"l": 0, "r": 0, "t": 0, "b": 0})


def _lengths() -> go.FigureWidget:
    guided, unguided, projected, _ = PATHS
    return live_figure(
        "token-lengths",
        [
            go.Scatter(mode="lines+markers", line={"color": guided.color, "width": 3}, name=guided.name),
            go.Scatter(mode="lines+markers", line={"color": unguided.color, "dash": "dash"}, name=unguided.name),
            go.Scatter(
                mode="markers", marker={"color": projected.color, "size": 12, "symbol": "square"}, name="handed on"
            ),
            go.Scatter(mode="lines", line={"color": GREY, "dash": "dash", "width": 3}, name="R"),
            go.Scatter(mode="lines", line={"color": "black", "width": 1}, name="step of the arrows", showlegend=False),
        ],
        "time, from noise (0) to token (1)",
        "length",
        height=400,
    )
