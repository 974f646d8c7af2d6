"""The worker behind live controls: the newest request wins, stopping stops, errors are kept, nothing is left.

Time passes only where a test says so.
"""

import threading

import pytest

from spherear.live.latest_wins import DEBOUNCE, MAX_WAIT, SHORT, SLOW_FACTOR, LatestWins
from tests.conftest import until


class Recorder:
    """Work that writes down what was begun, shown and left. endless: it goes on until it is cancelled."""

    def __init__(self):
        self.begun, self.shown, self.left = [], [], []
        self.endless = False
        self.threads = set()

    def work(self, request, cancellation):
        self.begun.append(request)
        self.threads.add(threading.current_thread())
        if request == "bad":
            raise ValueError("this request is bad")
        if self.endless:
            until(lambda: cancellation.over)
        if cancellation.over:
            self.left.append((request, cancellation.stale))
        if not cancellation.stale:
            self.shown.append((request, "part" if cancellation.over else "whole"))


class Timed(LatestWins):
    """Its clock stands still but for `later`."""

    def __init__(self, work, failed=lambda error: None):
        self.now, self.seen = 0.0, -1.0  # seen: by the worker
        super().__init__(work, failed, clock=self.read)

    def read(self):
        now = self.now
        if threading.current_thread() is self._thread:
            self.seen = now
        return now

    def later(self, seconds):
        """Move the clock, and return when the worker has decided whether the request that waits is due."""
        with self._change:
            self.now += seconds
            self._change.notify_all()
        until(lambda: self._waiting is None or self.seen == self.now)
        with self._change:  # the worker holds this until it has decided
            pass

    def submit_and_begin(self, request):
        self.submit(request)
        self.later(SHORT)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def runner(recorder):
    failures = []
    made = Timed(recorder.work, failures.append)
    made.failures = failures
    yield made
    made.close()
    assert not any(thread.name == "spherear-live" for thread in threading.enumerate())


def test_a_burst_begins_the_last_request_alone(runner, recorder):
    for value in range(30):
        runner.submit(value)
        runner.later(0.9 * SHORT)
    assert runner.started == 0
    runner.later(0.2 * SHORT)
    assert runner.wait(10)
    assert recorder.begun == [29]
    assert recorder.shown == [(29, "whole")]


def test_a_burst_with_pauses_begins_three_at_most(runner, recorder):
    for value in range(2):
        runner.submit_and_begin(value)
        assert runner.wait(10)
    for value in range(2, 10):
        runner.submit(value)
        runner.later(0.9 * DEBOUNCE)
    runner.later(0.9 * DEBOUNCE * (SLOW_FACTOR - 1.1))
    assert recorder.begun == [0, 1]
    runner.later(0.9 * DEBOUNCE * 0.2)
    assert runner.wait(10)
    assert recorder.begun == [0, 1, 9]
    runner.later(SLOW_FACTOR * DEBOUNCE)
    runner.submit_and_begin("a new burst")
    assert runner.wait(10)
    assert recorder.begun == [0, 1, 9, "a new burst"]


def test_a_burst_that_comes_slowly_begins_three_at_most(runner, recorder):
    """As from a page on a busy machine: slower than `debounce`, but never waiting until a picture is done."""
    recorder.endless = True
    for value in range(2):
        runner.submit_and_begin(value)
        runner.later(DEBOUNCE)
    for value in range(2, 8):
        runner.submit(value)
        runner.later(0.5 * MAX_WAIT)
    assert runner.started == 2
    runner.later(MAX_WAIT)
    until(lambda: recorder.begun == [0, 1, 7])


def test_what_comes_long_after_is_no_burst_though_work_goes_on(runner, recorder):
    recorder.endless = True
    for value in range(2):
        runner.submit(value)
        runner.later(1.2 * MAX_WAIT)
    runner.submit_and_begin(2)
    until(lambda: len(recorder.begun) == 3)
    assert recorder.begun == [0, 1, 2]


def test_a_request_waits_for_a_pause(runner, recorder):
    for request in ("first", "second"):
        runner.submit(request)
        runner.later(0.9 * SHORT)
        assert not runner.wait(0)
    runner.close()
    assert recorder.begun == recorder.shown == []


def test_what_a_hand_lets_go_begins_at_once(runner, recorder):
    """Also what arrives after the news that it lets go; while it holds, a request waits for the end of the burst."""
    runner.hold()
    runner.submit("moving")
    runner.later(0.9 * DEBOUNCE)
    assert runner.started == 0
    runner.release()
    assert runner.wait(10)
    runner.submit("late")
    assert runner.wait(10)
    assert recorder.begun == ["moving", "late"]
    runner.hold()
    runner.submit("held still")
    runner.later(DEBOUNCE)
    assert runner.wait(10)
    runner.later(2 * MAX_WAIT)
    runner.release()
    runner.later(MAX_WAIT)
    runner.submit("not by hand")
    runner.later(0.9 * SHORT)
    assert not runner.wait(0)
    runner.later(0.1 * SHORT)
    assert runner.wait(10)
    assert recorder.begun == ["moving", "late", "held still", "not by hand"]


