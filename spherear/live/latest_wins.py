"""A worker thread that serves only the newest request, with debouncing and cancellation."""

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

RequestT = TypeVar("RequestT")
SHORT, DEBOUNCE = 0.045, 0.1
"""Seconds without a newer request: to start one within a burst, and to end the burst."""
SLOW_FACTOR, MAX_WAIT = 4, 1.0
"""A slow burst ends after `SLOW_FACTOR` times the longest gap between its requests, at most `MAX_WAIT` seconds."""


@dataclass
class Cancellation:
    """Cancellation flags of a request. over: stop, and show the partial result.  stale: stop, and show nothing."""

    over: bool = False
    stale: bool = False


@dataclass
class _Waiting(Generic[RequestT]):
    request: RequestT
    due: float
    cancellation: Cancellation


class LatestWins(Generic[RequestT]):
    """Calls `work(request, cancellation)` for the newest request, on its own thread.

    Requests less than `DEBOUNCE` seconds apart form a burst, as do requests less than `MAX_WAIT` apart while one is
    being worked on. The first two starts in a burst need `SHORT` seconds without a newer request, for a quick
    response, or the news that its key is let go; later ones need `DEBOUNCE` seconds, or more if requests come slowly.
    While a hand moves a control, as `hold` tells, all need those, and none counts; once it lets go, they start at once.
    A replaced request is stale: it is dropped if it has not started, else its `Cancellation` is marked, which `work`
    checks often. An exception of `work` is appended to `errors`, and passed to `failed` unless the request is stale;
    the worker continues. All methods are thread-safe; `work` and `failed` run only on the worker. After `close` nothing
    runs, and requests are ignored.

    clock: returns the time in seconds.
    """

    def __init__(
        self,
        work: Callable[[RequestT, Cancellation], None],
        failed: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._failed, self._clock = work, failed, clock
        self._change = threading.Condition()
        self._waiting: _Waiting[RequestT] | None = None
        self._current: Cancellation | None = None
        self._newest = -float("inf")
        self._burst_starts, self._quiet = 0, DEBOUNCE
        self._held, self._free_until = False, -float("inf")
        self._closed = False
        self._thread: threading.Thread | None = None
        self.started = 0
        self.errors: list[Exception] = []

    def submit(self, request: RequestT) -> None:
        """Submit `request`; all earlier requests become stale."""
        with self._change:
            if self._closed:
                return
            now = self._clock()
            gap, self._newest = now - self._newest, now
            if gap < (self._quiet if self.idle else max(self._quiet, MAX_WAIT)):
                self._quiet = max(self._quiet, min(SLOW_FACTOR * gap, MAX_WAIT))
            else:
                self._burst_starts, self._quiet = 0, DEBOUNCE
            self._waiting = _Waiting(request, now + self._delay(now), Cancellation())
            self._end(stale=True)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spherear-live", daemon=True)
                self._thread.start()
                atexit.register(self.close)  # a running thread must not outlive the interpreter
            self._change.notify_all()

    def _delay(self, now: float) -> float:
        if now < self._free_until:
            return 0.0
        return SHORT if self._burst_starts < 2 and not self._held else self._quiet

    def hold(self) -> None:
        """A hand has taken a control, and more requests will follow."""
        with self._change:
            self._held, self._free_until = True, -float("inf")
            self._burst_starts, self._quiet = 0, DEBOUNCE

    def release(self) -> None:
        """The hand that held a control lets go, or a key is let go.

        A page may tell so before the last values of the hand: they are those of the next `MAX_WAIT` seconds.
        """
        with self._change:
            now = self._clock()
            if self._held:
                self._held, self._free_until = False, now + MAX_WAIT
            if self._waiting is not None and self._burst_starts < 2:
                self._waiting.due = now
            self._change.notify_all()

    def stop(self) -> None:
        """Stop the running work, which shows its partial result. A waiting request runs at once with `over` set."""
        with self._change:
            if self._waiting is not None:
                self._waiting.cancellation.over = True
                self._waiting.due = self._clock()
            self._end(stale=self._waiting is not None)
            self._change.notify_all()

    def wait(self, timeout: float | int | None = None) -> bool:
        """Wait until no request waits or runs; False after `timeout` seconds."""
        with self._change:
            return self._change.wait_for(lambda: self.idle, timeout)

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._waiting is None and self._current is None

    def close(self, timeout: float | int = 10.0) -> None:
        """Stop all work and join the thread. If `work` does not stop within `timeout` seconds: TimeoutError."""
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
            raise TimeoutError(
                f"the work goes on {timeout:g} s after it was stopped; expected it to check its cancellation"
            )

    def _end(self, stale: bool) -> None:
        if self._current is not None:
            self._current.stale |= stale
            self._current.over = True

    def _run(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                self._work(waiting.request, waiting.cancellation)
            except Exception as error:
                self.errors.append(error)
                if not waiting.cancellation.stale:
                    self._report(error)
            finally:
                with self._change:
                    self._current = None
                    self._change.notify_all()

    def _report(self, error: Exception) -> None:
        try:
            self._failed(error)
        except Exception as second_error:  # `failed` itself failed: the worker must continue
            self.errors.append(second_error)

    def _next(self) -> _Waiting[RequestT] | None:
        """Wait for the next request that is due, and mark it as running; None once closed."""
        with self._change:
            while not self._closed:
                if self._waiting is None:
                    self._change.wait()
                elif (delay := self._waiting.due - self._clock()) > 0:
                    self._change.wait(delay)
                else:
                    waiting, self._waiting = self._waiting, None
                    self._current, self.started, self._burst_starts = (
                        waiting.cancellation,
                        self.started + 1,
                        self._burst_starts + (not self._held and waiting.due >= self._free_until),
                    )
                    return waiting
            return None
