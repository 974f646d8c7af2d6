"""Watching a training loop from a terminal: a progress bar, and signals that lose nothing.

Knows: streams of `TrainState`, terminals and signals.  Does not know: what is trained.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType

import torch
from tqdm import tqdm

from spherear.training.run import TrainState

REFRESH = 10  # steps between readings of the loss, each of which waits for the device


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yields `asked()`: the signal that asked to stop (SIGINT, which is Ctrl-C, or SIGTERM), or 0. The second
    interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    pressed: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed[0] if pressed else 0
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def memory_gib() -> float:
    """The most memory this process has held, in GiB: on its GPU where it uses one, else in all."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # not on this system
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def watch(
    states: Generator[TrainState, None, None],
    title: str,
    total: int,
    observers: Sequence[Callable[[TrainState], None]] = (),
) -> bool:
    """Run a training loop to its end under a bar of loss, time waited for data, memory, rate and time left.

    Returns whether it got there; False after Ctrl-C or SIGTERM, which stop between two steps, so that the
    loop can write a checkpoint. Several processes stop after the same step, and the first has the bar.
    observers: see every state.
    """
    step = total  # of a run that has nothing left to do
    silent = os.environ.get("RANK", "0") != "0"
    with interruptible() as asked, closing(states), tqdm(total=total, desc=title, unit="step", disable=silent) as bar:
        for state in states:
            step = state.step
            if step % REFRESH == 0 or step == total:
                metrics = {name: f"{value:.3g}" for name, value in state.metrics().items()}
                metrics |= {"waiting": f"{state.waiting:.0%}", "GiB": f"{memory_gib():.2f}"}
                bar.set_postfix(metrics, refresh=False)
            if bar.n == 0:
                bar.initial = step - 1
                bar.n = step - 1
            bar.update(step - bar.n)
            for observe in observers:
                observe(state)
            if (state.team.size == 1 or step % REFRESH == 0) and state.team.any(bool(asked())):
                break
        else:
            bar.n = total
            bar.refresh()
    return step >= total
