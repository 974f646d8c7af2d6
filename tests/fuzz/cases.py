"""A case: its door, chosen from its number; whether it ended as it must, and what it left behind."""

import contextlib
import random
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz.commands import door_options
from tests.fuzz.data import (
    door_caches,
    door_folders,
    door_names,
    door_photographs,
    door_references,
    door_tars,
)
from tests.fuzz.models import (
    door_checkpoints,
    door_configs,
    door_grids,
    door_pictures,
    door_published,
    door_settings,
)
from tests.fuzz.runs import door_records, door_runs, door_samples, door_sites
from tests.fuzz.world import Accepted, World

CLEAR = (ValueError, TypeError, OSError)  # what a door may raise; FileNotFoundError is an OSError
UNCLEAR = ("not supported between", "object is not", "has no attribute", "unexpected keyword", "positional argument")
MOST_SECONDS = 30
SAYS = 8  # letters of the shortest message that can be clear

DOORS: dict[str, tuple[int, Callable[[random.Random, World, Path], Callable[[], object]]]] = {
    "options": (10, door_options),
    "configs": (25, door_configs),
    "settings": (4, door_settings),
    "checkpoints": (10, door_checkpoints),
    "published": (6, door_published),
    "pictures": (6, door_pictures),
    "names": (5, door_names),
    "photographs": (6, door_photographs),
    "folders": (6, door_folders),
    "tars": (5, door_tars),
    "caches": (3, door_caches),
    "references": (4, door_references),
    "runs": (2, door_runs),
    "samples": (2, door_samples),
    "records": (3, door_records),
    "grids": (2, door_grids),
    "sites": (1, door_sites),
}
"""Name -> (share of the cases in percent, door)."""
GOES_ON = ("run/", "set/", "cache/")
"""Folders that go on if the damage allows it. If it is refused, only their lock may change."""
INDEX = ("x.tar.index.safetensors", "x.tar.index.safetensors.lock")
"""A tar's index, which the first reading makes."""


class TooLong(BaseException):
    """A case did not end: something long had begun."""


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder: its size, and when it was written."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def run_case(number: int, seed: int, world: World) -> tuple[str, str]:
    """Case `number` of a seed -> (its door, what is wrong; empty if nothing is)."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choices(list(DOORS), [share for share, _ in DOORS.values()])[0]
    with tempfile.TemporaryDirectory(dir=world.root) as place:
        folder = Path(place)
        work = DOORS[name][1](rng, world, folder)
        before = listing(folder)
        with contextlib.chdir(folder):
            wrong, ended = judge(work)
        after = listing(folder)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    left = [k for k in changed if not may_change(k, ended)] + [k for k in after if k.endswith(".tmp")]
    return name, wrong or (f"left {left[:4]} behind" if left else "")


def may_change(name: str, ended: bool) -> bool:
    """Whether a case may write a file. ended: it came to a sound end."""
    return name in INDEX or (name.startswith(GOES_ON) and (ended or name.endswith("lock"))) or name == "cache.lock"


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """TooLong in a block that takes more than MOST_SECONDS, where the system has timers."""

    def stop(*_: object) -> None:
        raise TooLong

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(work: Callable[[], object]) -> tuple[str, bool]:
    """Run a case -> (what is wrong with how it ended; empty if nothing is, whether it came to a sound end)."""
    try:
        with warnings.catch_warnings(), limited():
            warnings.simplefilter("ignore")
            work()
    except Accepted as error:
        return f"accepted: {error}", False
    except CLEAR as error:
        text = str(error)
        unclear = len(text) < SAYS or any(part in text for part in UNCLEAR)
        return (f"unclear {type(error).__name__}: {text[:200]}" if unclear else ""), False
    except TooLong:
        return f"not ended after {MOST_SECONDS} s", False
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}", False
    return "", True
