"""A real page: JupyterLab on a notebook, in a browser without a window, offline.

Knows: how a server and Debian's chromium are started, and how cells are run in them. Needs Playwright and a chromium.
Does not know: what is in the notebook, or what is measured there.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from spherear.live.server import lab_command, lab_environment, page_command, write_notebook
from spherear.models.config import require

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""Draw WebGL without a graphics card; then the processor composes every page, which takes it some 50 ms a frame."""


def find_chromium() -> str | None:
    """The path of a chromium on this machine."""
    return next((path for name in CHROMIUMS if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Lab:
    """A running server. folder: of its notebooks."""

    folder: Path
    port: int
    token: str

    def url(self, notebook: str, workspace: str) -> str:
        """Of one notebook with nothing beside it, in a workspace of its own."""
        return f"http://localhost:{self.port}/doc/workspaces/{workspace}/tree/{notebook}?reset&token={self.token}"

    def listens(self, notebook: str) -> bool:
        """Whether a notebook's kernel is idle, with a page connected to it."""
        with self.ask("sessions") as answer:
            sessions = json.load(answer)
        kernels = [session["kernel"] for session in sessions if session["path"] == notebook and session["kernel"]]
        return any(kernel["execution_state"] == "idle" and kernel["connections"] > 0 for kernel in kernels)

    def ask(self, what: str) -> Any:
        """The server's answer to api/`what`."""
        return urllib.request.urlopen(f"http://localhost:{self.port}/api/{what}?token={self.token}", timeout=5)


@contextmanager
def running_lab(folder: Path, seconds: float | int = 90, theme: str = "") -> Iterator[Lab]:
    """JupyterLab on `folder`, as `spherear lab` starts it, until the block ends. The log is `folder`/lab.log.

    theme: its name, as in the menu of settings; "" is the default.
    """
    lab = Lab(folder, free_port(), secrets.token_hex(16))
    command = [*lab_command(folder, Path("x.ipynb"), port=lab.port, browser=False), "--ServerApp.port_retries=0"]
    if theme:
        chosen = folder / ".settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
        chosen.parent.mkdir(parents=True)
        chosen.write_text(json.dumps({"theme": theme}))
        command.append(f"--LabApp.user_settings_dir={folder / '.settings'}")
    with _running(lab, command, seconds):
        yield lab


@contextmanager
def running_page(folder: Path, seconds: float | int = 90, **options: Any) -> Iterator[str]:
    """The guidance panel alone, as `spherear page` starts it, until the block ends: its address. options: as its."""
    lab = Lab(folder, free_port(), secrets.token_hex(16))
    command = [*page_command(folder, port=lab.port, browser=False, **options), f"--Voila.token={lab.token}"]
    with _running(lab, command, seconds):
        yield f"http://localhost:{lab.port}/?token={lab.token}"


def free_port() -> int:
    """A port that no one listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(lab: Lab, command: Sequence[str], seconds: float | int) -> Iterator[None]:
    environment = {**lab_environment(os.environ), "JUPYTER_TOKEN": lab.token, "HF_HUB_OFFLINE": "1"}
    with (lab.folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _wait_until_up(lab, server, seconds)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_up(lab: Lab, server: "subprocess.Popen[bytes]", seconds: float | int) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            lab.ask("status").close()
            return
        except urllib.error.HTTPError:  # Voila answers, but has no such thing
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    last = (lab.folder / "lab.log").read_text().strip().splitlines()[-1:]
    raise RuntimeError(f"the server did not start within {seconds:g} s: {last}")


@dataclass(frozen=True)
class Offline:
    """A browser that reaches this machine alone. context: Playwright's.  refused: addresses asked for elsewhere."""

    context: Any
    refused: list[str]


@contextmanager
def browser(width: int = 1280, height: int = 1000, webgl: bool = True) -> Iterator[Offline]:
    """A browser of that size without a window; every request that leaves this machine is refused, and kept.

    webgl: figures in three dimensions are drawn, on the processor; pages without them are faster without.
    """
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    require(path is not None, f"there is no browser; expected one of {', '.join(CHROMIUMS)} on the PATH")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *(WEBGL if webgl else ())])
        yield offline(chromium, width, height)
        chromium.close()


def offline(chromium: Any, width: int = 1280, height: int = 1000) -> Offline:
    """A context of its own in a browser that runs."""
    context = chromium.new_context(viewport={"width": width, "height": height})
    opened = Offline(context, [])
    context.route("**/*", lambda route: _stay_here(route, opened.refused))
    return opened


def _stay_here(route: Any, refused: list[str]) -> None:
    if urlparse(route.request.url).hostname in ("localhost", "127.0.0.1", None):
        route.continue_()
    else:
        refused.append(route.request.url)
        route.abort()


@dataclass
class Page:
    """A notebook in the browser. page: Playwright's.  troubles: errors of the console and of the page."""

    page: Any
    troubles: list[str]

    def run_cells(self, cells: int, seconds: float | int = 120) -> None:
        """Run the first so many cells in turn, each once the one before is done."""
        for index in range(cells):
            cell = self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)
            until = time.monotonic() + seconds
            while not (said := self._prompt(cell)).strip("[]: *").isdigit():
                require(time.monotonic() < until, f"cell {index} shows {said!r} after {seconds:g} s; expected it done")
                self._accept()
                if "*" not in said:  # not begun: the kernel was not there yet
                    self.start(index)
                self.page.wait_for_timeout(1000)

    def start(self, index: int) -> None:
        """Run a cell, and do not wait for it."""
        self.page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(index).click()
        self.page.keyboard.press("Control+Enter")

    def _accept(self) -> None:
        """Say yes to a dialogue in the way, such as that a kernel is to be chosen."""
        yes = self.page.locator(".jp-Dialog .jp-mod-accept")
        if yes.count():
            yes.first.click()

    def _prompt(self, cell: Any) -> str:
        return str(cell.locator(".jp-InputPrompt").inner_text())

    def ready(self, lab: Lab, name: str, seconds: float | int = 60) -> None:
        """Until the kernel is there, listened to, and idle: what is run earlier is not run at all."""
        idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        self.page.wait_for_selector(idle, state="attached", timeout=1000 * seconds)
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell .cm-content", timeout=1000 * seconds)
        until = time.monotonic() + seconds
        while not lab.listens(name):
            require(time.monotonic() < until, f"no kernel of {name} is idle after {seconds:g} s; expected one")
            self._accept()
            self.page.wait_for_timeout(200)


@contextmanager
def notebook(opened: Offline, lab: Lab, cells: Sequence[str], name: str, run: int | None = None) -> Iterator[Page]:
    """Write a notebook, open it, run it, or its first `run` cells; errors of the page are kept."""
    write_notebook(lab.folder / f"{name}.ipynb", cells)
    page = opened.context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(f"page: {error}"))
    page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
    page.goto(lab.url(f"{name}.ipynb", name), timeout=120_000)
    shown = Page(page, troubles)
    shown.ready(lab, f"{name}.ipynb")
    shown.run_cells(len(cells) if run is None else run)
    yield shown
    page.close()
