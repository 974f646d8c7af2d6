"""The description of a run: `run.json`, its comparison with another run, and the lines of `metrics.jsonl`."""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from spherear.models.config import require
from spherear.models.files import read_json, write_json, write_text
from spherear.models.pretrained import CONFIG_FILE
from spherear.training.checkpoint import steps_of
from spherear.training.recipes import Recipe
from spherear.world import World

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SKIPPED = "skipped-{}.jsonl"  # images that a process could not read, and why
LOCK_FILE = ".lock"
VISIBLE = 30.0  # seconds for a new file to appear on a network file system
LONGEST = 120  # characters of a value in a message
IMMUTABLE = ("kind", "model.", "vae", "teacher")  # prefixes of facts that not even `override` can change
ADDED = {"model.channels": 3, "model.head": "auto"}  # facts that older files lack, and what held then
FREE = {"dataset.revision", "model.modules"} | {  # facts that are recorded, and may change when a run is resumed
    f"recipe.{name}" for name in ("log_every", "save_every", "micro_batches", "skip_limit", "max_broken")
}


def locked_run(folder: Path) -> BaseFileLock:
    """A lock on a run, until it is released or its process ends. A run that another process trains: ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is being trained by another process; expected one process per run") from error
    return lock


def open_facts(folder: Path, facts: Mapping[str, Any], override: bool = False) -> None:
    """Write `run.json` to a folder without one. A folder with another run: ValueError that lists the differences.

    override: accept another recipe or other data, and record them.
    """
    if (folder / RUN_FILE).exists():
        differ = check_facts(folder, facts, override)
        if not differ:
            return
    write_json(folder / RUN_FILE, facts)


def is_result(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder has the finished model of a run with this recipe, as far as the recipe shapes a model."""
    if not ((folder / CONFIG_FILE).exists() and (folder / RUN_FILE).exists()):
        return False
    stored, requested = _flat(read_json(folder / RUN_FILE)), _flat({"recipe": recipe.to_dict()})
    return all(stored.get(name, value) == value for name, value in requested.items() if name not in FREE)


def holds_model_alone(folder: Path) -> bool:
    """Whether a folder has a trained model, but no checkpoint of its run."""
    return (folder / CONFIG_FILE).exists() and not steps_of(folder)


def check_model_alone(folder: Path, facts: Mapping[str, Any]) -> None:
    """ValueError unless the model in a folder without checkpoints is the result of this very run."""
    what = f"{folder} holds a trained model"
    require((folder / RUN_FILE).exists(), f"{what} without its {RUN_FILE}; expected an empty folder")
    try:
        check_facts(folder, facts)
    except ValueError as error:
        error.add_note(f"{what} and no checkpoint, from which other steps could go on")
        raise


def is_visible(folder: Path) -> bool:
    """Whether this process sees the run's description; a network file system may show it late."""
    end = time.monotonic() + VISIBLE
    while not (folder / RUN_FILE).exists() and time.monotonic() < end:
        time.sleep(0.1)
    return (folder / RUN_FILE).exists()


def check_agreement(world: World, folder: Path, facts: Mapping[str, Any], step: int, checkpoint: str) -> None:
    """ValueError unless all processes see the same folder with the same checkpoint, for the same run."""
    stored = read_json(folder / RUN_FILE) if (folder / RUN_FILE).exists() else {}
    seen = {"step": step, "checkpoint": checkpoint, RUN_FILE: _digest(stored), "command": _digest(facts)}
    found = world.gather(seen)
    for name in seen:
        values = [str(values[name]) for values in found]
        require(
            len(set(values)) == 1,
            f"the processes disagree about {folder} ({name} by process: {', '.join(values)}); expected one folder that "
            "all of them share, and the same data and options for each",
        )


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def check_facts(folder: Path, facts: Mapping[str, Any], override: bool = False) -> list[str]:
    """Names of the facts that differ; ValueError if they must not. Recipe facts missing from an older file
    count as equal; so do those of ADDED."""
    stored, requested = _flat(read_json(folder / RUN_FILE)), _flat(facts)
    missing = {name for name in requested if name.startswith("recipe.") and name not in stored}
    missing |= {name for name, value in ADDED.items() if name not in stored and requested.get(name) == value}
    differ = sorted(k for k in (stored.keys() | requested.keys()) - missing if stored.get(k) != requested.get(k))
    refused = [name for name in differ if name not in FREE and (not override or name.startswith(IMMUTABLE))]
    listed = _listed(refused, stored, requested)
    require(not refused, f"{folder} holds another run ({listed}); expected the same run, or an empty folder")
    return differ


def differences(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """The facts that differ, the first four of them with both values; empty if none does."""
    old, new = _flat(stored), _flat(requested)
    differ = [k for k in sorted(old.keys() | new.keys()) if k not in old or k not in new or old[k] != new[k]]
    return _listed(differ, old, new)


def _listed(names: list[str], stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    def value(facts: Mapping[str, Any], name: str) -> str:
        return _short(facts[name]) if name in facts else "nothing"

    return "; ".join(f"{name}: expected {value(stored, name)}, got {value(requested, name)}" for name in names[:4])


def _short(value: object) -> str:
    """At most `LONGEST` characters of a value."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after the checkpoint that the run resumes from."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf  # an incomplete line, from a run killed while writing


def skipped_images(folder: Path) -> dict[str, str]:
    """Name -> reason, of the images that any process of a run could not read."""
    found = {}
    for path in sorted(folder.glob(SKIPPED.format("*"))):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # an incomplete line, from a run killed while writing
                row = json.loads(line)
                found[str(row["image"])] = str(row["reason"])
    return found
