"""The perturbation panel: one token is perturbed, and decoded with and without the projection, side by side."""

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.perturbation import KINDS, Perturbation, PerturbedPair, perturbed_decode
from spherear.figures.panels import SIDES, perturbation_figure
from spherear.live import controls
from spherear.live.figure import live_figure
from spherear.live.latest_wins import Cancellation
from spherear.live.parts.classes import class_control
from spherear.live.parts.models import Model, Models, named_model
from spherear.live.picture import png_bytes, progress, sheet, shown
from spherear.models.config import one_of, require
from spherear.sampling.placement import placement_of
from spherear.sampling.settings import NAMED_SETTINGS, SamplingSettings

FAMILY = "power_spherical"
FRAME = 0.1
"""Minimum seconds between two image updates."""
FACTORS = (1, 2, 5, 10, 20, 50, 100)
"""By which the differences of a picture are amplified, so that they are seen; the panel says by which."""
VISIBLE = 1e-3
"""Half a difference of pixels below this is none: less than half a byte."""
FLOOR = 1e-7
"""Changes below this are rounding errors, and drawn at this value."""


@dataclass(frozen=True)
class PerturbationRequest:
    """A model and a perturbation of its decode. zoom: pixels of the picture per pixel of an image."""

    model: str
    perturbation: Perturbation
    zoom: int


