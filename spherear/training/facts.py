"""What a run is, beside its weights: `run.json`, and the lines of `metrics.jsonl`.

Knows: how two descriptions of a run are compared.  Does not know: what they describe.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spherear.models.files import read_json, write_json, write_text

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
SET_IN_STONE = ("kind", "model.", "vae")  # what no run can change on its way


def open_facts(folder: Path, facts: Mapping[str, Any], override: bool = False) -> None:
    """Write `run.json` into a folder without one; refuse a folder whose run is another one, naming what differs.

    override: another recipe or other data are taken on, and written down.
    """
    if (folder / RUN_FILE).exists():
        differ = check_facts(folder, facts, override)
        if not differ:
            return
    write_json(folder / RUN_FILE, facts)


def check_facts(folder: Path, facts: Mapping[str, Any], override: bool = False) -> list[str]:
    """The names of facts that differ; ValueError where they may not. A fact that is missing from an older
    file is taken to be as asked for."""
    found, asked = _flat(read_json(folder / RUN_FILE)), _flat(facts)
    missing = {name for name in asked if name.startswith("recipe.") and name not in found}
    differ = sorted(k for k in (found.keys() | asked.keys()) - missing if found.get(k) != asked.get(k))
    refused = [name for name in differ if not override or name.startswith(SET_IN_STONE)]
    if refused:
        listed = "; ".join(f"{k} is {found.get(k)!r}, asked for {asked.get(k)!r}" for k in refused[:4])
        raise ValueError(f"{folder} holds another run ({listed}); expected the same run, or an empty folder")
    return differ


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines a run wrote after the checkpoint it resumes from."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return math.inf  # half a line, from a run that was killed as it wrote
