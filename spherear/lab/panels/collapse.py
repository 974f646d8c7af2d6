"""A kick and what becomes of it: one token moved, with the projection and without, side by side.

Knows: which control stands for what.  Does not know: the decodes (`lab.kick`).
"""

import time
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from matplotlib.figure import Figure

from spherear.lab.kick import Kick, Pair, kicked
from spherear.lab.live import Turn
from spherear.lab.panels import parts
from spherear.lab.perturbation import KINDS
from spherear.lab.picture import families_of, loaded, model_name, png_bytes, sheet
from spherear.lab.stills import SIDES, kick_figure
from spherear.lab.style import FAMILIES
from spherear.models.config import one_of, require
from spherear.sampling.settings import NAMED_SETTINGS, SamplingSettings

FRAME = 0.1
FLOOR = 1e-7
"""Changes below this are rounding, and drawn at it."""


@dataclass(frozen=True)
class Asked:
    """A kick, drawn so large."""

    kick: Kick
    zoom: int


class CollapseExplorer(parts.Panel[Asked]):
    """Kick one token and watch the rest of the sequence: does the error live on?

    family: whose model.  position: of the kicked token, from 0.  kind, size: of the kick.  images: with the label.
    settings: a row of NAMED_SETTINGS.
    """

    def __init__(
        self,
        family: str = "power_spherical",
        *,
        label: int = 3,
        position: int = 4,
        kind: str = "radial",
        size: float | int = 1.0,
        guidance_scale: float | int = 2.0,
        settings: str = "fast",
        images: int = 4,
        seed: int = 0,
        preset: str = "digits",
    ) -> None:
        families = families_of(preset)
        one_of("family", family, families)
        one_of("kind", kind, KINDS)
        SamplingSettings.named(settings)
        require(images >= 1, f"images is {images}; expected at least 1")
        self.preset, self.images = preset, images
        config = loaded(model_name(family, preset)).ar.config
        require(0 <= position < config.tokens, f"position is {position}; expected 0 to {config.tokens - 1}")
        said = [(f"{FAMILIES[f].letter} {FAMILIES[f].name}", f) for f in families]
        self.family = parts.choice("family", said, family, "kick-family")
        self.label = parts.buttons("class", [(str(i), i) for i in range(config.num_classes)], label, "kick-label")
        self.position = parts.whole("kicked token", position + 1, 1, config.tokens, "kick-position")
        self.kind = parts.buttons("kick", list(KINDS), kind, "kick-kind")
        self.amount = parts.slider("size of the kick", size, 0.0, 3.0, 0.05, "kick-size")
        self.scale = parts.slider("guidance scale", guidance_scale, 0.0, 15.0, 0.1, "kick-scale")
        self.named = parts.choice("settings", list(NAMED_SETTINGS), settings, "kick-named")
        self.seed = parts.number("seed", seed, 2**31 - 1, "kick-seed")
        self.stop_button = parts.button("stop", lambda _: self.stop(), "kick-stop", "keep what is drawn so far")
        self.status = parts.line("kick-status")
        self.sides = [parts.picture(f"kick-grid-{i}") for i in range(len(SIDES))]
        self.numbers = [parts.line(f"kick-numbers-{i}") for i in range(2)]
        self.growth = _growth()
        self._pairs: tuple[Asked, tuple[Pair, Pair]] | None = None
        super().__init__(
            self._arranged(),
            (self.family, self.label, self.position, self.kind, self.amount, self.scale, self.named, self.seed),
        )
        self.changed()

    def _arranged(self) -> list[widgets.Widget]:
        columns = [
            parts.column(widgets.HTML(f"<b>{name}</b>"), image, numbers, width="380px")
            for name, image, numbers in zip(SIDES, self.sides, self.numbers, strict=True)
        ]
        return [
            parts.row(self.label),
            parts.row(self.kind, self.amount, self.position),
            parts.row(self.scale, self.family, self.named, self.seed),
            parts.row(self.stop_button, self.status),
            widgets.HTML("<small>rows: untouched, kicked, their difference (grey is none)</small>"),
            parts.row(*columns, parts.column(self.growth, width="480px")),
        ]

    def read(self) -> Asked:
        """What the controls stand for."""
        model = model_name(self.family.value, self.preset)
        settings = SamplingSettings.named(self.named.value, guidance_scale=round(self.scale.value, 6))
        labels, size = (self.label.value,) * self.images, round(self.amount.value, 6)
        kick = Kick(model, labels, self.seed.value, settings, self.position.value - 1, self.kind.value, size)
        return Asked(kick, max(1, round(360 / (self.images * (loaded(model).vae.config.image_size + 1)))))

    def draw(self, request: Asked, turn: Turn) -> None:
        """Token by token, both sides at once."""
        self._pairs = None
        began, shown = time.perf_counter(), 0.0
        for pairs in kicked(loaded(request.kick.model), request.kick):
            drawn, now, over = pairs[0].before.drawn, time.perf_counter(), turn.over
            if over or pairs[0].before.done or drawn == 1 or (drawn > 1 and now - shown >= FRAME):
                if turn.stale:
                    return
                self._put_up(pairs, request)
                shown = time.perf_counter()
                self._report(pairs[0], shown - began, over)
            if over:
                return
        self._pairs = (request, pairs)

    def _put_up(self, pairs: tuple[Pair, Pair], request: Asked) -> None:
        kick = request.kick
        for pair, image, numbers in zip(pairs, self.sides, self.numbers, strict=True):
            image.value = png_bytes(rows(pair, request.zoom))
            numbers.value = f"change of a pixel (root mean square): {pair.pixels():.3g}"
        places = np.arange(1, pairs[0].before.tokens.shape[1] + 1, dtype=np.int32)
        with self.growth.batch_update():
            for trace, pair in zip(self.growth.data, pairs, strict=False):
                trace.x, trace.y = places, pair.change().clamp(min=FLOOR).float().numpy()
            self.growth.data[2].x = np.full(2, kick.position + 1, np.int32)
            self.growth.data[2].y = np.array([FLOOR, 10.0], np.float32)

    def _report(self, pair: Pair, seconds: float, over: bool) -> None:
        drawn, total = pair.before.drawn, pair.before.tokens.shape[1]
        state = "done" if pair.before.done else ("stopped" if over else "drawing")
        self.status.value = f"{state}: token {drawn} of {total}, {seconds:.2f} s, picture {self.runner.turns}"

    def still(self) -> Figure:
        """Both sides, and the change by position."""
        require(self._pairs is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._pairs is not None
        request, pairs = self._pairs
        kick = request.kick
        caption = f"a {kick.kind} kick of {kick.size:g} at token {kick.position + 1}"
        sheets, changes = [rows(p, request.zoom) for p in pairs], [p.change() for p in pairs]
        return kick_figure(sheets, changes, [p.pixels() for p in pairs], kick.position, caption, FLOOR)


def rows(pair: Pair, zoom: int) -> np.ndarray:
    """Untouched, kicked, and their difference about grey."""
    before, after = pair.before.images().clamp(-1, 1), pair.after.images().clamp(-1, 1)
    return sheet(torch.cat((before, after, (after - before) / 2)), len(before), zoom)


def _growth() -> go.FigureWidget:
    traces: list[Any] = []
    for name, (color, dash, symbol) in SIDES.items():
        stroke, marker = {"color": color, "dash": dash, "width": 3}, {"symbol": symbol, "size": 9, "color": color}
        traces.append(go.Scatter(mode="lines+markers", line=stroke, marker=marker, name=name))
    traces.append(go.Scatter(mode="lines", line={"color": "black", "width": 1}, name="the kick"))
    axis = {"title": {"text": "change of the token"}, "type": "log", "exponentformat": "power"}
    return parts.live_figure("kick-growth", traces, "token", "", height=360, yaxis=axis)
