"""From a slider that is let go to pixels that have changed: measured in the page itself, by the page's own clock.

    python -m tests.browser.latency            # 20 moves by pointer, 20 by key
    python -m tests.browser.latency balanced   # with another row of NAMED_SETTINGS
    python -m tests.browser.latency fast shapes   # in colour: 64 tokens for 16
    spherear distill shapes-power_spherical --steps 20 && python -m tests.browser.latency fast shapes \
        runs/shapes-power_spherical/heads/mean_velocity   # one evaluation per token
    python -m tests.browser.latency fast shapes power_spherical compiled   # with another engine
    python -m tests.browser.latency fast shapes power_spherical auto gaussian   # two models side by side

Knows: the guidance panel in a real JupyterLab in a real browser.  Does not know: how any of it is done.
Needs Playwright and a chromium on the PATH. The panel needs no WebGL, and the browser runs without: drawing that on the
processor would be a good part of what is measured.
"""

import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spherear.live.latest_wins import MAX_WAIT
from spherear.sampling.settings import SamplingSettings
from tests.browser.jupyter import browser, notebook, running_lab

MOVES = 20
FIRST, FULL = 150, 500
"""Milliseconds aimed at, for the first changed pixel and for the full grid, on two quiet cores."""

WATCH = """() => {
  const seen = (window.spherear = {released: 0, changes: [], last: new Map(), unnamed: [], picture: {}});
  for (const kind of ["pointerup", "keyup"])
    document.addEventListener(kind, () => { seen.released = performance.now(); seen.changes = []; }, true);
  const grids = [...document.querySelectorAll(".spherear-grid-0, .spherear-grid-1")];
  const images = grids.filter(image => image.offsetParent);
  const status = document.querySelector(".spherear-status");
  new MutationObserver(records => records.forEach(({target}) => {
    if (images.includes(target)) return seen.unnamed.push(target.src);
    const found = status.contains(target) && status.innerText.match(/picture (\\d+)/);
    if (found) seen.unnamed.splice(0).forEach(source => { seen.picture[source] = Number(found[1]); });
  })).observe(document.querySelector(".spherear-panel"), {subtree: true, childList: true, attributeFilter: ["src"]});
  for (const image of images) image.addEventListener("load", () => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64}), source = image.src;
    const pen = canvas.getContext("2d", {willReadFrequently: true});
    pen.drawImage(image, 0, 0, 64, 64);
    const pixels = pen.getImageData(0, 0, 64, 64).data.join();
    if (pixels === seen.last.get(image)) return;
    seen.last.set(image, pixels);
    requestAnimationFrame(() => requestAnimationFrame(() => seen.changes.push([source, performance.now()])));
  });
}"""
"""Keeps the time of the last release, and of every frame after it that has painted other pixels than before, with the
number of the picture that they are of: the panel sends images, and then the line that says which picture they are of.
"""

STATUS = ".spherear-status"
SEEN = """() => {
  const {released, changes, picture} = window.spherear;
  return [released, changes.map(([source, time]) => [picture[source], time])];
}"""


@dataclass(frozen=True)
class Move:
    """Milliseconds from the release to the first frame with changed pixels of the picture asked for, and to the last.

    decodes: how many were begun for this move, those included that were dropped while it went on.
    """

    first: float
    full: float
    decodes: int


def measure(page: Any, move: Callable[[int], None], moves: int = MOVES) -> list[Move]:
    """Make `moves` moves, each after the picture of the one before is finished."""
    taken = []
    for number in range(moves):
        before = picture_number(page)
        page.wait_for_timeout(400)
        move(number)
        wait_for_picture(page, before)
        page.wait_for_timeout(200)  # what was painted last is on its list by then
        released, changes = page.evaluate(SEEN)
        last = picture_number(page)
        times = [time - released for number, time in changes if number == last]
        taken.append(Move(times[0], times[-1], last - before))
    return taken


def picture_number(page: Any, status: str = STATUS) -> int:
    """Of the picture that the panel shows."""
    found = re.search(r"picture (\d+)", page.inner_text(status))
    return int(found[1]) if found else 0


def wait_for_picture(page: Any, after: int, status: str = STATUS) -> None:
    """Until a finished picture is shown that is newer than number `after`, and none waits for the end of a burst."""
    found = f"document.querySelector('{status}').innerText.match(/^done.*picture (\\d+)$/)"
    for pause in (1000 * MAX_WAIT, 0):
        page.wait_for_function(f"n => Number({found}?.[1]) > n", arg=after, timeout=60_000)
        page.wait_for_timeout(pause)


def drag(page: Any, share: float, slider: str = ".spherear-scale") -> None:
    """Take the slider's handle by pointer to a share of its way, and let go."""
    page.hover(f"{slider} .noUi-handle")  # once it stands still: a sentence that arrives late moves it
    page.mouse.down()
    way = page.locator(f"{slider} .noUi-base").bounding_box()
    page.mouse.move(way["x"] + share * way["width"], way["y"] + way["height"] / 2, steps=4)
    page.mouse.up()


def press(page: Any, key: str, slider: str = ".spherear-scale") -> None:
    """A key on the slider's handle."""
    page.focus(f"{slider} .noUi-handle")
    page.keyboard.press(key)


def report(name: str, moves: list[Move]) -> str:
    """One line of medians, and the targets."""
    first, full = (statistics.median(getattr(move, part) for move in moves) for part in ("first", "full"))
    most = max(move.decodes for move in moves)
    return (
        f"{name:8} {len(moves)} moves: first changed pixel {first:4.0f} ms (target {FIRST}), "
        f"full grid {full:4.0f} ms (target {FULL}), decodes begun {most} at most"
    )


def main(
    settings: str = "fast",
    preset: str = "digits",
    model: str = "power_spherical",
    engine: str = "auto",
    compare: str | None = None,
) -> None:
    """Print the medians over 20 moves by pointer and 20 by key, for 16 images of one model, or of it and another."""
    SamplingSettings.named(settings)
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    options = f"compare={compare!r}, settings={settings!r}, preset={preset!r}, label=3, engine={engine!r}"
    cell = f"from spherear.live import GuidanceExplorer\npanel = GuidanceExplorer({model!r}, {options})\npanel"
    load = os.getloadavg()[0]
    both = Path(model).name + (f" beside {compare}" if compare else "")
    drawn = f"16 images of {preset} ({both}), settings {settings!r}, engine {engine!r}"
    print(f"{drawn}; {os.cpu_count()} cores, load {load:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab, browser(webgl=False) as context:  # noqa: SIM117
        with notebook(context, lab, [cell], "latency") as opened:
            page = opened.page
            page.wait_for_selector(".spherear-status >> text=done", timeout=600_000)  # a compiler is slow
            page.wait_for_selector(".spherear-trace-0 .main-svg", timeout=60_000)
            page.evaluate(WATCH)
            drag(page, 0.3)  # warm
            page.wait_for_timeout(2000)
            print(report("pointer", measure(page, lambda n: drag(page, 0.1 + 0.28 * (n * 7 % 20) / 20))), flush=True)
            print(report("key", measure(page, lambda n: press(page, "ArrowLeft" if n % 2 else "ArrowRight"))))
            print(f"load after {os.getloadavg()[0]:.1f}; errors of the page: {len(opened.troubles)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
