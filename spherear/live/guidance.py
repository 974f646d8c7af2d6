"""The guidance panel: images for the current guidance scale, with the lengths of their tokens."""

import html
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from spherear.analysis.canvas import Canvas, expected_length
from spherear.figures.length_overlay import LEGEND
from spherear.figures.panels import Pane, panes_figure
from spherear.live import controls
from spherear.live.latest_wins import Cancellation
from spherear.live.model_column import GuidanceRequest, ModelColumn
from spherear.live.parts.classes import MAX_BUTTONS, class_control
from spherear.live.parts.download import Download
from spherear.live.parts.models import Model, Models, named_model
from spherear.live.picture import Picture, paint, png_bytes, progress, read_picture, sheet, shown
from spherear.models.config import require
from spherear.models.files import atomic_path, user_path
from spherear.models.pretrained import shipped_name
from spherear.sampling.pixels import free_path
from spherear.sampling.placement import placement_of
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, SamplingSettings
from spherear.sampling.solvers import SOLVERS

ALL, NONE, CUSTOM = "one of each", "nothing", "by hand"
FRAME, TRACE = 0.06, 0.3
"""Minimum seconds between two image updates, and between two updates of the length plots."""
MAX_SEED = 2**31 - 1
AUTO, FAMILY = "auto", "power_spherical"


