"""Results of a study: measurements with their settings and provenance, in files of JSON lines."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spherear import __version__
from spherear.bench.machine import processor
from spherear.models.config import Config, ConfigT, one_of, require
from spherear.models.files import parse_object, write_text

RESULTS = Path(__file__).parent / "results"
RECORDED = (
    "full", "doubled", "select", "report", "length16", "length64", "length256", "dim2", "dim8", "others", "heads",
    "heads-colour", "heads-scratch",
)  # fmt: skip
"""The studies whose records ship."""
PACKAGE = Path(__file__).resolve().parents[1]


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
    """As `provenance` gives it."""
    hardware: str
    vae_steps: int = 0
    """Training steps of the VAE."""
    ar_steps: int = 0
    """Training steps of the AR model."""
    trained: str = ""
    """Commit when the training began; `commit` is that of the measurement."""
    solver: str = ""
    """Solver of the velocity, where it is not that of the study's grid."""
    steps: int = 0
    """Its steps; 0: those of the grid."""
    batch_size: int = 0
    """Images per training step; 0: those of the recipe."""
    head: str = "auto"
    """Of the AR model: a row of HEADS; auto: velocity, or categorical for a codebook."""


def read_records(path: str | Path) -> list[Record]:
    """Read records that `write_records` wrote. A missing file: FileNotFoundError; an invalid line: ValueError."""
    return read_measurements(path, Record)


def read_measurements(path: str | Path, kind: type[ConfigT]) -> list[ConfigT]:
    """The same of another class `kind`, which has the fields `metric` and `value` too."""
    parsed: list[ConfigT] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            parsed += _of_line(parse_object(line, "it"), kind)
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a record: {error}") from error
    return parsed


def _of_line(line: dict[str, Any], kind: type[ConfigT]) -> list[ConfigT]:
    values = line.pop("values")
    require(isinstance(values, dict), f"values are {values!r}; expected a JSON object")
    return [kind.from_dict({**line, "metric": metric, "value": value}) for metric, value in values.items()]


def results_file(study: str) -> Path:
    """The file of the records that ship of a study."""
    return RESULTS / f"{study}.jsonl"


def shipped_records(study: str = "full") -> list[Record]:
    """The records that ship of a study. One without: ValueError."""
    one_of("study", study, RECORDED)
    return read_records(results_file(study))


def write_records(path: str | Path, records: Iterable[Config]) -> None:
    """Write records of one class as JSON lines, atomically: one line per setting, its metrics under `values`.

    Two values of one metric for the same setting: ValueError.
    """
    lines = dict[str, dict[str, float]]()
    for record in records:
        fields = record.to_dict()
        metric, value = fields.pop("metric"), fields.pop("value")
        setting = json.dumps(fields)
        values = lines.setdefault(setting, {})
        require(metric not in values, f"{metric} of {setting} is given twice; expected once")
        values[metric] = value
    found = ({**json.loads(setting), "values": values} for setting, values in lines.items())
    write_text(Path(path), "".join(json.dumps(line) + "\n" for line in found))


def select(records: Sequence[Record], **fields: object) -> list[Record]:
    """The records whose fields have the given values."""
    return [r for r in records if all(getattr(r, name) == value for name, value in fields.items())]


def provenance() -> dict[str, str]:
    """The commit and the hardware.

    commit: of spherear's own repository, with `-dirty` if a tracked file was changed or the package holds a file that
    git does not know; the installed version where the package does not lie in a repository that tracks it.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()} ({os.cpu_count()} cores)"
    return {"commit": _commit(), "hardware": f"{device}, {torch.get_num_threads()} threads"}


def _commit() -> str:
    if not _git("ls-files", "--error-unmatch", "--", str(Path(__file__).resolve())):
        return f"version {__version__}"
    commit = _git("describe", "--always", "--dirty", "--exclude=*")
    unknown = _git("ls-files", "--others", "--exclude-standard", "--", str(PACKAGE))
    return f"{commit}-dirty" if unknown and not commit.endswith("-dirty") else commit


def _git(*arguments: str) -> str:
    """What git says about the repository around the package; empty if it is not installed or fails."""
    git = shutil.which("git")
    if git is None:
        return ""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in a hook
    command = (git, "-C", str(PACKAGE), *arguments)
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    return result.stdout.strip() if result.returncode == 0 else ""
