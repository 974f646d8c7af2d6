"""A progress bar for training loops, and signal handling that stops a run without losing work."""

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

REFRESH = 10  # steps between readings of the loss; each one waits for the device


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the stop signal received (SIGINT, which is Ctrl-C, or SIGTERM), or 0.
    A second signal raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, original in previous.items():
            signal.signal(number, original)


def memory_gib() -> float:
    """Peak memory of this process in GiB: on its GPU if it uses one, else in RAM. NaN if unknown."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # not available on this system
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def watch(
    states: Generator[TrainState, None, None],
    title: str,
    total: int,
    observers: Sequence[Callable[[TrainState], None]] = (),
) -> bool:
    """Run a training loop under a progress bar with loss, time waited for data, memory, rate and time left.

    Returns whether the loop finished. Ctrl-C and SIGTERM stop it between two steps, so that it can write a
    checkpoint. Several processes stop after the same step, and the first shows the bar.
    observers: called with every state.
    """
    step = total  # for a run with no steps left
    silent = os.environ.get("RANK", "0") != "0"
    with (
        interruptible() as stop_signal,
        closing(states),
        tqdm(total=total, desc=title, unit="step", disable=silent) as bar,
    ):
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
            if (state.world.size == 1 or step % REFRESH == 0) and state.world.any(bool(stop_signal())):
                break
        else:
            bar.n = total
            bar.refresh()
    return step >= total