class GuidanceExplorer(controls.Panel[GuidanceRequest]):
    """Change the guidance scale and watch images form, optionally next to a second family with the same seeds.

    family, compare: a shipped family or name, a run's folder, a hub repository, a published file, or a Pipeline.
        compare None: a single model; auto: the Gaussian beside a shipped family, otherwise none.
    ar, vae: instead of a family, the published files of an AR model and of its VAE.
    label: a class by number or name, None for one image of each; auto: class 3, or the last of fewer.
    images: number for one class, best a square number; None: 16, or 1 of a large model on the CPU.
    settings: initial row of NAMED_SETTINGS.  seed: of the first image, and of the random seed generator.
    device, dtype, engine: as in `Pipeline.from_pretrained`; a line of the panel says what was chosen.
    folder: where pictures are saved; None: in the browser's downloads, on the machine of whoever sees the page.
    """

    def __init__(
        self,
        family: Model = FAMILY,
        compare: Model | None = AUTO,
        *,
        ar: Path | str | None = None,
        vae: Path | str | None = None,
        label: int | str | None = AUTO,
        guidance_scale: float | int = 3.0,
        images: int | None = None,
        settings: str = "fast",
        seed: int = 0,
        preset: str = "digits",
        folder: Path | str | None = ".",
        device: str = AUTO,
        dtype: str = AUTO,
        engine: str = AUTO,
    ) -> None:
        require(images is None or images >= 1, f"images is {images}; expected at least 1")
        self.base = SamplingSettings.named(settings, guidance_scale=guidance_scale)
        self.models = Models(named_model(FAMILY, family, ar), placement_of(device, dtype, engine), preset, vae)
        self.config = self.models.outline(self.models.first).ar
        self.classes, self._random = self.config.num_classes, random.Random(seed)
        self.count = images or (16 if self.models.light else 1)
        second = shipped_name("gaussian", preset) if compare == AUTO and self.models.ships else compare
        beside = NONE if second is None or second == AUTO else self.models.add(second)
        self.model_columns = (ModelColumn(0), ModelColumn(1))
        self.folder = None if folder is None else user_path(folder).resolve()
        self.download = Download() if folder is None else None
        self._last: tuple[Picture, list[Canvas]] | None = None
        self._make_controls(beside, label, settings, seed)
        super().__init__(self._layout(), self._watched())
        self.named.observe(self._take_named, "value")
        for control in (self.solver, self.steps):
            control.observe(self._name_settings, "value")
        self.upload.observe(self.guarded(self._open), "value")
        SCHEDULES.watch(self._offer_schedule)
        self.changed()

    def _make_controls(self, beside: str, label: int | str | None, settings: str, seed: int) -> None:
        options, base = self.models.options, self.base
        self.family = controls.dropdown("model", options, self.models.first, "family")
        self.compare = controls.dropdown("compare with", [(NONE, NONE), *options], beside, "compare")
        self.label = class_control(self.config, ALL if label is None else label, "label", [(ALL, ALL)])
        self.scale = controls.float_slider("guidance scale", base.guidance_scale, 0.0, 15.0, 0.1, "scale")
        self.scale.readout = False
        self.scale_number = controls.tagged(
            widgets.BoundedFloatText(
                value=base.guidance_scale, min=0, max=15, step=0.1, description="scale, as a number",
                style=controls.WIDE, layout=widgets.Layout(width="220px"),
            ),
            "scale-number",
        )  # fmt: skip
        self._link = widgets.link((self.scale, "value"), (self.scale_number, "value"), (_short, _short))
        self.schedule = controls.dropdown("schedule", list(SCHEDULES), base.schedule, "schedule")
        self.named = controls.dropdown("settings", [*NAMED_SETTINGS, CUSTOM], settings, "named")
        self.solver = controls.dropdown("solver", list(SOLVERS), base.solver, "solver")
        self.steps = controls.int_slider("solver steps", base.steps, 1, 100, "steps")
        self.temperature = controls.float_slider("temperature", base.temperature, 0.0, 2.0, 0.05, "temperature")
        self.project = controls.checkbox("project tokens onto the sphere", base.project, "project")
        self.overlay = controls.checkbox("lay token lengths over the images", False, "overlay")
        self.seed = controls.int_field("seed", seed, MAX_SEED, "seed")
        self.dice = controls.button("new random seed", self.guarded_late(self._draw_seed), "dice")
        self.lock = controls.checkbox("lock seed (off: new seed per change)", True, "lock")
        self.stop_button = controls.button(
            "stop", self.guarded_late(self.stop), "stop", "stop drawing and keep the partial images"
        )
        self.copy_code = controls.button("copy as code", self.guarded_late(self._show_code), "copy")
        self.save_png = controls.button(
            "save as PNG", self.guarded_late(self._save), "save", "the PNG stores the settings"
        )
        self.upload = controls.tagged(
            widgets.FileUpload(
                accept=".png", description="open settings from PNG", layout=widgets.Layout(width="auto")
            ),
            "open",
        )
        self.file = controls.tagged(widgets.Text(value="guidance.png", description="file", style=controls.WIDE), "file")
        hidden = widgets.Layout(width="900px", max_width="100%", height="190px", display="none")
        self.code = controls.tagged(widgets.Textarea(description="code", style=controls.WIDE, layout=hidden), "code")
        self.status = controls.text("status")
        self.machine = controls.text("machine")
        self.note = controls.text("note")

    def guarded_late(self, action: Any) -> Any:
        """`guarded`, for buttons created before `Panel.__init__` has run."""
        return lambda event: self.guarded(action)(event)

    def _layout(self) -> list[widgets.Widget]:
        legend = widgets.HTML(f"<small>lengths over the images: {LEGEND}</small>")
        return [
            self.label,
            controls.row(self.scale, self.scale_number),
            controls.row(self.family, self.compare, self.named),
            controls.row(self.schedule, self.solver, self.steps, self.temperature),
            controls.row(self.seed, self.dice, self.lock, self.project, self.overlay),
            controls.row(self.stop_button, self.status),
            self.machine,
            controls.row(*self.model_columns),
            legend,
            controls.row(self.copy_code, self.save_png, self.file, self.upload, *filter(None, [self.download])),
            self.note,
            self.code,
        ]

    def _watched(self) -> Sequence[widgets.Widget]:
        return (
            self.family, self.compare, self.label, self.scale, self.schedule, self.solver, self.steps,
            self.temperature, self.project, self.overlay, self.seed,
        )  # fmt: skip

    def changed(self, change: Any = None) -> None:
        """Callback of the watched controls. Draws a new seed first, unless the seed is locked."""
        with self.showing_errors():
            if self._batch_depth:
                return
            if change is not None and not self.lock.value and change["owner"] not in (self.seed, self.overlay):
                with self.together():
                    self.seed.value = self._random.randint(0, MAX_SEED)
            self.submit(always=change is None)

    def read(self) -> GuidanceRequest:
        """The request for the current values of the controls."""
        all_classes = self.label.value == ALL
        labels = range(self.classes) if all_classes else [self.label.value] * self.count
        columns = 5 if all_classes else max(1, round(len(labels) ** 0.5))
        names = [self.family.value, *([] if self.compare.value == NONE else [self.compare.value])]
        zoom = max(1, round(400 / (columns * (self.models.outline(names[0]).vae.image_size + 1))))
        settings = replace(
            self.base,
            guidance_scale=_short(self.scale.value),
            schedule=self.schedule.value,
            solver=self.solver.value,
            steps=self.steps.value,
            temperature=round(self.temperature.value, 6),
            project=self.project.value,
        )
        return GuidanceRequest(
            Picture(tuple(names), tuple(labels), self.seed.value, settings, columns, zoom), self.overlay.value
        )

    def draw(self, request: GuidanceRequest, cancellation: Cancellation) -> None:
        """Draw token by token, showing images at intervals. The last result is cached, for changes of the overlay."""
        if self._last is not None and self._last[0] == request.picture:
            self._show_canvases(self._last[1], request)
            return
        self._last = None
        self._open_models(request.picture.models)
        start = last_trace = time.perf_counter()
        painted = paint(request.picture, self.models.pipeline)
        frames = shown(painted, lambda c: c[0], cancellation, FRAME, first=2)  # token 1 is often unchanged
        for canvases, stopped in frames:
            trace = stopped or canvases[0].done or time.perf_counter() - last_trace >= TRACE
            self._show_canvases(canvases, request, trace)
            now = time.perf_counter()
            last_trace = now if trace else last_trace
            self._report(canvases, request.picture, now - start, stopped)
            if canvases[0].done and not stopped:
                self._last = (request.picture, canvases)

    def _open_models(self, names: tuple[str, ...]) -> None:
        """Say how the models are run and what they take, then read those that are not in memory."""
        self.machine.value = f"<small>{self.models.sentences(names)}</small>"
        for name in names:
            if not self.models.is_open(name):
                self.status.value = f"reading {html.escape(name)}"
            self.models.pipeline(name)

    def _show_canvases(self, canvases: list[Canvas], request: GuidanceRequest, trace: bool = True) -> None:
        display = "" if len(canvases) == 2 else "none"
        if self.model_columns[1].layout.display != display:
            self.model_columns[1].layout.display = display
        for column, canvas, name in zip(self.model_columns, canvases, request.picture.models, strict=False):
            column.show(canvas, request, self.models.title(name), trace)

    def _report(self, canvases: list[Canvas], picture: Picture, seconds: float, stopped: bool) -> None:
        rate = canvases[0].drawn * len(picture.labels) * len(canvases) / max(1e-9, seconds)
        self.status.value = (
            f"{progress(canvases[0], stopped, seconds)}, guidance {picture.settings.guidance_scale:g}, "
            f"{rate:,.{0 if rate >= 10 else 1}f} tokens/s, picture {self.runner.started}"
        )

    def _offer_schedule(self, name: str) -> None:
        """Put a schedule that was just registered in the menu; if it replaces the one that is shown, draw again."""
        with self.showing_errors():
            with self.together():
                chosen = self.schedule.value
                self.schedule.options = list(SCHEDULES)
                self.schedule.value = chosen
            if name == chosen:
                self._last = None
                self.changed()

    def _draw_seed(self) -> None:
        self.seed.value = self._random.randint(0, MAX_SEED)

    def _take_named(self, change: Any) -> None:
        """Apply a row of NAMED_SETTINGS (solver, steps and all other fields) as one change."""
        with self.showing_errors():
            if self._batch_depth or change["new"] == CUSTOM:
                return
            with self.together():
                self.base = NAMED_SETTINGS[change["new"]]
                self.solver.value, self.steps.value = self.base.solver, self.base.steps
            self.changed(change)

    def _name_settings(self, change: Any) -> None:
        """After a change of solver or steps: show the matching row of NAMED_SETTINGS, or `by hand`."""
        with self.showing_errors():
            if not self._batch_depth:
                with self.together():
                    self.named.value = _name_of(self.base, self.solver.value, self.steps.value)

    def _show_code(self) -> None:
        self.code.value = self.read().picture.code(self.models.code, self.models.head)
        self.code.layout.display = ""
        self.note.value = "this code draws exactly these images: select all, copy, and run it anywhere"

    def _save(self) -> None:
        """Save the images without the overlay; the PNG stores the settings."""
        require(self.runner.idle, "the picture is still being drawn; expected it to be done")
        require(self._last is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._last is not None
        picture, canvases = self._last
        sheets = [sheet(c.images(), picture.columns, picture.zoom) for c in canvases]
        name = self.file.value.strip()
        require(
            name not in ("", ".", "..") and Path(name).name == name,
            f"file is {name!r}; expected a name without folders",
        )
        self.note.value = self._store(name, png_bytes(np.concatenate(sheets, axis=1), picture))

    def _store(self, name: str, png: bytes) -> str:
        """Hand a file to the browser, or write it to the folder under a free name; returns where it is."""
        if self.download is not None:
            self.download.save(name, png)
            return f"{html.escape(name)} is among the downloads of your browser"
        assert self.folder is not None
        path = free_path(self.folder / name)
        with atomic_path(path) as part:
            part.write_bytes(png)
        return f"saved {html.escape(str(path))}"

    def _open(self) -> None:
        files, self.upload.value = self.upload.value, ()  # so that the same file can be opened again
        if files:
            self.take(read_picture(bytes(files[0]["content"])))
            self.note.value = f"settings of {html.escape(files[0]['name'])}"

    def take(self, picture: Picture) -> None:
        """Set all controls to the settings of `picture`. Settings the panel cannot show: ValueError, nothing is set."""
        names, known = picture.models, [value for _, value in self.family.options]
        require(
            len(names) <= 2 and set(names) <= set(known), f"models are {list(names)}; expected one or two of {known}"
        )
        all_classes = self.classes <= MAX_BUTTONS and picture.labels == tuple(range(self.classes))
        one_class = len(set(picture.labels)) == 1 and 0 <= picture.labels[0] < self.classes
        require(all_classes or one_class, f"labels are {picture.labels}; expected one class, or each once")
        settings = picture.settings
        controls.within("seed", picture.seed, 0, MAX_SEED)
        for control, value in (
            (self.scale, settings.guidance_scale),
            (self.temperature, settings.temperature),
            (self.steps, settings.steps),
        ):
            controls.within(control.description, value, control.min, control.max)
        with self.together():
            self.family.value, self.compare.value = names[0], names[1] if len(names) == 2 else NONE
            self.label.value = ALL if all_classes else picture.labels[0]
            self.count = self.count if all_classes else len(picture.labels)
            self.base, self.scale.value, self.temperature.value = (
                settings,
                settings.guidance_scale,
                settings.temperature,
            )
            self.schedule.value, self.solver.value, self.steps.value = (
                settings.schedule,
                settings.solver,
                settings.steps,
            )
            self.project.value, self.seed.value = settings.project, picture.seed
            self.named.value = _name_of(settings, settings.solver, settings.steps)
        self.changed()

    def still(self) -> Figure:
        """The finished images and token lengths of all columns."""
        require(self._last is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._last is not None
        picture, canvases = self._last
        panes = [
            Pane(self.models.title(name), sheet(c.images(), picture.columns, picture.zoom),
                 *c.lengths(), expected_length(c.pipeline))
            for name, c in zip(picture.models, canvases, strict=True)
        ]  # fmt: skip
        s = picture.settings
        return panes_figure(panes, f"guidance {s.guidance_scale:g} ({s.schedule}), {s.solver}, {s.steps} steps")


def _short(scale: float) -> float:
    """Round a slider value, e.g. 3.0999999999999996 to 3.1."""
    return round(scale, 6)


def _name_of(base: SamplingSettings, solver: str, steps: int) -> str:
    """The matching row of NAMED_SETTINGS, ignoring guidance, temperature and projection; CUSTOM if there is none."""

    def core(s: SamplingSettings) -> SamplingSettings:
        return replace(s, guidance_scale=1.0, schedule="linear", temperature=1.0, project=True)

    key = core(replace(base, solver=solver, steps=steps))
    return next((name for name, row in NAMED_SETTINGS.items() if core(row) == key), CUSTOM)
