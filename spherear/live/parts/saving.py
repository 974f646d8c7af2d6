"""Where a panel's pictures go: to the downloads of the browser, or to a folder."""

import html
from pathlib import Path

from spherear.live.parts.browser import Browser
from spherear.models.config import require
from spherear.models.files import atomic_path
from spherear.sampling.pixels import free_path

ENDING = ".png"


def png_name(text: str) -> str:
    """A file name with its ending `.png`. ValueError for no name, and for one with folders."""
    name = text.strip()
    named = name not in ("", ".", "..") and Path(name).name == name and "\\" not in name
    require(named, f"file is {name!r}; expected a name without folders")
    return name if name.lower().endswith(ENDING) else name + ENDING


def store(name: str, png: bytes, folder: Path | None, browser: Browser) -> str:
    """Write a file to the folder under a free name, or hand it to the browser; returns where it is, as HTML."""
    if folder is None:
        browser.save(name, png)
        return f"{html.escape(name)} is among the downloads of your browser"
    path = free_path(folder / name)
    with atomic_path(path) as part:
        part.write_bytes(png)
    return f"saved {html.escape(str(path))}"
