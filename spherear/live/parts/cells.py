"""Which notebook cell made which panel: before a cell runs again, the panels of its earlier run are closed.

A cell's identity comes with the message that runs it (`cellId`, which JupyterLab and VS Code send). Panels made without
one (in a script, a console, or by a button) are not touched.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from IPython.core.getipython import get_ipython

_panels: dict[str, list[tuple[object, Callable[[], None]]]] = {}


def register(panel: object, close: Callable[[], None]) -> None:
    """Call `close` before the running cell runs again, and forget the panel. Outside of cells this does nothing."""
    shell: Any = get_ipython()
    cell = _running_cell(shell)
    if cell is not None:
        _panels.setdefault(cell, []).append((panel, close))
        shell.events.register("pre_run_cell", _close_panels)  # registered once: IPython knows it the second time


def _running_cell(shell: Any) -> str | None:
    """The identity of the running cell; None outside of one, or where the message has none."""
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    if not message or message["header"]["msg_type"] != "execute_request":
        return None
    cell = message.get("metadata", {}).get("cellId")
    return None if cell is None else str(cell)


def _close_panels(info: Any) -> None:
    """Before a cell runs: close and forget the panels of its earlier run. All are closed, even if one raises."""
    shell = get_ipython()
    with ExitStack() as stack:
        for panel, close in _panels.pop(info.cell_id, []):
            _forget(shell, panel)
            stack.callback(close)


def _forget(shell: Any, panel: object) -> None:
    """Remove a panel from IPython's record of results (`Out`, `_`, `_3`), which would keep it in memory."""
    results = shell.user_ns["_oh"]
    for number in [number for number, result in results.items() if result is panel]:
        del results[number]
        shell.user_ns.pop(f"_{number}", None)
        shell.user_ns_hidden.pop(f"_{number}", None)
    for name in ("_", "__", "___"):
        if getattr(shell.displayhook, name, None) is panel:
            setattr(shell.displayhook, name, None)
            shell.user_ns[name] = shell.user_ns_hidden[name] = None
    last = shell.last_execution_result
    if last is not None and last.result is panel:
        last.result = None