def test_starts_while_a_hand_holds_do_not_delay_the_last(runner, recorder):
    runner.hold()
    for value in range(4):
        runner.submit(value)
        runner.later(MAX_WAIT)
        assert runner.wait(10)
    runner.submit("last")
    runner.release()
    assert runner.wait(10)
    assert recorder.begun == [0, 1, 2, 3, "last"]


def test_a_burst_of_keys_begins_three_at_most(runner, recorder):
    """Each let go; nobody waits for what the next key replaces."""
    for value in range(30):
        runner.submit(value)
        runner.release()
        runner.later(0.1 * DEBOUNCE)
    assert runner.started == 2
    runner.later(SLOW_FACTOR * DEBOUNCE)
    assert runner.wait(10)
    assert len(recorder.begun) == 3
    assert recorder.begun[-1] == 29


def test_what_is_replaced_is_told_that_it_is_stale(runner, recorder):
    recorder.endless = True
    runner.submit_and_begin("old")
    until(lambda: recorder.begun)
    runner.submit("new")
    until(lambda: recorder.left == [("old", True)])
    recorder.endless = False
    runner.later(SHORT)
    assert runner.wait(10)
    assert recorder.shown == [("new", "whole")]


def test_stop_shows_what_there_is(runner, recorder):
    recorder.endless = True
    runner.submit_and_begin("long")
    until(lambda: recorder.begun)
    runner.stop()
    assert runner.wait(10)
    assert recorder.shown == [("long", "part")]


def test_stop_gives_a_request_that_waits_a_turn_that_is_over(runner, recorder):
    """So that no picture of an older request stays under the newer controls."""
    runner.submit("first")
    runner.submit("second")
    runner.stop()
    assert runner.wait(10)
    assert recorder.shown == [("second", "part")]


def test_an_error_is_shown_and_kept_and_ends_nothing(runner, recorder):
    for request in ("bad", "good"):
        runner.submit_and_begin(request)
        assert runner.wait(10)
    assert [str(error) for error in runner.failures] == ["this request is bad"]
    assert runner.errors == runner.failures
    assert recorder.shown == [("good", "whole")]


def test_an_error_while_an_error_is_shown_is_kept_too(recorder):
    def broken(error):
        raise RuntimeError("no place to show it")

    runner = Timed(recorder.work, broken)
    runner.submit_and_begin("bad")
    assert runner.wait(10)
    assert [type(error) for error in runner.errors] == [ValueError, RuntimeError]
    runner.submit_and_begin("good")
    assert runner.wait(10)
    assert recorder.shown == [("good", "whole")]
    runner.close()


def test_an_error_of_what_was_replaced_is_kept_but_not_shown(recorder):
    begun, shown = threading.Event(), []

    def slow(request, cancellation):
        begun.set()
        until(lambda: cancellation.stale)
        raise ValueError("nobody asks for this any more")

    works = {"old": slow, "new": recorder.work}
    replaced = Timed(lambda request, cancellation: works[request](request, cancellation), shown.append)
    replaced.submit_and_begin("old")
    assert begun.wait(10)
    replaced.submit_and_begin("new")
    assert replaced.wait(10)
    assert recorder.shown == [("new", "whole")]
    assert shown == []
    assert [str(error) for error in replaced.errors] == ["nobody asks for this any more"]
    replaced.close()


def test_close_leaves_nothing_and_ignores_what_comes_later(runner, recorder):
    recorder.endless = True
    runner.submit_and_begin("long")
    until(lambda: recorder.begun)
    runner.close()
    (thread,) = recorder.threads
    assert not thread.is_alive()
    runner.submit("late")
    runner.close()
    assert runner.idle
    assert recorder.begun == ["long"]
    assert recorder.shown == []


def test_work_that_never_looks_is_an_error_of_close():
    begun, release = threading.Event(), threading.Event()

    def deaf(request, cancellation):
        begun.set()
        release.wait(30)

    runner = LatestWins(deaf, lambda error: None)
    runner.submit("anything")
    assert begun.wait(10)
    with pytest.raises(TimeoutError, match="expected it to check its cancellation"):
        runner.close(timeout=0)
    release.set()


def test_many_threads_may_ask(recorder):
    """By the clock of the machine."""
    runner = LatestWins(recorder.work, lambda error: None)

    def ask(name):
        for number in range(50):
            runner.submit((name, number))

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.submit("last")
    assert runner.wait(10)
    assert recorder.begun[-1] == "last"
    assert len(recorder.threads) == 1
    assert runner.errors == []
    runner.close()
