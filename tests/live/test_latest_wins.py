"""The worker behind live controls: the newest request wins, stopping stops, errors are kept, nothing is left."""

import threading
import time

import pytest

from spherear.live.latest_wins import DEBOUNCE, MAX_WAIT, LatestWins
from tests.conftest import until


class Recorder:
    """Work of many small parts: writes down what was begun, shown and left."""

    def __init__(self, parts=200, rest=0.005):
        self.begun, self.shown, self.left = [], [], []
        self.parts, self.rest = parts, rest
        self.threads = set()

    def work(self, request, turn):
        self.begun.append(request)
        self.threads.add(threading.current_thread())
        if request == "bad":
            raise ValueError("this request is bad")
        for part in range(self.parts):
            if turn.over:
                self.left.append((request, part, turn.stale))
                if not turn.stale:
                    self.shown.append((request, part))
                return
            time.sleep(self.rest)
        self.shown.append((request, self.parts))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def runner(recorder):
    failures = []
    made = LatestWins(recorder.work, failures.append)
    made.failures = failures
    yield made
    made.close()
    assert not any(thread.name == "spherear-live" for thread in threading.enumerate())


def test_a_burst_begins_the_last_request_alone(recorder):
    recorder.parts = 20
    runner = LatestWins(recorder.work, lambda error: None, short=1.0, debounce=30.0)
    for value in range(30):
        runner.submit(value)
        time.sleep(0.002)
    assert runner.wait(10)
    assert recorder.begun == [29]
    assert recorder.shown == [(29, 20)]
    runner.close()


def test_a_burst_with_pauses_begins_three_at_most(recorder):
    recorder.parts = 1
    runner = LatestWins(recorder.work, lambda error: None, short=0.01, debounce=2.0)
    for value in range(2):
        runner.submit(value)
        until(lambda value=value: value in recorder.begun)
    for value in range(2, 10):
        runner.submit(value)
        time.sleep(0.1)  # far above `short`, far below `debounce`
    assert recorder.begun == [0, 1]
    assert runner.wait(10)
    assert recorder.begun == [0, 1, 9]
    runner.submit("a new burst")
    assert runner.wait(1.0)  # not only after `debounce`
    runner.close()


def test_a_burst_that_comes_slowly_begins_three_at_most(recorder):
    """As from a page on a busy machine: slower than `debounce`, but never waiting until a picture is done."""
    recorder.parts, recorder.rest = 2000, 0.005
    runner = LatestWins(recorder.work, lambda error: None)
    for value in range(2):
        runner.submit(value)
        until(lambda value=value: value in recorder.begun)
        time.sleep(DEBOUNCE)
    for value in range(2, 8):
        runner.submit(value)
        time.sleep(1.5 * DEBOUNCE)
    assert recorder.begun == [0, 1]
    time.sleep(MAX_WAIT)
    assert recorder.begun == [0, 1, 7]
    runner.close()


def test_what_comes_long_after_is_no_burst_though_work_goes_on(recorder):
    recorder.parts, recorder.rest = 2000, 0.005
    runner = LatestWins(recorder.work, lambda error: None)
    for value in range(2):
        runner.submit(value)
        time.sleep(1.2 * MAX_WAIT)
    runner.submit(2)
    time.sleep(0.6 * MAX_WAIT)
    assert recorder.begun == [0, 1, 2]
    runner.close()


def test_a_request_waits_for_a_pause(recorder):
    runner = LatestWins(recorder.work, lambda error: None, short=30.0)
    runner.submit("first")
    assert not runner.wait(0.3)
    runner.submit("second")
    assert not runner.wait(0.1)
    runner.close()
    assert recorder.begun == recorder.shown == []


def test_what_is_replaced_is_told_that_it_is_stale(runner, recorder):
    runner.submit("old")
    until(lambda: recorder.begun)
    runner.submit("new")
    assert runner.wait(10)
    assert [(request, stale) for request, _, stale in recorder.left] == [("old", True)]
    assert [request for request, _ in recorder.shown] == ["new"]


def test_stop_shows_what_there_is(runner, recorder):
    runner.submit("long")
    until(lambda: recorder.begun)
    runner.stop()
    assert runner.wait(10)
    (shown,) = recorder.shown
    assert shown[0] == "long"
    assert shown[1] < recorder.parts


def test_stop_gives_a_request_that_waits_a_turn_that_is_over(recorder):
    """So that no picture of an older request stays under the newer controls."""
    runner = LatestWins(recorder.work, lambda error: None, short=30.0)
    runner.submit("first")
    runner.submit("second")
    runner.stop()
    assert runner.wait(10)
    assert recorder.shown == [("second", 0)]
    runner.close()


def test_an_error_is_shown_and_kept_and_ends_nothing(runner, recorder):
    recorder.parts = 2
    runner.submit("bad")
    assert runner.wait(10)
    runner.submit("good")
    assert runner.wait(10)
    assert [str(error) for error in runner.failures] == ["this request is bad"]
    assert runner.errors == runner.failures
    assert recorder.shown == [("good", 2)]


def test_an_error_while_an_error_is_shown_is_kept_too(recorder):
    def broken(error):
        raise RuntimeError("no place to show it")

    runner = LatestWins(recorder.work, broken)
    runner.submit("bad")
    assert runner.wait(10)
    assert [type(error) for error in runner.errors] == [ValueError, RuntimeError]
    recorder.parts = 1
    runner.submit("good")
    assert runner.wait(10)
    assert recorder.shown == [("good", 1)]
    runner.close()


def test_an_error_of_what_was_replaced_is_kept_but_not_shown(recorder):
    recorder.parts = 1
    begun, shown = threading.Event(), []

    def slow(request, turn):
        begun.set()
        until(lambda: turn.stale)
        raise ValueError("nobody asks for this any more")

    works = {"old": slow, "new": recorder.work}
    replaced = LatestWins(lambda request, turn: works[request](request, turn), shown.append)
    replaced.submit("old")
    assert begun.wait(10)
    replaced.submit("new")
    assert replaced.wait(10)
    assert recorder.shown == [("new", 1)]
    assert shown == []
    assert [str(error) for error in replaced.errors] == ["nobody asks for this any more"]
    replaced.close()


def test_close_leaves_nothing_and_ignores_what_comes_later(recorder):
    runner = LatestWins(recorder.work, lambda error: None)
    runner.submit("long")
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

    def deaf(request, turn):
        begun.set()
        release.wait(30)

    runner = LatestWins(deaf, lambda error: None)
    runner.submit("anything")
    assert begun.wait(10)
    with pytest.raises(TimeoutError, match="expected it to look at its turn"):
        runner.close(timeout=0.2)
    release.set()


def test_many_threads_may_ask(runner, recorder):
    recorder.parts = 1

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
    assert runner.turns <= 3
    assert len(recorder.threads) == 1
    assert runner.errors == []
