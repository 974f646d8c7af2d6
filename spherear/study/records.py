"""Results of a study: one line of JSON per measurement, with its settings and provenance."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spherear.bench.machine import processor
from spherear.models.config import Config, ConfigT
from spherear.models.files import write_text

RESULTS = Path(__file__).parent / "results" / "full.jsonl"


@dataclass(frozen=True)
class Record(Config):
    """One measured number, with its settings and provenance."""

    variant: str
    """Family and strength, named as in the paper's figure 4: S-04 is KL weight 0.004, F-02 is noise scale 0.2."""
    family: str
    """Name of the bottleneck."""
    kl_weight: float
    noise_scale: float
    """For fixed_variance; 0 for other families."""
    seed: int
    """Seed of training; all cells use the same sampling seeds."""
    guidance_scale: float
    schedule: str
    project_ar: bool
    """Whether tokens are projected before they are fed back."""
    project_decoder: bool
    """Whether tokens are projected before they are decoded."""
    metric: str
    value: float
    images: int
    """Number of measured images."""
    data: str
    command: str
    commit: str
    hardware: str
    vae_steps: int = 0
    """Training steps of the VAE."""
    ar_steps: int = 0
    """Training steps of the AR model."""
    trained: str = ""
    """Commit when the training began; `commit` is that of the measurement."""


def read_records(path: str | Path) -> list[Record]:
    """Read a JSON-lines file of records. A missing file: FileNotFoundError; an invalid line: ValueError."""
    return read_lines(path, Record)


def read_lines(path: str | Path, kind: type[ConfigT]) -> list[ConfigT]:
    """Read a JSON-lines file of configs of class `kind`. Errors: as `read_records`."""
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(kind.from_dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is not a record: {error}") from error
    return records


def shipped_records() -> list[Record]:
    """The records of the `full` study, shipped with the library."""
    return read_records(RESULTS)


def write_records(path: str | Path, records: Iterable[Config]) -> None:
    """Write records as JSON lines, atomically."""
    write_text(Path(path), "".join(json.dumps(record.to_dict()) + "\n" for record in records))


def select(records: Sequence[Record], **fields: object) -> list[Record]:
    """The records whose fields have the given values."""
    return [r for r in records if all(getattr(r, name) == value for name, value in fields.items())]


def provenance() -> dict[str, str]:
    """The commit (`unknown` without git) and the hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()} ({os.cpu_count()} cores)"
    return {"commit": _commit(), "hardware": f"{device}, {torch.get_num_threads()} threads"}


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = (git, "rev-parse", "--short", "HEAD")
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
