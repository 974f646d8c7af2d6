"""The guidance panel: images that form under a slider, with the lengths of their tokens below them."""

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
from spherear.figures.panels import Pane, panes_figure
from spherear.live import controls
from spherear.live.latest_wins import Turn
from spherear.live.length_overlay import LEGEND
from spherear.live.model_column import GuidanceRequest, ModelColumn
from spherear.live.sheet import Picture, free_path, paint, png_bytes, read_picture, sheet
from spherear.models.config import require
from spherear.models.files import atomic_path
from spherear.models.pretrained import shipped_families, shipped_name
from spherear.sampling.pipeline import cached_pipeline
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, SamplingSettings
from spherear.sampling.solvers import SOLVERS
from spherear.sphere.families import family_label

ALL, NONE, CUSTOM = "one of each", "nothing", "by hand"
FRAME, TRACE = 0.06, 0.3
"""Seconds between two pictures of the same drawing, and between two traces of lengths, at least."""
MAX_SEED = 2**31 - 1
MAX_BUTTONS = 12
"""At most so many classes have a button; with more classes than that there is no `one of each`."""


class GuidanceExplorer(controls.Panel[GuidanceRequest]):
    """Move guidance and see images form; beside a second family, from the same seeds, if you like.

    family, compare: shipped families, or what `Pipeline.from_pretrained` takes; compare None: one alone.
    label: a class, or None for one image of each.  images: of one class, a square number looks best.
    settings: a row of NAMED_SETTINGS to begin with.  seed: of the first image, and of the dice.
    folder: where pictures are saved.
    """

    def __init__(
        self,
        family: str = "power_spherical",
        compare: str | None = "gaussian",
        *,
        label: int | None = 3,
        guidance_scale: float | int = 3.0,
        images: int = 16,
        settings: str = "fast",
        seed: int = 0,
        preset: str = "digits",
        folder: Path | str = ".",
    ) -> None:
        require(images >= 1, f"images is {images}; expected at least 1")
        self.base = SamplingSettings.named(settings, guidance_scale=guidance_scale)
        self.preset, self.count, self._dice = preset, images, random.Random(seed)
        self.classes = cached_pipeline(shipped_name(family, preset)).ar.config.num_classes
        self.model_columns, self.folder = (ModelColumn(0), ModelColumn(1)), Path(folder).expanduser().resolve()
        self._last: tuple[Picture, list[Canvas]] | None = None
        self._make_controls(family, compare, label, settings, seed)
        super().__init__(self._arranged(), self._watched())
        self.named.observe(self._take_named, "value")
        for control in (self.solver, self.steps):
            control.observe(self._name_settings, "value")
        self.upload.observe(self.guarded(self._open), "value")
        self.changed()

    def _make_controls(self, family: str, compare: str | None, label: int | None, settings: str, seed: int) -> None:
        families = shipped_families(self.preset)
        extra = [f for f in (family, compare) if f is not None and f not in families]
        options = [(family_label(f), f) for f in (*families, *extra)]
        base = self.base
        self.family = controls.dropdown("family", options, family, "family")
        self.compare = controls.dropdown("beside it", [(NONE, NONE), *options], compare or NONE, "compare")
        digits = [(str(i), i) for i in range(self.classes)]
        every = [] if self.classes > MAX_BUTTONS else [(ALL, ALL)]
        self.label = controls.toggle_buttons(
            "class", [*digits[:MAX_BUTTONS], *every], ALL if label is None else label, "label"
        )
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
        self.dice = controls.button("dice: another seed", self.guarded_late(self._draw_seed), "dice")
        self.lock = controls.checkbox("lock the seed (else: dice at every move)", True, "lock")
        self.stop_button = controls.button("stop", self.guarded_late(self.stop), "stop", "keep what is drawn so far")
        self.copy_code = controls.button("copy as code", self.guarded_late(self._show_code), "copy")
        self.save_png = controls.button(
            "save as PNG", self.guarded_late(self._save), "save", "with the settings inside"
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
        self.note = controls.text("note")

    def guarded_late(self, action: Any) -> Any:
        """`guarded`, for buttons that are made before the panel is."""
        return lambda event: self.guarded(action)(event)

    def _arranged(self) -> list[widgets.Widget]:
        legend = widgets.HTML(f"<small>lengths over the images: {LEGEND}</small>")
        return [
            self.label,
            controls.row(self.scale, self.scale_number),
            controls.row(self.family, self.compare, self.named),
            controls.row(self.schedule, self.solver, self.steps, self.temperature),
            controls.row(self.seed, self.dice, self.lock, self.project, self.overlay),
            controls.row(self.stop_button, self.status),
            controls.row(*self.model_columns),
            legend,
            controls.row(self.copy_code, self.save_png, self.file, self.upload),
            self.note,
            self.code,
        ]

    def _watched(self) -> Sequence[widgets.Widget]:
        return (
            self.family, self.compare, self.label, self.scale, self.schedule, self.solver, self.steps,
            self.temperature, self.project, self.overlay, self.seed,
        )  # fmt: skip

    def changed(self, change: Any = None) -> None:
        """A control moved. Where the seed is not locked, a new one is drawn first."""
        with self.showing_errors():
            if self._held:
                return
            if change is not None and not self.lock.value and change["owner"] not in (self.seed, self.overlay):
                with self.together():
                    self.seed.value = self._dice.randint(0, MAX_SEED)
            self.submit(always=change is None)

    def read(self) -> GuidanceRequest:
        """The picture that the controls describe."""
        every = self.label.value == ALL
        labels = range(self.classes) if every else [self.label.value] * self.count
        columns = 5 if every else max(1, round(len(labels) ** 0.5))
        names = [self.family.value, *([] if self.compare.value == NONE else [self.compare.value])]
        models = tuple(shipped_name(name, self.preset) for name in names)
        size = cached_pipeline(models[0]).vae.config.image_size
        zoom = max(1, round(400 / (columns * (size + 1))))
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
            Picture(models, tuple(labels), self.seed.value, settings, columns, zoom), self.overlay.value
        )

    def draw(self, request: GuidanceRequest, turn: Turn) -> None:
        """Token by token, a picture every so often; the finished one stays at hand for another look."""
        if self._last is not None and self._last[0] == request.picture:
            self._show_canvases(self._last[1], request)
            return
        self._last = None
        began = shown = traced = time.perf_counter()
        for canvases in paint(request.picture):
            drawn, now, over = canvases[0].drawn, time.perf_counter(), turn.over
            last = over or canvases[0].done
            if last or drawn == 2 or (drawn > 0 and now - shown >= FRAME):  # the first often is the same as before
                if turn.stale:
                    return
                trace = last or now - traced >= TRACE
                self._show_canvases(canvases, request, trace)
                shown = time.perf_counter()
                traced = shown if trace else traced
                self._report(canvases, request.picture, shown - began, over)
            if over:
                return
        self._last = (request.picture, canvases)

    def _show_canvases(self, canvases: list[Canvas], request: GuidanceRequest, trace: bool = True) -> None:
        display = "" if len(canvases) == 2 else "none"
        if self.model_columns[1].layout.display != display:
            self.model_columns[1].layout.display = display
        for column, canvas, name in zip(self.model_columns, canvases, request.picture.models, strict=False):
            column.show(canvas, request, family_label(name.removeprefix(f"{self.preset}-")), trace)

    def _report(self, canvases: list[Canvas], picture: Picture, seconds: float, over: bool) -> None:
        drawn, total = canvases[0].drawn, canvases[0].tokens.shape[1]
        state = "done" if canvases[0].done else ("stopped" if over else "drawing")
        rate = drawn * len(picture.labels) * len(canvases) / max(1e-9, seconds)
        scale = picture.settings.guidance_scale
        self.status.value = (
            f"{state}: guidance {scale:g}, token {drawn} of {total}, {seconds:.2f} s, {rate:,.0f} tokens/s, "
            f"picture {self.runner.turns}"
        )

    def _draw_seed(self) -> None:
        self.seed.value = self._dice.randint(0, MAX_SEED)

    def _take_named(self, change: Any) -> None:
        """Take a row of NAMED_SETTINGS: its solver, its steps and all its other fields, as one change."""
        with self.showing_errors():
            if self._held or change["new"] == CUSTOM:
                return
            with self.together():
                self.base = NAMED_SETTINGS[change["new"]]
                self.solver.value, self.steps.value = self.base.solver, self.base.steps
            self.changed(change)

    def _name_settings(self, change: Any) -> None:
        """Solver or steps changed by hand: then the settings have no name, or another one."""
        with self.showing_errors():
            if not self._held:
                with self.together():
                    self.named.value = _name_of(self.base, self.solver.value, self.steps.value)

    def _show_code(self) -> None:
        self.code.value = self.read().picture.code()
        self.code.layout.display = ""
        self.note.value = "draws exactly the images of these controls: select all, copy, run it anywhere"

    def _save(self) -> None:
        """Write the picture without the overlay, and its settings inside."""
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
        path = free_path(self.folder / name)
        with atomic_path(path) as part:
            part.write_bytes(png_bytes(np.concatenate(sheets, axis=1), picture))
        self.note.value = f"saved {path}"

    def _open(self) -> None:
        files, self.upload.value = self.upload.value, ()  # or the same file could not be opened again
        if files:
            self.take(read_picture(bytes(files[0]["content"])))
            self.note.value = f"settings of {files[0]['name']}"

    def take(self, picture: Picture) -> None:
        """Set every control as a picture says. What the panel cannot show: ValueError, and nothing is set."""
        names = [name.removeprefix(f"{self.preset}-") for name in picture.models]
        known = [value for _, value in self.family.options]
        require(len(names) <= 2 and set(names) <= set(known), f"models are {names}; expected one or two of {known}")
        every = self.classes <= MAX_BUTTONS and picture.labels == tuple(range(self.classes))
        one = len(set(picture.labels)) == 1 and 0 <= picture.labels[0] < min(MAX_BUTTONS, self.classes)
        require(every or one, f"labels are {picture.labels}; expected one class, or each once")
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
            self.label.value = ALL if every else picture.labels[0]
            self.count = self.count if every else len(picture.labels)
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
        """All columns as they are."""
        require(self._last is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._last is not None
        picture, canvases = self._last
        panes = [
            Pane(family_label(name.removeprefix(f"{self.preset}-")), sheet(c.images(), picture.columns, picture.zoom),
                 *c.lengths(), expected_length(c.pipeline))
            for name, c in zip(picture.models, canvases, strict=True)
        ]  # fmt: skip
        s = picture.settings
        return panes_figure(panes, f"guidance {s.guidance_scale:g} ({s.schedule}), {s.solver}, {s.steps} steps")


def _short(scale: float) -> float:
    """Rounded: a slider's 3.0999999999999996 is 3.1."""
    return round(scale, 6)


def _name_of(base: SamplingSettings, solver: str, steps: int) -> str:
    """The row of NAMED_SETTINGS that this is, where it is one: guidance, temperature and projection aside."""

    def core(s: SamplingSettings) -> SamplingSettings:
        return replace(s, guidance_scale=1.0, schedule="linear", temperature=1.0, project=True)

    wanted = core(replace(base, solver=solver, steps=steps))
    return next((name for name, row in NAMED_SETTINGS.items() if core(row) == wanted), CUSTOM)
