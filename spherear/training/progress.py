"""Watching a training loop from a terminal: a progress bar, and Ctrl-C that loses nothing.

Knows: streams of `TrainState`, terminals and signals.  Does not know: what is trained.
"""

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import FrameType

from tqdm import tqdm

from spherear.training.run import TrainState

INTERRUPTED = 130  # the exit status of a command that Ctrl-C ended
REFRESH = 10  # steps between readings of the loss, each of which waits for the device


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields `asked()`: whether Ctrl-C was pressed. The second press interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def watch(states: Generator[TrainState, None, None], title: str, total: int) -> bool:
    """Run a training loop to its end under a bar of loss, rate and time left.

    Returns whether it got there; False after Ctrl-C, which stops between two steps, so that the loop
    can write a checkpoint.
    """
    step = total  # of a run that has nothing left to do
    with interruptible() as asked, closing(states), tqdm(total=total, desc=title, unit="step") as bar:
        for state in states:
            step = state.step
            if step % REFRESH == 0 or step == total:
                metrics = {name: f"{value:.3g}" for name, value in state.metrics().items()}
                bar.set_postfix(metrics, refresh=False)
            if bar.n == 0:
                bar.initial = step - 1
                bar.n = step - 1
            bar.update(step - bar.n)
            if asked():
                break
        else:
            bar.n = total
            bar.refresh()
    return step >= total


def exit_status(work: Callable[[], int]) -> int:
    """Run a command; an error a person can mend is one line on stderr and status 2, not a traceback."""
    try:
        return work()
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
