"""Independent processes, a few at a time: one that crashes loses itself only, none outlives its parent.

Knows: commands, processes and their logs.  Does not know: what they do.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Job:
    """A command to run, and the file that takes what it prints."""

    name: str
    command: Sequence[str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """A job that ran. status: its exit status.  last_line: of its log.  seconds: it took."""

    job: Job
    status: int
    last_line: str
    seconds: float


def run_jobs(jobs: Sequence[Job], at_once: int) -> Generator[Ended, None, None]:
    """Run the jobs in order, `at_once` at a time, and yield each as it ends; leaving the loop ends the rest.

    A job must call `end_with_parent` first of all.
    """
    waiting, running = list(jobs)[::-1], dict[subprocess.Popen, tuple[Job, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop()
                running[_start(job)] = (job, time.monotonic())
            for process in [p for p in running if p.poll() is not None]:
                job, began = running.pop(process)
                _close(process)
                yield Ended(job, process.returncode, _last_line(job.log), time.monotonic() - began)
            time.sleep(PAUSE)
    finally:
        for process in running:
            process.kill()
            _close(process)


def _start(job: Job) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(job.command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)


def _close(process: subprocess.Popen) -> None:
    """Wait for a process that has ended or will at once, and close its pipe."""
    with process:
        pass


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def end_with_parent() -> None:
    """End this process when the one at the other end of its standard input does, however that ended."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(), whose lock an exiting process would wait for
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
