"""Stop signals: they interrupt where nothing is to be saved, and are recorded where something is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from spherear import signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")


@pytest.fixture
def restored() -> Iterator[None]:
    """Signal handlers are afterwards what they were, such as that of `nohup`, which ignores SIGHUP."""
    before = {number: signal.getsignal(number) for number in signals.STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_interrupts_or_is_recorded_and_repeats_are_ignored(name, restored):
    number, before = getattr(signal, name), signal.default_int_handler
    signal.signal(number, before)
    assert not signals.stop_requested()
    with signals.handled():
        with signals.deferred():
            for _ in range(3):
                os.kill(os.getpid(), number)
            assert signals.stop_requested()
        os.kill(os.getpid(), number)  # a repeat, after the work was saved
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    assert not signals.stop_requested()


def test_a_new_process_never_meets_a_blocked_signal():
    """It is sent before the first line runs, and again after; the process ends as its parent wants."""
    with signals.blocked():
        child = subprocess.Popen([sys.executable, "-c", "print('started', flush=True); input(); print('went on')"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "started\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate("\n")
    assert (out, child.returncode) == ("went on\n", 0)


def test_a_signal_that_was_ignored_stays_ignored(restored):
    """As under `nohup`: closing the terminal does not stop the run."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.handled(), signals.deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.stop_requested()
