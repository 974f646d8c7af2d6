"""The guidance panel: images for the current guidance scale beside those of a second family, and what they show."""

import html
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from spherear.analysis.canvas import Canvas, expected_length
from spherear.analysis.sight import Sight, sight
from spherear.figures.panels import Pane, panes_figure
from spherear.live import controls
from spherear.live.latest_wins import Cancellation
from spherear.live.model_column import GuidanceRequest, common_axis
from spherear.live.parts import words
from spherear.live.parts.classes import MAX_BUTTONS
from spherear.live.parts.guidance_controls import (  # fmt: skip
    ALL,
    CUSTOM,
    MAX_SEED,
    NONE,
    STRIP,
    GuidanceControls,
    settings_name,
    short,
)
from spherear.live.parts.models import Model, Models, named_model
from spherear.live.parts.real import Reality
from spherear.live.parts.saving import png_name, store
from spherear.live.parts.strip import strip_columns, strip_pictures, strip_pixels
from spherear.live.picture import Picture, paint, png_bytes, progress, read_picture, sheet, shown
from spherear.models.config import require
from spherear.models.files import user_path
from spherear.models.heads.mean_velocity import LARGEST_SCALE
from spherear.models.pretrained import shipped_name
from spherear.sampling.placement import placement_of
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, SamplingSettings

FRAME, TRACE = 0.2, 1.0
"""Minimum seconds between two image updates, and between two updates of the length plots."""
AUTO, FAMILY = "auto", "power_spherical"
OPENING_SCALE = 12.0  # where families differ plainly
NARROW = 2  # columns of one image of each class, on a phone


