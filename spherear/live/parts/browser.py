"""The page's side of a panel: its style, names for assistive software, downloads, the clipboard, and the hand."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

FOLDER = Path(__file__).parent


class Browser(anywidget.AnyWidget):
    """One per panel, without a size of its own.

    texts: what pictures and figures show, by their CSS class without `spherear-`.
    narrow: whether the panel is as narrow as on a phone; the page sets it.
    held: called with True when a pointer takes a control, with False when it, or a key, is let go.
    """

    _esm = (FOLDER / "browser.js").read_text(encoding="utf-8")
    _css = (FOLDER / "panel.css").read_text(encoding="utf-8")
    texts = traitlets.Dict().tag(sync=True)
    narrow = traitlets.Bool(False).tag(sync=True)

    def __init__(self, held: Callable[[bool], None] = lambda held: None) -> None:
        super().__init__()
        self._held = held
        self._numbers = itertools.count()
        self._waiting: dict[int, Callable[[bool], None]] = {}
        self.on_msg(self._answered)

    def describe(self, **texts: str) -> None:
        """Set the descriptions of some pictures; `_` in a name stands for `-`."""
        changed = {**self.texts, **{name.replace("_", "-"): text for name, text in texts.items()}}
        if changed != self.texts:
            self.texts = changed

    def save(self, name: str, content: bytes) -> None:
        """Let the browser save `content` as a file; it adds a number if there is one of that name."""
        self.send({"save": name}, buffers=[content])

    def copy(self, text: str, done: Callable[[bool], None]) -> None:
        """Put `text` into the clipboard; `done` is called with whether the browser allowed it."""
        number = next(self._numbers)
        self._waiting[number] = done
        self.send({"copy": text, "number": number})

    def _answered(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if "held" in content:
            self._held(content["held"] is True)
        done = self._waiting.pop(content.get("number", -1), None)
        if done is not None:
            done(content.get("copied") is True)
