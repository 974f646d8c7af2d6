"""The static page in a real browser, and how long a person waits there.

    python -m tests.browser.static_page          # both data sets, at 390 and 1366 pixels
    python -m tests.browser.static_page FOLDER   # of a site that is written already
    python -m tests.browser.static_page picture notebooks/figures/static-page.png
    python -m tests.browser.static_page tour shots    # what a visitor sees at each step, to be looked at

For each: from a click on another class to the first change of the pictures and to all eight, on the page's clock, and
the processor time that the browser took for it. The page was open and its models loaded; "cold" is from the request for
the page to the first eight pictures. The load of the machine stands beside the times: they are those of the issue only
where it is near 0.
"""

import functools
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from spherear.live.site.build import texts, write_site
from tests.browser.jupyter import Offline, browser

MOVES = 5
FIRST, FULL = 3.0, {"shapes": 6.0, "digits": 1.5}
"""Seconds aimed at, on two quiet cores."""
SIZES = ((390, 844), (1366, 768))
PHONE = SIZES[0]
PICTURE = (1000, 700)


class Quiet(SimpleHTTPRequestHandler):
    """Python's own file server, without its log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The site behind `python -m http.server`, until the block ends: its address."""
    server = ThreadingHTTPServer(("localhost", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def open_page(opened: Offline, address: str, troubles: list[str], **options: Any) -> Any:
    """A page on the site, whose errors are kept in `troubles`."""
    page = opened.context.new_page()
    page.on("pageerror", lambda error: troubles.append(f"page: {error}"))
    page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.goto(address, **options)
    return page


def wait_for(page: Any, scale: float | None = None, seconds: float = 300) -> None:
    """Until all pictures are drawn and judged; of this guidance scale, if one is given."""
    ending = "" if scale is None else f" {scale:g}"
    page.wait_for_function(
        "ending => document.body.dataset.state === 'done' && document.body.dataset.done?.endsWith(ending)",
        arg=ending, timeout=1000 * seconds,
    )  # fmt: skip


def renderers() -> Sequence[psutil.Process]:
    """The processes in which pages of this process's browsers run."""
    return [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in p.cmdline()]


def processor_seconds() -> float:
    """Processor time of all renderers so far."""
    return sum(sum(p.cpu_times()[:2]) for p in renderers())


CHOOSE = """async label => {
  const select = document.querySelector('#label'), canvases = [...document.querySelectorAll('.side canvas')];
  const first = new Promise(resolve => {
    const original = CanvasRenderingContext2D.prototype.putImageData;
    CanvasRenderingContext2D.prototype.putImageData = function (...values) {
      original.apply(this, values);
      if (canvases.includes(this.canvas)) {
        CanvasRenderingContext2D.prototype.putImageData = original;
        resolve(performance.now());
      }
    };
  });
  const full = new Promise(resolve => new MutationObserver((_, observer) => {
    if (document.body.dataset.state === 'done') { observer.disconnect(); resolve(performance.now()); }
  }).observe(document.body, {attributeFilter: ['data-state']}));
  const began = performance.now();
  select.value = String(label);
  select.dispatchEvent(new Event('change'));
  return [await first - began, await full - began].map(ms => ms / 1000);
}"""
"""Choose a class; seconds to the first painted picture and to the last."""


@dataclass(frozen=True)
class Waits:
    """Seconds. first: to a first picture.  full: to all.  processor: of the browser.  cold: of the first visit."""

    first: float
    full: float
    processor: float
    cold: float


def measure(opened: Offline, address: str, preset: str, moves: int = MOVES) -> Waits:
    """The medians of choosing `moves` classes, after a visit that loads the models."""
    troubles: list[str] = []
    page = open_page(opened, f"{address}#preset={preset}", troubles)
    wait_for(page)
    cold = page.evaluate("performance.now() / 1000")
    page.wait_for_function("document.body.dataset.strip", timeout=300_000)
    found = []
    for label in range(moves):
        before = processor_seconds()
        first, full = page.evaluate(CHOOSE, label)
        found.append((first, full, processor_seconds() - before))
        page.wait_for_function("document.body.dataset.done", timeout=300_000)
    page.close()
    assert not troubles, troubles
    first, full, processor = (statistics.median(column) for column in zip(*found, strict=True))
    return Waits(first, full, processor, cold)


@contextmanager
def written(folder: str = "") -> Iterator[str]:
    """The address of the site in a folder, or of a new one."""
    with tempfile.TemporaryDirectory() as place:
        site = Path(folder) if folder else Path(place) / "site"
        if not folder:
            write_site(site, lambda line: None)
        with serving(site) as address:
            yield address


def take_picture(out: Path) -> None:
    """Save the page as it is drawn at guidance scale 9."""
    with written() as address, browser(*PICTURE, webgl=False) as opened:
        page = open_page(opened, f"{address}#scale=9&lang=en", [])
        wait_for(page)
        page.wait_for_function("document.body.dataset.strip", timeout=300_000)
        page.add_style_tag(content="#status { visibility: hidden }")  # the time is that of this machine
        page.screenshot(path=str(out), full_page=True)


TOUR = ("#tour-open", *5 * ["#tour-next"], "#tour-question button >> nth=1")
"""What a visitor clicks on, to the right answer."""
JUDGED = """document.body.dataset.state === 'done'
  && [...document.querySelectorAll('dd')].every(number => number.textContent !== '…')"""


def take_tour(out: Path, *languages: str) -> None:
    """Save the window at each step of the tour, and after the right answer: WIDTH-LANGUAGE-STEP-SCHEME.png.

    languages: all, if none is given.
    """
    out.mkdir(parents=True, exist_ok=True)
    with written() as address:
        for width, height in SIZES:
            for language in languages or texts():
                with browser(width, height, webgl=False) as opened:
                    page = open_page(opened, f"{address}#lang={language}", [])
                    for step, button in enumerate(TOUR, 1):
                        page.click(button)
                        page.wait_for_timeout(300)  # until a new drawing has begun
                        page.wait_for_function(JUDGED, timeout=300_000)
                        for scheme in ("light", "dark"):
                            page.emulate_media(color_scheme=scheme)
                            page.screenshot(path=str(out / f"{width}-{language}-{step}-{scheme}.png"))


def main(folder: str = "", out: str = "", *languages: str) -> None:
    """Print what was measured, one line for each data set and size; or take pictures."""
    if folder == "picture":
        return take_picture(Path(out))
    if folder == "tour":
        return take_tour(Path(out), *languages)
    with written(folder) as address:
        for width, height in SIZES:
            for preset, aim in FULL.items():
                load = os.getloadavg()[0]
                with browser(width, height, webgl=False) as opened:
                    waits = measure(opened, address, preset)
                print(
                    f"{preset:6} at {width:4} px: first picture {waits.first:.2f} s (aim {FIRST:g}), "
                    f"all eight {waits.full:.2f} s (aim {aim:g}), processor {waits.processor:.2f} s, "
                    f"cold {waits.cold:.1f} s; {os.cpu_count()} cores, load {load:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
