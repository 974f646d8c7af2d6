"""Child processes that end with their parent, also when the parent is killed.

A pipe tells them: the parent alone holds its writing end, which the system closes when the parent ends for any
reason. A child of ours reads the pipe itself (`exit_with_parent`). A child that is not ours, such as JupyterLab, has a
guard beside it, a small process that reads the pipe and then ends the child (`run`).
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

GRACE = 15.0
"""Seconds for a child to end after it was asked to; then it is killed."""
_STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exit_with_parent() -> None:
    """Exit when the parent process ends for any reason, that is, when standard input is closed."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # sys.stdin.read() would hold a lock that blocks the exit
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end and return its exit status; it ends with this process, however that ends.

    The command has this process's input and output. Ctrl-C is left to it, because it may ask for confirmation. SIGTERM
    (and SIGHUP) end it and raise SystemExit here, so that the caller's `with` and `finally` blocks run.
    """
    with _exiting_on_stops(), _guard() as guard, subprocess.Popen(command, env=environment) as child:
        try:
            assert guard.stdin is not None
            guard.stdin.write(f"{child.pid}\n".encode())
            guard.stdin.flush()
            return _wait(child)
        finally:
            _end(child)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Ask the child to end if it runs, and kill it if it does not end in time."""
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()


@contextmanager
def _exiting_on_stops() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP raise SystemExit; only in the main thread, as Python has it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _guard() -> Iterator["subprocess.Popen[bytes]"]:
    """A guard, which ends the process whose number it is given when this process ends; ended with the block."""
    command = [sys.executable, "-I", __file__, str(GRACE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guard:
        try:
            yield guard
        finally:
            guard.kill()


def _watch(grace: float) -> None:
    """The work of a guard: read a process number, wait until the pipe is closed, and end that process."""
    for number in (signal.SIGINT, *_STOPS):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.buffer.readline()
    sys.stdin.buffer.read()
    if not line:
        return  # the parent ended before it had a child
    with suppress(OSError):  # it has ended
        os.kill(int(line), signal.SIGTERM)
        if os.name != "posix":
            return  # on Windows that was the end of it, and there is no signal 0
        end = time.monotonic() + grace
        while time.monotonic() < end:
            os.kill(int(line), 0)
            time.sleep(0.1)
        os.kill(int(line), signal.SIGKILL)


if __name__ == "__main__":
    _watch(float(sys.argv[1]))
