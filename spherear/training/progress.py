"""Progress of training loops: a bar in a terminal, lines in a log file; and stop signals that lose no work."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NoReturn

import torch
from tqdm import tqdm

from spherear import signals
from spherear.training.run import TrainState

if TYPE_CHECKING:  # a generic class for type checkers alone
    Bar = tqdm[NoReturn]
else:
    Bar = tqdm

REFRESH = 10  # steps between readings of the loss; each one waits for the device
INTERVAL = 30.0  # seconds between the lines of a log file


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
    """Run a training loop with loss, time waited for data, memory, rate and time left: a bar in a terminal, else a line
    at the first step, every half minute and at the end.

    Returns whether the loop finished. Stop signals end it between two steps, with a checkpoint: Ctrl-C, SIGTERM,
    SIGUSR1 and SIGHUP. Several processes stop after the same step, and the first shows the progress.
    observers: called with every state.
    """
    step = total  # for a run with no steps left
    silent = os.environ.get("RANK", "0") != "0"
    terminal = sys.stderr.isatty()
    with (
        signals.handled(),
        closing(states),
        tqdm(total=total, desc=title, unit="step", disable=silent or not terminal) as bar,
    ):
        lines = _Lines(title, silent or terminal)
        for state in states:
            step = state.step
            if bar.n == 0:
                bar.initial = bar.n = step - 1
            if not bar.disable and (step % REFRESH == 0 or step == total):
                bar.set_postfix(_shown(state), refresh=False)
            bar.update(step - bar.n)
            lines.show(state)
            for observe in observers:
                observe(state)
        bar.refresh()
    return step >= total


@contextmanager
def counting(title: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
    """Progress of what comes before or after a loop, while stop signals are handled: a bar in a terminal, else lines.

    done: the count at the start.
    """
    shown = signals.in_command() and os.environ.get("RANK", "0") == "0"
    line = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
    style = {} if sys.stderr.isatty() else {"mininterval": INTERVAL, "bar_format": line + "\n"}
    with tqdm(total=total, initial=done, desc=title, unit=unit, disable=not shown, **style) as bar:  # type: ignore[call-overload]
        yield bar


def _shown(state: TrainState) -> dict[str, str]:
    metrics = {name: f"{value:.3g}" for name, value in state.metrics().items()}
    return metrics | {"waiting": f"{state.waiting:.0%}", "GiB": f"{memory_gib():.2f}"}


class _Lines:
    """Progress as lines on stderr."""

    def __init__(self, title: str, silent: bool) -> None:
        self.title, self.silent, self.next = title, silent, 0.0

    def show(self, state: TrainState) -> None:
        """A line, if one is due."""
        if self.silent or (time.monotonic() < self.next and state.step < state.total):
            return
        self.next = time.monotonic() + INTERVAL
        shown = ", ".join(f"{name}={value}" for name, value in _shown(state).items())
        left = tqdm.format_interval(state.seconds_left)
        print(
            f"{self.title}: step {state.step} of {state.total}, {shown}, {state.rate:.3g} step/s, "
            f"{state.images_per_second:.4g} images/s, {left} left",
            file=sys.stderr,
            flush=True,
        )
