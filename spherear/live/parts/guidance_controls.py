"""The controls of the guidance panel and their places: one slider in sight, everything else under "more"."""

import html
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as widgets

from spherear.figures.length_overlay import FULL, LEGEND
from spherear.live import controls
from spherear.live.model_column import ModelColumn
from spherear.live.parts.classes import class_control
from spherear.live.parts.models import Models
from spherear.sampling.settings import NAMED_SETTINGS, SCHEDULES, SamplingSettings
from spherear.sampling.solvers import SOLVERS

ALL, NONE, CUSTOM = "one of each", "nothing", "by hand"
MAX_SEED = 2**31 - 1
MAX_SCALE = 20.0
STRIP = (1.0, 4.5, 12.0, 20.0)
"""The guidance scales of the strip."""
INTRO = (
    "A picture is drawn token by token; a token is a few numbers, and is fed back before the next. Guidance pushes "
    "every token towards the class asked for, and so makes it longer; on a sphere its length cannot grow."
)
Action = Callable[[], None]


class GuidanceControls:
    """The part of the panel that makes its controls and says where each stands."""

    def make_controls(
        self, models: Models, base: SamplingSettings, label: int | str, names: Sequence[str], beside: str,
        settings: str, seed: int,
    ) -> None:  # fmt: skip
        """Every control, by name. names: of the classes, if the model does not hold them."""
        options, config = models.options, models.outline(models.first).ar
        self.model_columns = (ModelColumn(0), ModelColumn(1))
        self.family = controls.dropdown("model", options, models.first, "family")
        self.compare = controls.dropdown("compare with", [(NONE, NONE), *options], beside, "compare")
        self.label = class_control(config, label, "label", [(ALL, ALL)], names)
        self.scale = controls.float_slider("guidance", base.guidance_scale, 0.0, MAX_SCALE, 0.1, "scale")
        self.scale.readout_format = ".1f"
        self.scale_number = controls.tagged(
            widgets.BoundedFloatText(
                value=base.guidance_scale, min=0, max=MAX_SCALE, step=0.1, description="guidance, as a number",
                style=controls.WIDE, layout=widgets.Layout(width="240px"),
            ),
            "scale-number",
        )  # fmt: skip
        self._link = widgets.link((self.scale, "value"), (self.scale_number, "value"), (short, short))
        self.schedule = controls.dropdown("schedule", list(SCHEDULES), base.schedule, "schedule")
        self.named = controls.dropdown("settings", [*NAMED_SETTINGS, CUSTOM], settings, "named")
        self.solver = controls.dropdown("solver", list(SOLVERS), base.solver, "solver")
        self.steps = controls.int_slider("solver steps", base.steps, 1, 100, "steps")
        self.temperature = controls.float_slider("temperature", base.temperature, 0.0, 2.0, 0.05, "temperature")
        self.project = controls.checkbox("project tokens onto the sphere", base.project, "project")
        self.overlay = controls.checkbox("lay token lengths over the images", False, "overlay")
        self.seed = controls.int_field("seed", seed, MAX_SEED, "seed")
        self.lock = controls.checkbox("lock seed (off: new seed per change)", True, "lock")
        self.upload = controls.tagged(
            widgets.FileUpload(
                accept=".png", description="open settings from PNG", layout=widgets.Layout(width="auto")
            ),
            "open",
        )
        self.file = controls.tagged(widgets.Text(value="guidance.png", description="file", style=controls.WIDE), "file")
        hidden = widgets.Layout(width="100%", max_width="900px", height="190px", display="none")
        self.code = controls.tagged(widgets.Textarea(description="code", style=controls.WIDE, layout=hidden), "code")
        self.sentence, self.status, self.machine, self.note = map(
            controls.text, ("sentence", "status", "machine", "note")
        )
        self.strip, self.strip_text = controls.image("strip"), controls.text("strip-text")
        self.caption = controls.text("caption")

    def make_buttons(self, dice: Action, stop: Action, copy: Action, save: Action, strip: Action) -> None:
        """The buttons, each with what it does."""

        def button(name: str, action: Action, tag: str, tip: str = "") -> widgets.Button:
            return controls.button(name, lambda _: action(), tag, tip)

        self.dice = button("new random seed", dice, "dice")
        self.stop_button = button("stop", stop, "stop", "stop drawing and keep the partial images")
        self.copy_code = button("copy code", copy, "copy", "Python code that draws these images, into the clipboard")
        self.save_png = button("save as PNG", save, "save", "the PNG stores the settings")
        scales = " · ".join(f"{scale:g}" for scale in STRIP)
        self.strip_button = button(f"side by side: {scales}", strip, "strip-button", "draw all these guidance scales")
        self.more = controls.tagged(
            widgets.ToggleButton(value=False, description="more", layout=widgets.Layout(width="auto")), "more"
        )

    def arranged(self) -> list[widgets.Widget]:
        """What is in sight without scrolling, then curves, then everything else."""
        pair = controls.tagged(widgets.HBox(list(self.model_columns)), "pair")
        curves = controls.tagged(widgets.HBox([column.curve for column in self.model_columns]), "curves")
        legend = controls.tagged(widgets.HTML(_legend(), layout=widgets.Layout(display="none")), "legend")
        self.others = controls.tagged(widgets.VBox(self._others(), layout=widgets.Layout(display="none")), "others")
        widgets.dlink((self.overlay, "value"), (legend.layout, "display"), _display)
        widgets.dlink((self.more, "value"), (self.others.layout, "display"), _display)
        return [
            controls.tagged(widgets.HTML(INTRO), "intro"),
            controls.tagged(widgets.HBox([self.scale]), "sticky"),
            self.sentence,
            pair,
            self.caption,
            legend,
            controls.row(self.strip_button, self.stop_button, self.more, self.status),
            self.strip_text,
            self.strip,
            self.others,
            curves,
        ]

    def _others(self) -> list[widgets.Widget]:
        return [
            self.label,
            controls.row(self.scale_number, self.family, self.compare, self.named),
            controls.row(self.schedule, self.solver, self.steps, self.temperature),
            controls.row(self.seed, self.dice, self.lock, self.project, self.overlay),
            controls.row(self.copy_code, self.save_png, self.file, self.upload),
            self.note,
            self.code,
            self.machine,
        ]

    def watched(self) -> tuple[Any, ...]:
        """The controls of which every change is a new picture."""
        return (
            self.family, self.compare, self.label, self.scale, self.schedule, self.solver, self.steps,
            self.temperature, self.project, self.overlay, self.seed,
        )  # fmt: skip


def _display(shown: bool) -> str:
    return "" if shown else "none"


def _legend() -> str:
    bar = '<span class="spherear-legend-bar"></span>'
    return f"<small>-{FULL:.0%} {bar} +{FULL:.0%}: {html.escape(LEGEND)}</small>"


def short(scale: float) -> float:
    """Round a slider value, e.g. 3.0999999999999996 to 3.1."""
    return round(scale, 6)


def settings_name(base: SamplingSettings, solver: str, steps: int) -> str:
    """The matching row of NAMED_SETTINGS, ignoring guidance, temperature and projection; CUSTOM if there is none."""

    def core(s: SamplingSettings) -> SamplingSettings:
        return replace(s, guidance_scale=1.0, schedule="linear", temperature=1.0, project=True)

    key = core(replace(base, solver=solver, steps=steps))
    return next((name for name, row in NAMED_SETTINGS.items() if core(row) == key), CUSTOM)
