"""Work behind a control that moves: only the newest request counts, on one thread, and it can be stopped."""

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

RequestT = TypeVar("RequestT")
SHORT, DEBOUNCE = 0.045, 0.1
"""Seconds without another request that begin one within a burst; and that end the burst."""
PATIENCE, MAX_WAIT = 4, 1.0
"""A slow burst ends after `PATIENCE` times the longest time between its requests, or `MAX_WAIT` seconds."""


@dataclass
class Turn:
    """A request's turn at work. over: leave, and show what there is.  stale: leave, and show nothing more."""

    over: bool = False
    stale: bool = False


@dataclass
class _Waiting(Generic[RequestT]):
    request: RequestT
    due: float
    turn: Turn


class LatestWins(Generic[RequestT]):
    """Calls `work(request, turn)` for the newest request, on a thread of its own; `work` looks at `turn` often.

    A request less than `debounce` seconds after another is of the same burst; so is one that comes within `MAX_WAIT`
    while another is at work. In a burst, one is begun when nothing newer came for `short` seconds, so that a control
    that is let go is followed soon; twice, and after that only the last, when nothing came for `debounce` seconds, or
    longer where requests come slowly. What is replaced is stale: dropped before it began, or told so.
    An exception of `work` goes to `failed`, unless it is stale, stays in `errors`, and ends nothing. Any thread may
    call any method; `work` and `failed` run on the worker alone. After `close` nothing runs, and requests are ignored.
    """

    def __init__(
        self,
        work: Callable[[RequestT, Turn], None],
        failed: Callable[[Exception], None],
        short: float | int = SHORT,
        debounce: float | int = DEBOUNCE,
    ) -> None:
        self._work, self._failed, self._short, self._debounce = work, failed, short, debounce
        self._change = threading.Condition()
        self._waiting: _Waiting[RequestT] | None = None
        self._turn: Turn | None = None
        self._newest = -float("inf")
        self._begun, self._quiet = 0, debounce  # of this burst
        self._closed = False
        self._thread: threading.Thread | None = None
        self.turns = 0
        self.errors: list[Exception] = []

    def submit(self, request: RequestT) -> None:
        """Ask for `request`; whatever was asked for before is stale."""
        with self._change:
            if self._closed:
                return
            now = time.monotonic()
            gap, self._newest = now - self._newest, now
            if gap < (self._quiet if self.idle else max(self._quiet, MAX_WAIT)):
                self._quiet = max(self._quiet, min(PATIENCE * gap, MAX_WAIT))
            else:
                self._begun, self._quiet = 0, self._debounce
            pause = self._short if self._begun < 2 else self._quiet
            self._waiting = _Waiting(request, now + pause, Turn())
            self._end(stale=True)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spherear-live", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a thread at work must not outlive the interpreter
            self._change.notify_all()

    def stop(self) -> None:
        """End the turn at work, which shows what there is; a request that waits gets a turn that is over."""
        with self._change:
            if self._waiting is not None:
                self._waiting.turn.over = True
                self._waiting.due = time.monotonic()
            self._end(stale=self._waiting is not None)
            self._change.notify_all()

    def wait(self, timeout: float | int | None = None) -> bool:
        """Until nothing waits or runs; False after `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: self.idle, timeout)

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return self._waiting is None and self._turn is None

    def close(self, timeout: float | int = 10.0) -> None:
        """End everything and wait for the thread. Work that does not look at its turn: TimeoutError."""
        with self._change:
            self._closed, self._waiting = True, None
            self._end(stale=True)
            self._change.notify_all()
            thread = self._thread
        atexit.unregister(self.close)
        if thread is None or thread is threading.current_thread():
            return
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError(f"the work goes on {timeout:g} s after it was stopped; expected it to look at its turn")

    def _end(self, stale: bool) -> None:
        if self._turn is not None:
            self._turn.stale |= stale
            self._turn.over = True

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                self._work(waiting.request, waiting.turn)
            except Exception as error:
                self.errors.append(error)
                if not waiting.turn.stale:
                    self._tell(error)
            finally:
                with self._change:
                    self._turn = None
                    self._change.notify_all()

    def _tell(self, error: Exception) -> None:
        try:
            self._failed(error)
        except Exception as second:  # whoever should show errors fails too: both are kept, and work goes on
            self.errors.append(second)

    def _next(self) -> _Waiting[RequestT] | None:
        """The next request that is due, its turn begun; None once closed."""
        with self._change:
            while not self._closed:
                if self._waiting is None:
                    self._change.wait()
                elif (rest := self._waiting.due - time.monotonic()) > 0:
                    self._change.wait(rest)
                else:
                    waiting, self._waiting = self._waiting, None
                    self._turn, self.turns, self._begun = waiting.turn, self.turns + 1, self._begun + 1
                    return waiting
            return None
