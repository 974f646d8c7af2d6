"""Runs that are stopped at random moments and resumed, against a run that never was.

    python -m tests.training.kills --count 50 --seed 0

Each round draws a signal (SIGTERM, SIGINT, SIGKILL), a number of workers (0, 2, 8), of processes (1, 2) and a moment,
trains a small VAE to that moment, sends the signal (to the launcher where there is one), resumes, and compares every
loss and the final weights, bit for bit. The moment is a step and a share of the time to the next, so that all parts of
a step and of a checkpoint are met. Prints a table; the exit status is 0 if no round lost anything.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spherear.console import markdown_table
from spherear.training.checkpoint import read_state

STEPS = 30
SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")
COLUMNS = ("signal", "processes", "workers", "at step", "status", "lost steps", "losses", "weights")


@dataclass(frozen=True)
class Round:
    """One run: stopped by `signal` after `step`, `delay` steps' time later."""

    signal: str
    processes: int
    workers: int
    step: int
    delay: float


def command(folder: Path, processes: int, workers: int) -> list[str]:
    """The command line of a run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    options = [
        "--steps",
        str(STEPS),
        "--batch-size",
        "4",
        "--micro-batches",
        "2",
        "--log-every",
        "1",
        "--save-every",
        "5",
    ]
    module = [*launcher, "spherear.train"] if processes > 1 else ["-m", "spherear.train"]
    return [
        sys.executable,
        *module,
        "vae",
        "--out",
        str(folder),
        *options,
        "--workers",
        str(workers),
        "--device",
        "cpu",
    ]


def lines(folder: Path) -> list[dict]:
    """The complete lines of a run's metrics."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss."""
    return {line["step"]: line["loss"] for line in lines(folder)}


def start(folder: Path, processes: int, workers: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder.parent / f"{folder.name}.log").open("a") as out:
        return subprocess.Popen(  # a group of its own, which gets the signal of a terminal or a cluster
            command(folder, processes, workers), env=environment, stdout=out, stderr=out, start_new_session=True
        )


def finish(folder: Path, processes: int, workers: int) -> None:
    """Run to the end."""
    status = start(folder, processes, workers).wait()
    if status:
        raise RuntimeError(f"status {status}: {(folder.parent / f'{folder.name}.log').read_text()[-3000:]}")


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def stop(folder: Path, plan: Round) -> tuple[int, int]:
    """Run to the moment of `plan` and send its signal -> exit status, steps that were logged and not saved."""
    process = start(folder, plan.processes, plan.workers)
    while process.poll() is None and (not (found := lines(folder)) or found[-1]["step"] < plan.step):
        time.sleep(0.002)
    rate = lines(folder)[-1]["rate"] if lines(folder) else 1.0
    time.sleep(plan.delay / rate)
    if process.poll() is not None:
        return process.returncode, 0
    number = getattr(signal, plan.signal)
    if plan.signal == "SIGKILL":  # the machine dies: all processes at once
        children = children_of(process.pid)
        for pid in (process.pid, *children):
            kill(pid, number)
    else:
        os.killpg(process.pid, number)  # without a launcher the workers get it too, as from a terminal
    status = process.wait()
    state = read_state(folder)
    last = max(losses(folder), default=0)
    return status, last - (0 if state is None else state.step)


def children_of(pid: int) -> list[int]:
    """All processes below one."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(pid, number)


def play(plan: Round, whole: Path, folder: Path) -> list[str]:
    """One round -> its row of the table; the last two cells say "equal" if nothing changed."""
    status, lost = stop(folder, plan)
    finish(folder, plan.processes, plan.workers)
    same = losses(folder) == losses(whole), weights(folder) == weights(whole)
    row = [plan.signal, plan.processes, plan.workers, plan.step, status, lost]
    return [*map(str, row), *("equal" if equal else "DIFFERENT" for equal in same)]


def good(row: list[str]) -> bool:
    """Whether a round lost nothing: bit for bit, and no step for the two signals that can be caught."""
    return row[-2:] == ["equal", "equal"] and (row[0] == "SIGKILL" or int(row[5]) <= 0)


def rounds(count: int, seed: int) -> list[Round]:
    """Rounds over all combinations in turn, at random moments."""
    chance = random.Random(seed)
    kinds = [(s, p, w) for w in (0, 2, 8) for p in (1, 2) for s in SIGNALS]
    return [
        Round(*kinds[i % len(kinds)], step=chance.randint(1, STEPS - 4), delay=chance.random()) for i in range(count)
    ]


def run(count: int, seed: int, folder: Path) -> list[list[str]]:
    """Play so many rounds -> the rows of the table."""
    rows = []
    for number, plan in enumerate(rounds(count, seed)):
        whole = folder / f"whole-{plan.processes}"
        if not whole.exists():
            finish(whole, plan.processes, 0)
        rows.append(play(plan, whole, folder / f"stopped-{number}"))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(folder / f"stopped-{number}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args.count, args.seed, Path(folder))
    print(markdown_table(COLUMNS, rows, padded=True))
    print(f"{sum(map(good, rows))} of {len(rows)}")
    return 0 if all(map(good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
