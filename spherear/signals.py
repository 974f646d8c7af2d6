"""Signals that ask a command to stop: Ctrl-C, SIGTERM of a launcher, SIGUSR1 of a scheduler, SIGHUP of a terminal.

While there is nothing to save, the first one raises KeyboardInterrupt. Inside `deferred()` it is only recorded, and the
training loop asks `stop_requested()` between two steps. Repeats are ignored: launchers and terminals send several.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

STOPS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, n))
ALWAYS = (signal.SIGINT, signal.SIGTERM)  # handled even where the parent process had them ignored


class _Stop:
    """received: the first signal, or 0.  deferred: loops with something to save.  handled: signals are caught now."""

    received = 0
    deferred = 0
    handled = False


_stop = _Stop()


@contextmanager
def handled() -> Iterator[None]:
    """Context that catches the stop signals. Outside the main thread, and inside another one, it does nothing."""
    if _stop.handled or threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        first, _stop.received = not _stop.received, _stop.received or number
        if first and not _stop.deferred:
            raise KeyboardInterrupt

    stops = [n for n in STOPS if n in ALWAYS or signal.getsignal(n) is not signal.SIG_IGN]
    _stop.received, _stop.handled = 0, True
    previous = {number: signal.signal(number, handler) for number in stops}
    try:
        yield
    finally:
        _stop.received, _stop.handled = 0, False
        for number, original in previous.items():
            signal.signal(number, original)


@contextmanager
def deferred() -> Iterator[None]:
    """Context in which a stop signal is recorded and does not interrupt."""
    _stop.deferred += 1
    try:
        yield
    finally:
        _stop.deferred -= 1


def stop_requested() -> bool:
    """Whether a stop signal came since `handled` began. False outside `handled`."""
    return bool(_stop.received)


def in_command() -> bool:
    """Whether `handled` is active: a command runs, which may show its progress."""
    return _stop.handled


@contextmanager
def blocked() -> Iterator[None]:
    """Context in which new processes start with the stop signals blocked, from their first instruction on.

    A signal to this process is delivered when the context ends. No effect on Windows.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which itself unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(worker: int = 0) -> None:
    """Ignore the stop signals in this process: its parent decides when it ends."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
