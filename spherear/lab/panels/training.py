"""A training loop while it runs: its losses, its rate, what its model makes; paused or stopped between two steps.

Knows: streams of `TrainState`.  Does not know: what is trained.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn

from spherear.lab.live import Turn
from spherear.lab.panels import parts
from spherear.lab.picture import png_bytes, sheet
from spherear.lab.stills import LOSSES, training_figure
from spherear.models.ar import SphereAR
from spherear.models.config import require
from spherear.models.vae import VAE
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.training.run import TrainState

Preview = Callable[[nn.Module], Float[Tensor, "n 3 size size"]]
POLL = 0.1


class TrainingMonitor(parts.Panel[None]):
    """Watch `states`, a generator of `train_vae` or `train_ar`, from its first step on.

    total: its steps.  preview: images of the model as it is (`reconstructions`, `samples`), `columns` a row.
    every: steps between readings of the losses.  between: seconds between previews, at least.

    Stop leaves the loop between two steps, where a run with a folder writes its checkpoint; after the last there is
    nothing to leave. `ended` says how the loop did: done, stopped or failed.
    """

    def __init__(
        self,
        states: Generator[TrainState, None, None],
        total: int,
        preview: Preview | None = None,
        *,
        columns: int = 5,
        every: int = 10,
        between: float | int = 2.0,
    ) -> None:
        require(total >= 1 and every >= 1, f"total and every are {total} and {every}; expected at least 1")
        self.states, self.total, self.preview = states, total, preview
        self.columns, self.every, self.between = columns, every, between
        self.steps: list[int] = []
        self.losses: dict[str, list[float]] = {}
        self.ended = ""
        self.sheet: np.ndarray | None = None
        self._go = threading.Event()
        self._go.set()
        self.bar = parts.tagged(
            widgets.IntProgress(min=0, max=total, description="steps", style=parts.WIDE), "progress"
        )
        self.pause = parts.button("pause", lambda _: self._pause(), "pause", "wait between two steps")
        self.stop_button = parts.button(
            "stop", lambda _: self._stop(), "train-stop", "leave the loop; a run with a folder can go on"
        )
        self.status = parts.line("train-status")
        self.curve = _curve()
        self.image = parts.picture("preview")
        self.title = widgets.HTML("" if preview is None else "<b>what the model makes</b>")
        self._latest: TrainState | None = None
        super().__init__(
            [
                parts.row(self.bar, self.pause, self.stop_button),
                self.status,
                parts.row(parts.column(self.curve, width="440px"), parts.column(self.title, self.image, width="400px")),
            ],
            (),
        )
        self.runner.submit(None)

    def draw(self, request: None, turn: Turn) -> None:
        """The whole loop: one request."""
        previewed = -float("inf")
        self.ended = "failed"
        with closing(self.states):
            for state in self.states:
                due = time.monotonic() - previewed >= self.between
                if state.step % self.every == 0 or state.step == self.total or not self.steps:
                    self._take(state)
                    if due or state.step == self.total:
                        self._show_preview(state.model)
                        previewed = time.monotonic()
                    self._show(state, "training")
                self._rest(turn)
                if turn.over and state.step < self.total:
                    self.ended = "stopped"
                    break
            else:
                self.ended = "done"
        if not turn.stale:
            self._finish(state.step if self.steps else self.total)

    def _finish(self, step: int) -> None:
        self.bar.value = step
        self.status.value = f"{self.ended} at step {step} of {self.total}"

    def _rest(self, turn: Turn) -> None:
        """While paused."""
        while not self._go.wait(POLL) and not turn.over:
            pass

    def _take(self, state: TrainState) -> None:
        found = state.metrics()
        for name in found:
            self.losses.setdefault(name, [math.nan] * len(self.steps))  # some begin late
        for name, values in self.losses.items():
            values.append(found.get(name, math.nan))
        self.steps.append(state.step)

    def _show(self, state: TrainState, doing: str) -> None:
        self.bar.value = state.step
        steps = np.array(self.steps, np.int32)
        with self.curve.batch_update():
            for trace, (name, values) in zip(self.curve.data, self.losses.items(), strict=False):
                trace.x, trace.y, trace.name, trace.visible = steps, np.array(values, np.float32), name, True
        loss = self.losses["loss"][-1]
        self.status.value = (
            f"{doing}: step {state.step} of {self.total}, loss {loss:.4g}, learning rate {state.learning_rate:.2g}, "
            f"{state.rate:.1f} steps/s, {state.seconds_left:.0f} s left"
        )

    def _show_preview(self, model: nn.Module) -> None:
        if self.preview is None:
            return
        training = model.training
        images = self.preview(model.eval()).detach().float().cpu()
        model.train(training)
        zoom = max(1, round(400 / (self.columns * (images.shape[-1] + 1))))
        self.sheet = sheet(images, self.columns, zoom)
        self.image.value = png_bytes(self.sheet)

    def _pause(self) -> None:
        """Pause, or go on. (While a cell awaits, clicks reach the kernel; of a toggle's values only the first.)"""
        with self.showing_errors():
            going = self._go.is_set()
            (self._go.clear if going else self._go.set)()
            self.pause.description = "go on" if going else "pause"

    def _stop(self) -> None:
        self.runner.stop()
        self._go.set()

    async def finished(self) -> None:
        """Until the loop ended. A cell that is interrupted while it awaits this ends the training too."""
        try:
            await super().finished()
        except asyncio.CancelledError:
            self._stop()
            raise

    def still(self) -> Figure:
        """Losses so far, and the last preview."""
        return training_figure(self.steps, self.losses, self.sheet, self.total)

    def close(self) -> None:
        """Leave the loop, as `stop` does, then end everything."""
        if not self._closed:
            self._stop()
        super().close()


def reconstructions(images: Float[Tensor, "n 3 size size"]) -> Preview:
    """A preview of a VAE: the images, and below them what it makes of them; n is the columns to ask for."""

    @torch.no_grad()
    def preview(model: nn.Module) -> Float[Tensor, "m 3 size size"]:
        assert isinstance(model, VAE)
        device = next(model.parameters()).device
        return torch.cat((images, model.decode(model.encode(images.to(device)).mode).float().cpu()))

    return preview


def samples(
    vae: VAE, labels: Sequence[int] | Int[Tensor, " n"], settings: SamplingSettings | None = None, seed: int = 0
) -> Preview:
    """A preview of an AR model: an image of each label, always from the same seeds."""
    chosen = settings or SamplingSettings.named("fast", guidance_scale=2.0)

    def preview(model: nn.Module) -> Float[Tensor, "n 3 size size"]:
        assert isinstance(model, SphereAR)
        return Pipeline(vae, model).sample(labels, chosen, seed)

    return preview


def _curve() -> go.FigureWidget:
    traces = [
        go.Scatter(mode="lines+markers", visible=False, line={"color": color, "dash": dash, "width": 3},
                   marker={"symbol": symbol, "size": 6})
        for color, dash, symbol, _ in LOSSES
    ]  # fmt: skip
    return parts.live_figure("curve", traces, "step", "loss", height=320, showlegend=True)
