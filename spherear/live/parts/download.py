"""A widget without a view that saves files on the disk of whoever looks at the page, not on the server's."""

from pathlib import Path

import anywidget


class Download(anywidget.AnyWidget):
    """`save` hands a file to the browser, which stores it as it stores every download."""

    _esm = Path(__file__).with_name("download.js").read_text(encoding="utf-8")

    def save(self, name: str, content: bytes) -> None:
        """Let the browser save `content` as a file; it adds a number if there is one of that name."""
        self.send({"name": name}, buffers=[content])