class PerturbationExplorer(controls.Panel[PerturbationRequest]):
    """Perturb one token and watch whether the error persists in later tokens and in the image.

    family, ar, vae, device, dtype, engine: the model, as in `GuidanceExplorer`.  label: as there.
    position: of the perturbed token, from 0.  kind, size: of the perturbation.
    images: number of images of the class.  settings: a row of NAMED_SETTINGS.
    """

    def __init__(
        self,
        family: Model = FAMILY,
        *,
        ar: Path | str | None = None,
        vae: Path | str | None = None,
        label: int | str = "auto",
        position: int = 4,
        kind: str = "radial",
        size: float | int = 1.0,
        guidance_scale: float | int = 2.0,
        settings: str = "fast",
        images: int = 4,
        seed: int = 0,
        preset: str = "digits",
        device: str = "auto",
        dtype: str = "auto",
        engine: str = "auto",
    ) -> None:
        one_of("kind", kind, KINDS)
        SamplingSettings.named(settings)
        require(images >= 1, f"images is {images}; expected at least 1")
        self.images = images
        self.models = Models(named_model(FAMILY, family, ar), placement_of(device, dtype, engine), preset, vae)
        config = self.models.outline(self.models.first).ar
        require(0 <= position < config.tokens, f"position is {position}; expected 0 to {config.tokens - 1}")
        self.family = controls.dropdown("model", self.models.options, self.models.first, "perturbation-family")
        self.label = class_control(config, label, "perturbation-label")
        self.position = controls.int_slider("perturbed token", position + 1, 1, config.tokens, "perturbation-position")
        self.kind = controls.toggle_buttons("perturbation", list(KINDS), kind, "perturbation-kind")
        self.amount = controls.float_slider("size of the perturbation", size, 0.0, 3.0, 0.05, "perturbation-size")
        self.scale = controls.float_slider("guidance scale", guidance_scale, 0.0, 15.0, 0.1, "perturbation-scale")
        self.named = controls.dropdown("settings", list(NAMED_SETTINGS), settings, "perturbation-named")
        self.seed = controls.int_field("seed", seed, 2**31 - 1, "perturbation-seed")
        self.stop_button = controls.button(
            "stop", lambda _: self.stop(), "perturbation-stop", "stop drawing and keep the partial images"
        )
        self.status = controls.text("perturbation-status")
        self.machine = controls.text("perturbation-machine")
        self.sides = [controls.image(f"perturbation-grid-{i}") for i in range(len(SIDES))]
        self.numbers = [controls.text(f"perturbation-numbers-{i}") for i in range(2)]
        self.headings = [controls.text(f"perturbation-heading-{i}") for i in range(2)]
        self.rows = controls.text("perturbation-rows")
        self.growth = _growth()
        self._pairs: tuple[PerturbationRequest, tuple[PerturbedPair, ...]] | None = None
        super().__init__(
            self._layout(),
            (self.family, self.label, self.position, self.kind, self.amount, self.scale, self.named, self.seed),
        )
        self.changed()

    def _layout(self) -> list[widgets.Widget]:
        self.columns = [
            controls.column(heading, image, numbers, width="380px")
            for heading, image, numbers in zip(self.headings, self.sides, self.numbers, strict=True)
        ]
        return [
            controls.row(self.label),
            controls.row(self.kind, self.amount, self.position),
            controls.row(self.scale, self.family, self.named, self.seed),
            controls.row(self.stop_button, self.status),
            self.machine,
            self.rows,
            controls.row(*self.columns, controls.column(self.growth, width="480px")),
        ]

    def read(self) -> PerturbationRequest:
        """The request for the current values of the controls."""
        model = self.family.value
        settings = SamplingSettings.named(self.named.value, guidance_scale=round(self.scale.value, 6))
        labels, size = (self.label.value,) * self.images, round(self.amount.value, 6)
        perturbation = Perturbation(labels, self.seed.value, settings, self.position.value - 1, self.kind.value, size)
        size = self.models.outline(model).vae.image_size
        return PerturbationRequest(model, perturbation, max(1, round(360 / (self.images * (size + 1)))))

    def draw(self, request: PerturbationRequest, cancellation: Cancellation) -> None:
        """Draw token by token, with and without the projection in parallel."""
        self._pairs = None
        self.machine.value = f"<small>{self.models.sentences((request.model,))}</small>"
        pipeline, perturbation = self.models.pipeline(request.model), request.perturbation
        self._name_sides(pipeline.vae.bottleneck.radius is not None, html.escape(self.models.title(request.model)))
        start = time.perf_counter()
        decodes = [perturbed_decode(pipeline, perturbation, projected) for projected in (True, False)]
        for pairs, stopped in shown(zip(*decodes, strict=True), lambda p: p[0].before, cancellation, FRAME):
            self._show(pairs, request)
            text = progress(pairs[0].before, stopped, time.perf_counter() - start)
            self.status.value = f"{text}, picture {self.runner.started}"
            if pairs[0].before.done and not stopped:
                self._pairs = (request, pairs)

    def _name_sides(self, projected: bool, title: str) -> None:
        """Headings; one side alone for a model without a projection, where both are the same decode."""
        names = [f"{title}, {name}" for name in SIDES]
        if not projected:
            names = [f"{title}: it has no projection, so both sides are this one", ""]
        for heading, name in zip(self.headings, names, strict=True):
            heading.value = f"<b>{name}</b>"
        self.columns[1].layout.display = "" if projected else "none"
        self.growth.data[0].visible = projected

    def _show(self, pairs: tuple[PerturbedPair, ...], request: PerturbationRequest) -> None:
        factor, p = amplification(pairs), request.perturbation
        self.rows.value = f"<small>rows: {row_names(factor)}</small>"
        for place, (pair, image, numbers) in enumerate(zip(pairs, self.sides, self.numbers, strict=True)):
            image.value = png_bytes(rows(pair, request.zoom, factor))
            numbers.value = f"pixel change (root mean square): {pair.pixels():.3g}"
            text = f"{list(SIDES)[place]}, a {p.kind} perturbation of {p.size:g} at token {p.position + 1}"
            self.browser.describe(**{f"perturbation_grid_{place}": f"{text}; rows: {row_names(factor)}"})
        positions = np.arange(1, pairs[0].before.tokens.shape[1] + 1, dtype=np.int32)
        with self.growth.batch_update():
            for trace, pair in zip(self.growth.data, pairs, strict=False):
                trace.x, trace.y = positions, pair.change().clamp(min=FLOOR).float().numpy()
            self.growth.data[2].x = np.full(2, request.perturbation.position + 1, np.int32)
            self.growth.data[2].y = np.array([FLOOR, 10.0], np.float32)

    def still(self) -> Figure:
        """The images of both sides, and the change by position."""
        require(self._pairs is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._pairs is not None
        request, pairs = self._pairs
        p = request.perturbation
        caption = f"a {p.kind} perturbation of {p.size:g} at token {p.position + 1}"
        factor = amplification(pairs)
        sheets, changes = [rows(pair, request.zoom, factor) for pair in pairs], [pair.change() for pair in pairs]
        caption = f"{caption}; rows: {row_names(factor)}"
        return perturbation_figure(sheets, changes, [pair.pixels() for pair in pairs], p.position, caption, FLOOR)


def row_names(factor: int) -> str:
    """What the rows of a sheet are."""
    return f"unperturbed, perturbed, {factor} times their difference (grey: none)"


def amplification(pairs: Sequence[PerturbedPair]) -> int:
    """The greatest of FACTORS that keeps 99 % of all differences within the range of a pixel; 1 if there are none."""
    differences = torch.cat([_difference(pair).abs().flatten() for pair in pairs])
    changed = differences[differences > VISIBLE]
    if len(changed) == 0:
        return 1
    return max([factor for factor in FACTORS if factor * float(changed.quantile(0.99)) <= 1], default=1)


def _difference(pair: PerturbedPair) -> Tensor:
    """Half of perturbed minus unperturbed, in [-1, 1]."""
    return (pair.after.images().clamp(-1, 1) - pair.before.images().clamp(-1, 1)) / 2


def rows(pair: PerturbedPair, zoom: int, factor: int) -> np.ndarray:
    """A sheet with three rows: unperturbed, perturbed, and `factor` times their difference, where grey is 0."""
    before, after = pair.before.images().clamp(-1, 1), pair.after.images().clamp(-1, 1)
    difference = (factor * _difference(pair)).clamp(-1, 1)
    return sheet(torch.cat((before, after, difference)), len(before), zoom)


def _growth() -> go.FigureWidget:
    traces: list[Any] = []
    for name, (color, dash, symbol) in SIDES.items():
        stroke, marker = {"color": color, "dash": dash, "width": 3}, {"symbol": symbol, "size": 9, "color": color}
        traces.append(go.Scatter(mode="lines+markers", line=stroke, marker=marker, name=name))
    traces.append(go.Scatter(mode="lines", line={"color": "black", "width": 1}, name="the perturbation"))
    axis = {"title": {"text": "change of the token"}, "type": "log", "exponentformat": "power"}
    return live_figure("perturbation-growth", traces, "token", "", height=360, yaxis=axis)
