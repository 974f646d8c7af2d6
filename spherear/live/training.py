"""The training panel: losses, speed and previews of a running training loop, with pause and stop."""

import asyncio
import math
import threading
import time
from collections.abc import Generator
from contextlib import closing

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from torch import nn

from spherear.figures.panels import LOSSES, training_figure
from spherear.live import controls
from spherear.live.figure import live_figure
from spherear.live.latest_wins import Cancellation
from spherear.live.picture import png_bytes, sheet
from spherear.models.config import require
from spherear.training.observers import Preview
from spherear.training.run import TrainState

POLL = 0.1  # seconds between checks while paused


class TrainingMonitor(controls.Panel[None]):
    """Run and show `states`, a generator from `train_vae` or `train_ar`.

    total: number of steps.  preview: makes images from the current model (`reconstructions`, `samples`), shown in
    `columns` columns.  every: steps between updates of the losses.  between: minimum seconds between previews.

    Stop ends the loop between two steps; a run with a folder then writes its checkpoint. After the last step it has
    no effect. `ended` is done, stopped or failed once the loop has ended.
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
        self._running = threading.Event()
        self._running.set()
        self.bar = controls.tagged(
            widgets.IntProgress(min=0, max=total, description="steps", style=controls.WIDE), "progress"
        )
        self.pause = controls.button("pause", lambda _: self._pause(), "pause", "pause between two steps")
        self.stop_button = controls.button(
            "stop", lambda _: self._stop(), "train-stop", "end the training; a run with a folder can be resumed"
        )
        self.status = controls.text("train-status")
        self.curve = _curve()
        self.image = controls.image("preview")
        self.title = widgets.HTML("" if preview is None else "<b>model output</b>")
        self._latest: TrainState | None = None
        super().__init__(
            [
                controls.row(self.bar, self.pause, self.stop_button),
                self.status,
                controls.row(
                    controls.column(self.curve, width="440px"), controls.column(self.title, self.image, width="400px")
                ),
            ],
            (),
        )
        self.runner.submit(None)

    def draw(self, request: None, cancellation: Cancellation) -> None:
        """Run the whole training loop, as one request."""
        preview_time = -float("inf")
        self.ended = "failed"
        with closing(self.states):
            for state in self.states:
                due = time.monotonic() - preview_time >= self.between
                if state.step % self.every == 0 or state.step == self.total or not self.steps:
                    self._record(state)
                    if due or state.step == self.total:
                        self._show_preview(state.model)
                        preview_time = time.monotonic()
                    self._show(state, "training")
                self._wait_while_paused(cancellation)
                if cancellation.over and state.step < self.total:
                    self.ended = "stopped"
                    break
            else:
                self.ended = "done"
        if not cancellation.stale:
            self._finish(state.step if self.steps else self.total)

    def _finish(self, step: int) -> None:
        self.bar.value = step
        self.status.value = f"{self.ended} at step {step} of {self.total}"

    def _wait_while_paused(self, cancellation: Cancellation) -> None:
        while not self._running.wait(POLL) and not cancellation.over:
            pass

    def _record(self, state: TrainState) -> None:
        metrics = state.metrics()
        for name in metrics:
            self.losses.setdefault(name, [math.nan] * len(self.steps))  # some losses start later
        for name, values in self.losses.items():
            values.append(metrics.get(name, math.nan))
        self.steps.append(state.step)

    def _show(self, state: TrainState, activity: str) -> None:
        self.bar.value = state.step
        steps = np.array(self.steps, np.int32)
        with self.curve.batch_update():
            for trace, (name, values) in zip(self.curve.data, self.losses.items(), strict=False):
                trace.x, trace.y, trace.name, trace.visible = steps, np.array(values, np.float32), name, True
        loss = self.losses["loss"][-1]
        self.status.value = (
            f"{activity}: step {state.step} of {self.total}, loss {loss:.4g}, learning rate {state.learning_rate:.2g}, "
            f"{state.rate:.1f} steps/s, {state.seconds_left:.0f} s left"
        )

    def _show_preview(self, model: nn.Module) -> None:
        if self.preview is None:
            return
        was_training = model.training
        images = self.preview(model.eval()).detach().float().cpu()
        model.train(was_training)
        zoom = max(1, round(400 / (self.columns * (images.shape[-1] + 1))))
        self.sheet = sheet(images, self.columns, zoom)
        self.image.value = png_bytes(self.sheet)

    def _pause(self) -> None:
        """Pause or resume. (A button, because a toggle sends only its first change while a cell awaits.)"""
        with self.showing_errors():
            running = self._running.is_set()
            (self._running.clear if running else self._running.set)()
            self.pause.description = "go on" if running else "pause"

    def _stop(self) -> None:
        self.runner.stop()
        self._running.set()

    async def finished(self) -> None:
        """Wait until the loop has ended. Interrupting a cell that awaits this also stops the training."""
        try:
            await super().finished()
        except asyncio.CancelledError:
            self._stop()
            raise

    def still(self) -> Figure:
        """The losses so far and the last preview."""
        return training_figure(self.steps, self.losses, self.sheet, self.total)

    def close(self) -> None:
        """Stop the training, then close the panel."""
        if not self._closed:
            self._stop()
        super().close()


def _curve() -> go.FigureWidget:
    traces = [
        go.Scatter(mode="lines+markers", visible=False, line={"color": color, "dash": dash, "width": 3},
                   marker={"symbol": symbol, "size": 6})
        for color, dash, symbol, _ in LOSSES
    ]  # fmt: skip
    return live_figure("curve", traces, "step", "loss", height=320, showlegend=True)
