"""The choice of a class: a row of buttons for a few, a search field and a list for many."""

import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from spherear.live import controls
from spherear.models.ar import ARConfig
from spherear.models.config import require

MAX_BUTTONS = 12
"""Maximum number of class buttons; with more classes there is a search field, and no option `one of each`."""
AUTO = "auto"
ROWS = 5  # of the list that are visible


class ClassSearch(widgets.VBox):
    """One class among many. value: its number.

    Words typed into the field leave the classes whose name or number has all of them in the list, the closest first. A
    click on a line or Enter (the first line) chooses; typing alone changes nothing.
    """

    value = traitlets.Int(0)

    def __init__(self, names: Sequence[str], value: int, tag: str) -> None:
        self.names = list(names)
        require(0 <= value < len(self.names), f"class is {value!r}; expected 0 to {len(self.names) - 1}")
        self._filtering = False
        wide = widgets.Layout(width="420px", max_width="100%")
        hint = f"a name or a number, of {len(self.names):,} classes"
        self.field = controls.tagged(
            widgets.Text(description="class", placeholder=hint, style=controls.WIDE, layout=wide), f"{tag}-search"
        )
        self.found = controls.tagged(widgets.Select(rows=ROWS, layout=wide), f"{tag}-list")
        self.chosen = controls.text(f"{tag}-chosen")
        super().__init__([self.chosen, self.field, self.found], value=value)
        self.field.observe(lambda change: self._filter(), "value")
        self.field.on_msg(self._submitted)
        self.found.observe(self._take, "value")
        self.observe(lambda change: self._filter(), "value")
        self._filter()

    def matches(self, text: str) -> list[int]:
        """Classes whose name or number has every word of `text`, by how well they fit, then by number."""
        words = text.lower().split()
        scored = [(_distance(words, number, name), number) for number, name in enumerate(self.names)]
        return [number for distance, number in sorted(pair for pair in scored if pair[0] is not None)]

    def _filter(self) -> None:
        """Fill the list with what matches the field, the chosen class marked."""
        numbers = self.matches(self.field.value)
        self._filtering = True  # new options move the mark, which chooses nothing
        try:
            self.found.options = [(f"{number}  {self.names[number]}", number) for number in numbers]
            self.found.index = numbers.index(self.value) if self.value in numbers else None
        finally:
            self._filtering = False
        count = "" if len(numbers) == len(self.names) else f" · {len(numbers)} of {len(self.names):,} classes match"
        self.chosen.value = f"class {self.value}: <b>{html.escape(self.names[self.value])}</b>{count}"

    def _take(self, change: Any) -> None:
        if not self._filtering and change["new"] is not None:
            self.value = change["new"]

    def _submitted(self, _: Any, content: Any, __: Any) -> None:
        """Enter: the first line."""
        if content.get("event") == "submit" and self.found.options:
            self.value = self.found.options[0][1]


def _distance(words: Sequence[str], number: int, name: str) -> int | None:
    """0: number or name are so, 1: the name begins so, 2: a word of it does, 3: the words are somewhere; None: not."""
    text, name = " ".join(words), name.lower()
    if not all(word in name or word == str(number) for word in words):
        return None
    if text in (name, str(number)):
        return 0
    if name.startswith(text):
        return 1
    return 2 if f" {text}" in name else 3


def class_control(config: ARConfig, value: Any, tag: str, extra: Sequence[Any] = (), names: Sequence[str] = ()) -> Any:
    """The control of a model's classes. value: a number or a name; auto: class 3, or the last of fewer.

    extra: further options beside few classes.  names: of the classes, where the model does not hold them. ValueError
    for a class that the model does not have.
    """
    names = list(names) or [config.name_of(number) for number in range(config.num_classes)]
    others = [option for _, option in extra]
    value = min(3, len(names) - 1) if value == AUTO else value
    value = names.index(value) if value in names else value
    if isinstance(value, str) and value not in others:
        value = config.label_of(value)
    if len(names) > MAX_BUTTONS:
        require(value not in others, f"class is {value!r}; expected one of the {len(names):,} classes")
        return ClassSearch(names, value, tag)
    return controls.toggle_buttons("class", [*zip(names, range(len(names)), strict=True), *extra], value, tag)