class GuidanceExplorer(GuidanceControls, controls.Panel[GuidanceRequest]):
    """Change the guidance scale and watch images form, optionally next to a second family with the same seeds.

    family, compare: a shipped family or name, a run's folder, a hub repository, a published file, or a Pipeline.
        compare None: a single model; auto: the Gaussian beside a shipped family, otherwise none.
    ar, vae: instead of a family, the published files of an AR model and of its VAE.
    label: a class by number or name, None for one image of each; auto: one of each, or class 3 of many classes.
    images: number for one class, best a square number; None: 16, or 1 of a large model on the CPU.
    guidance_scale: where the slider opens; None: 12, or 8 for a head that has learnt no more.
    settings: initial row of NAMED_SETTINGS.  seed: of the first image, and of the random seed generator.
    preset: of the shipped families; auto: colour shapes, or what suits a model of another kind.
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
        guidance_scale: float | None = None,
        images: int | None = None,
        settings: str = "balanced",
        seed: int = 0,
        preset: str = AUTO,
        folder: Path | str | None = None,
        device: str = AUTO,
        dtype: str = AUTO,
        engine: str = AUTO,
    ) -> None:
        require(images is None or images >= 1, f"images is {images}; expected at least 1")
        place = placement_of(device, dtype, engine)
        self.models = Models(named_model(FAMILY, family, ar), place, preset, vae, watched=True)
        self.reality, self.config = Reality(self.models), self.models.outline(self.models.first).ar
        self.classes, self._random = self.config.num_classes, random.Random(seed)
        self.count = images or (16 if self.models.light else 1)
        second = shipped_name("gaussian", self.models.preset) if compare == AUTO and self.models.ships else compare
        beside = NONE if second is None or second == AUTO else self.models.add(second)
        kinds = [self.models.outline(name).ar.head_kind for name in (self.models.first, beside) if name != NONE]
        opening = LARGEST_SCALE if any(kind.takes_scale for kind in kinds) else OPENING_SCALE
        scale = opening if guidance_scale is None else guidance_scale
        self.base = SamplingSettings.named(settings, guidance_scale=scale)
        self.folder = None if folder is None else user_path(folder).resolve()
        self._last: tuple[Picture, list[Canvas]] | None = None  # the finished picture
        self._shown: tuple[Picture, list[Canvas]] | None = None  # that, or the one that was stopped
        self._strip_asked = False
        self._strip_of: tuple[Picture, ...] = ()
        if label is None or (label == AUTO and self.classes <= MAX_BUTTONS):
            label = ALL
        names = self.reality.classes(self.models.first)
        self.make_controls(self.models, self.base, label, names, beside, settings, seed)
        self.make_buttons(*map(self._late, (self._draw_seed, self.stop, self._copy, self._save, self._ask_strip)))
        super().__init__(self.arranged(), self.watched())
        self.add_class("spherear-guidance")
        self.named.observe(self._take_named, "value")
        for control in (self.solver, self.steps):
            control.observe(self._name_settings, "value")
        self.upload.observe(self.guarded(self._open), "value")
        self.browser.observe(lambda _: self.guarded(lambda: self.submit(always=False))(None), "narrow")
        SCHEDULES.watch(self._offer_schedule)
        self.changed()

    def _late(self, action: Callable[[], None]) -> Callable[[], None]:
        """`guarded`, for buttons created before `Panel.__init__` has run."""
        return lambda: self.guarded(action)(None)

    def changed(self, change: Any = None) -> None:
        """Callback of the watched controls. Draws a new seed first, unless the seed is locked."""
        with self.showing_errors():
            if self._batch_depth:
                return
            if change is not None and not self.lock.value and change["owner"] not in (self.seed, self.overlay):
                with self.together():
                    self.seed.value = self._random.randint(0, MAX_SEED)
            self._strip_asked = False
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
            guidance_scale=short(self.scale.value),
            schedule=self.schedule.value,
            solver=self.solver.value,
            steps=self.steps.value,
            temperature=round(self.temperature.value, 6),
            project=self.project.value,
        )
        return GuidanceRequest(
            Picture(tuple(names), tuple(labels), self.seed.value, settings, columns, zoom),
            self.overlay.value,
            self._strip_asked,
            NARROW if self.browser.narrow and columns > NARROW and all_classes else 0,
        )

    def draw(self, request: GuidanceRequest, cancellation: Cancellation) -> None:
        """Draw token by token, showing images at intervals. The last result is cached, for changes of the overlay."""
        self.caption.value = self._caption(request)
        if self._last is not None and self._last[0] == request.picture:
            self._show_canvases(self._last[1], request)
        else:
            self._draw_picture(request, cancellation)
        if request.strip and self._last is not None and not cancellation.over:
            self._draw_strip(request, cancellation)

    def _draw_picture(self, request: GuidanceRequest, cancellation: Cancellation) -> None:
        self._last = self._shown = None
        self._hide_strip(request.picture)
        self._open_models(request.picture.models)
        self.sentence.value = f"Drawing at guidance {request.picture.settings.guidance_scale:g} ..."
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
                self._last = self._shown = (request.picture, canvases)
                self._say(request.picture, canvases)
            elif stopped:
                self._shown = (replace(request.picture, drawn=canvases[0].drawn), canvases)
                self.sentence.value = words.stopped(request.picture.settings.guidance_scale, canvases[0])

    def _open_models(self, names: tuple[str, ...]) -> None:
        """Say how the models are run and what they take, then read those that are not in memory."""
        self.machine.value = f"<small>{self.models.sentences(names)}</small>"
        for name in names:
            if not self.models.is_open(name):
                self.status.value = f"reading {html.escape(name)}"
            self.models.pipeline(name)

    def _show_canvases(self, canvases: list[Canvas], request: GuidanceRequest, trace: bool = True) -> None:
        display = "" if len(canvases) == 2 else "none"
        for part in (self.model_columns[1], self.model_columns[1].curve):
            if part.layout.display != display:
                part.layout.display = display
        for column, canvas, name in zip(self.model_columns, canvases, request.picture.models, strict=False):
            projected = canvas.pipeline.vae.bottleneck.radius is not None and request.picture.settings.project
            column.show(canvas, request, words.column_title(html.escape(self.models.title(name)), projected))
        if trace:  # after all images, which a browser would paint later
            for column, canvas in zip(self.model_columns, canvases, strict=False):
                column.show_trace(canvas)
            common_axis(self.model_columns[: len(canvases)])

    def _say(self, picture: Picture, canvases: list[Canvas]) -> None:
        """The sentence on a finished picture, the band of real tokens, and what the images show for screen readers."""
        labels, scale = torch.tensor(picture.labels), picture.settings.guidance_scale
        seen: list[Sight] = []
        for column, canvas, name in zip(self.model_columns, canvases, picture.models, strict=False):
            real = self.reality.tokens(name)
            seen.append(sight(canvas, labels, real, self.reality.judge(name)))
            column.show_real(real)
        common_axis(self.model_columns[: len(canvases)])
        titles = [self.models.title(name) for name in picture.models]
        self.sentence.value = words.sentence(scale, [html.escape(title) for title in titles], seen)
        for place, (title, facts) in enumerate(zip(titles, seen, strict=True)):
            text = words.picture_text(title, self._classes_text(picture), scale, words.facts(facts))
            self.browser.describe(**{f"grid_{place}": text, f"trace_{place}": f"Lengths of tokens of {title}: {text}"})

    def _class_name(self, label: int, model: str) -> str:
        names = self.reality.classes(model)
        return names[label] if names else self.config.name_of(label)

    def _classes_text(self, picture: Picture) -> str:
        name = self._class_name(picture.labels[0], picture.models[0])
        return "each class" if len(set(picture.labels)) > 1 else f"class {name}"

    def _caption(self, request: GuidanceRequest) -> str:
        picture, first = request.picture, request.picture.models[0]
        names = [self._class_name(label, first) for label in picture.labels]
        return words.caption(names, request.columns or picture.columns, self.reality.judged(first))

    def _ask_strip(self) -> None:
        self._strip_asked = True
        self.submit(always=True)

    def _draw_strip(self, request: GuidanceRequest, cancellation: Cancellation) -> None:
        """Draw the images at all scales of STRIP, a column at a time."""
        pictures, columns = strip_pictures(request.picture, STRIP), []
        self._strip_of = tuple(pictures)
        for place, column in enumerate(strip_columns(pictures, self.models.pipeline, cancellation), 1):
            columns.append(column)
            self.strip.value = png_bytes(strip_pixels(columns, STRIP))
            self.strip_text.value = f"side by side: {place} of {len(STRIP)} guidance scales drawn"
        if cancellation.stale or not columns:
            return
        titles = [self.models.title(name) for name in request.picture.models]
        self.strip_text.value = html.escape(words.strip_text(titles, STRIP, len(columns)))
        self.browser.describe(strip=self.strip_text.value)

    def _hide_strip(self, picture: Picture) -> None:
        """Take the strip away if it shows other models, classes, seeds or settings than `picture`."""
        if self._strip_of and self._strip_of != tuple(strip_pictures(picture, STRIP)):
            self._strip_of = ()
            self.strip.value, self.strip_text.value = b"", ""

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
                    self.named.value = settings_name(self.base, self.solver.value, self.steps.value)

    def _copy(self) -> None:
        """Show the code that draws the picture, and put it into the clipboard where the browser allows it."""
        self.code.value = self.read().picture.code(self.models.code, self.models.head)
        self.code.layout.display = ""
        self.note.value = "this code draws exactly these images"
        self.browser.copy(self.code.value, self._copied)

    def _copied(self, allowed: bool) -> None:
        done = "it is in your clipboard" if allowed else "your browser keeps its clipboard: select all, and copy"
        self.note.value = f"this code draws exactly these images; {done}"

    def _save(self) -> None:
        """Save the images without the overlay, also stopped ones; the PNG stores the settings."""
        require(self.runner.idle, "the picture is still being drawn; expected it to be done, or stopped")
        require(self._shown is not None, "there is no picture; expected one")
        assert self._shown is not None
        picture, canvases = self._shown
        name = png_name(self.file.value)
        sheets = [sheet(c.images(), picture.columns, picture.zoom) for c in canvases]
        png = png_bytes(np.concatenate(sheets, axis=1), picture)
        self.note.value = store(name, png, self.folder, self.browser)

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
            self.named.value = settings_name(settings, settings.solver, settings.steps)
        self.changed()

    def still(self) -> Figure:
        """The finished images and token lengths of all columns."""
        require(self._last is not None, "there is no finished picture; expected one (it was stopped)")
        assert self._last is not None
        picture, canvases = self._last
        panes = [
            Pane(self.models.title(name), sheet(c.images(), picture.columns, picture.zoom),
                 *c.lengths(), expected_length(c.pipeline), self.reality.tokens(name))
            for name, c in zip(picture.models, canvases, strict=True)
        ]  # fmt: skip
        s = picture.settings
        return panes_figure(panes, f"guidance {s.guidance_scale:g} ({s.schedule}), {s.solver}, {s.steps} steps")
