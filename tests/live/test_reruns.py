"""A cell that runs again closes the panels it made before: no widget, no thread and no memory is left of them."""

import gc
import threading
import weakref

import pytest
from IPython.core.interactiveshell import InteractiveShell
from ipywidgets.widgets.widget import _instances
from jupyter_client.manager import start_new_kernel
from traitlets.config import Config

from spherear.live import GuidanceExplorer, SphereExplorer
from spherear.live.figure import live_figure


class Shell(InteractiveShell):
    """IPython in this process; a cell has its name as in a notebook, beside the message that runs it."""

    def get_parent(self):
        return self.message

    def run(self, code, cell):
        self.message = {"header": {"msg_type": "execute_request"}, "metadata": {"cellId": cell} if cell else {}}
        self.run_cell(code, store_history=True, cell_id=cell).raise_error()


@pytest.fixture
def shell():
    config = Config()
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config)
    shell.run("from spherear.live import *", "imports")
    SphereExplorer().close()
    yield shell
    for panel in shell.user_ns.values():
        if isinstance(panel, SphereExplorer | GuidanceExplorer):
            panel.close()
    Shell.clear_instance()


def left():
    """Widgets, and threads of panels."""
    return len(_instances), sum(thread.name == "spherear-live" for thread in threading.enumerate())


@pytest.mark.parametrize("code", ["panel = SphereExplorer(samples=10)", "SphereExplorer(samples=10)"])
def test_a_cell_that_runs_again_closes_its_panel(shell, code):
    before = left()
    shell.run(code, "a")
    once = left()
    assert once > before
    for _ in range(3):
        shell.run(code, "a")
        assert left() == once
    shell.run("print()", "a")  # the cell was edited
    assert left() == before


def test_panels_of_other_cells_stay(shell):
    before = left()
    elsewhere = SphereExplorer(samples=10)  # outside of cells, as in a script
    shell.message = {"header": {"msg_type": "comm_msg"}, "metadata": {"cellId": "a"}}
    clicked = SphereExplorer(samples=10)  # by a button
    for name, cell in (("first", "a"), ("second", "a"), ("third", "b"), ("fourth", None)):
        shell.run(f"{name} = SphereExplorer(samples=10)", cell)
    panels = {name: shell.user_ns[name] for name in ("second", "third", "fourth")}
    shell.run("first", "c")
    shell.run("fourth", None)
    for panel in (elsewhere, clicked, *panels.values()):
        assert panel.comm is not None
    assert shell.user_ns["first"].comm is None  # the cell that made it made `second` later
    shell.run("one, two = SphereExplorer(samples=10), SphereExplorer(samples=10)", "c")
    assert shell.user_ns["one"].comm is not None  # two of one cell
    for panel in (elsewhere, clicked, *panels.values(), shell.user_ns["one"], shell.user_ns["two"]):
        panel.close()
    assert left() == before


def test_a_closed_panel_is_forgotten(shell):
    shell.run("panel = SphereExplorer(samples=10)\npanel", "a")
    panel = weakref.ref(shell.user_ns["panel"])
    shell.run("panel = SphereExplorer(samples=10)\npanel", "a")
    gc.collect()
    assert panel() is None


def test_a_closed_figure_is_forgotten():
    """anywidget keeps every widget whose module is given by its path."""
    figure = live_figure("a", [], "x", "y")
    figure.close()
    figure, gone = None, weakref.ref(figure)
    gc.collect()
    assert gone() is None


def test_a_cell_that_fails_leaves_nothing(shell):
    before = left()
    for _ in range(2):
        with pytest.raises(ValueError, match="samples is 10000; expected 10 to 1000"):
            shell.run("SphereExplorer(concentration=10.0, samples=10_000)", "a")
    shell.run("print()", "a")
    assert left() == before


KERNEL = """
import gc, threading
from ipywidgets.widgets.widget import _instances
from spherear.live import GuidanceExplorer
gc.collect()
threads = [t for t in threading.enumerate() if t.name == "spherear-live"]
print(len(_instances), len(threads), len(gc.get_objects()))
"""


@pytest.mark.slow
def test_a_kernel_stays_as_it_is_while_a_cell_runs_again_and_again():
    """A real one, told as by a page which cell runs. A panel is made of thousands of objects."""
    manager, client = start_new_kernel()

    def run(code, cell):
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = client.session.msg("execute_request", content, metadata={"cellId": cell})
        client.shell_channel.send(message)
        printed = []
        while True:
            reply = client.get_iopub_msg(timeout=120)
            if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            assert reply["msg_type"] != "error", reply["content"]
            printed += [reply["content"]["text"]] if reply["msg_type"] == "stream" else []
            if reply["msg_type"] == "status" and reply["content"]["execution_state"] == "idle":
                return "".join(printed)

    def counts():
        return tuple(map(int, run(KERNEL, "counts").split()))

    cell = "panel = GuidanceExplorer()\npanel.runner.wait(60)\npanel"
    try:
        counts()
        for _ in range(3):
            run(cell, "panel")
        widgets, threads, objects = counts()
        assert threads == 1
        for _ in range(10):
            run(cell, "panel")
        later = counts()
        assert later[:2] == (widgets, threads)
        assert later[2] - objects < 1000
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
