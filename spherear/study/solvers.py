"""Fewer evaluations at equal quality: solvers, steps and spacings, compared with 100 Euler-Maruyama steps.

    python -m spherear.study.solvers runs/sweep.jsonl digits-power_spherical digits-gaussian

draws the same labels and seeds with every solver setting, in blocks of images, and writes one line of JSON per
measurement. An existing file is resumed.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from tqdm import tqdm

from spherear.console import markdown_table
from spherear.models.config import Config, require
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN
from spherear.sampling.settings import NAMED_SETTINGS, SamplingSettings
from spherear.study.records import provenance, read_records, write_records
from spherear.study.reference import Reference, judge_of

SWEEP = Path(__file__).parent / "results" / "sweep.jsonl"
METRICS = ("frechet", "accuracy", "recall")
LOWER_IS_BETTER = {"frechet"}
BLOCKS, IMAGES = 4, 500
SCALES = (2.0, 4.5)
REFERENCE = SamplingSettings()


@dataclass(frozen=True)
class SweepRecord(Config):
    """One metric of one block of images. block: its index; the seeds begin at block x images."""

    model: str
    guidance_scale: float
    solver: str
    steps: int
    spacing: str
    evaluations: int
    block: int
    metric: str
    value: float
    images: int
    command: str
    commit: str
    hardware: str


def compared_settings() -> list[SamplingSettings]:
    """All compared solver settings, the reference first."""
    rows = [replace(REFERENCE, steps=steps) for steps in (100, 50, 20, 10, 5)]
    for solver, counts in (("euler", (20, 10, 6)), ("heun", (10, 5, 3)), ("adams_bashforth", (20, 10, 6))):
        for steps in counts:
            for spacing in ("even", "early", "late", "ends"):
                rows.append(replace(REFERENCE, solver=solver, steps=steps, spacing=spacing))
    return rows


def sweep(
    name: str,
    pipeline: Pipeline,
    real: Reference,
    done: set[tuple],
    command: str,
    images: int = IMAGES,
    compared: Sequence[SamplingSettings] | None = None,
    blocks: int | None = None,
) -> Iterator[list[SweepRecord]]:
    """Yields the records of each block that is not in `done`; of `compared_settings` and BLOCKS blocks by default."""
    labels = torch.arange(images) % pipeline.ar.config.num_classes
    origin = provenance()
    for settings in compared_settings() if compared is None else compared:
        for scale in SCALES:
            for block in range(BLOCKS if blocks is None else blocks):
                key = (name, scale, settings.solver, settings.steps, settings.spacing, settings.evaluations, block)
                if key in done:
                    continue
                drawn = pipeline.sample(labels, replace(settings, guidance_scale=scale), seeds=block * images)
                scores = asdict(real.judge(drawn.cpu(), labels))
                source = origin["commit"], origin["hardware"]
                yield [SweepRecord(*key, m, scores[m], images, command, *source) for m in METRICS]


def place_of(record: SweepRecord) -> tuple:
    """The key of a block of images: model, scale, solver, steps, spacing, evaluations, block."""
    r = record
    return (r.model, r.guidance_scale, r.solver, r.steps, r.spacing, r.evaluations, r.block)


@dataclass(frozen=True)
class Row:
    """One solver setting on one model at one scale: mean and standard deviation over blocks, by metric.

    matches: whether all metrics are as good as those of the reference (see `matching`).
    """

    model: str
    guidance_scale: float
    settings: SamplingSettings
    mean: dict[str, float]
    deviation: dict[str, float]
    matches: bool


def rows(records: Sequence[SweepRecord]) -> list[Row]:
    """One row per model, scale and setting, fewest evaluations first. Records without the reference: ValueError."""
    grouped: dict[tuple, dict[str, list[float]]] = {}
    for r in records:
        key = (r.model, r.guidance_scale, r.solver, r.steps, r.spacing)
        grouped.setdefault(key, {}).setdefault(r.metric, []).append(r.value)
    out = []
    for (model, scale, solver, steps, spacing), values in grouped.items():
        settings = replace(REFERENCE, guidance_scale=scale, solver=solver, steps=steps, spacing=spacing)
        reference = grouped.get((model, scale, REFERENCE.solver, REFERENCE.steps, REFERENCE.spacing))
        message = f"there is no reference for {model} at {scale:g}; expected 100 Euler-Maruyama steps"
        require(reference is not None, message)
        assert reference is not None
        mean, deviation = ({m: f(v) for m, v in values.items()} for f in (fmean, _deviation))
        matches = all(matching(m, values[m], reference[m]) for m in METRICS)
        out.append(Row(model, scale, settings, mean, deviation, matches))
    return sorted(out, key=lambda row: (row.model, row.guidance_scale, row.settings.evaluations))


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def matching(metric: str, values: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether the mean is at most two standard deviations of the reference worse than the mean of the reference."""
    difference = fmean(values) - fmean(reference)
    return (difference if metric in LOWER_IS_BETTER else -difference) <= 2 * _deviation(list(reference))


def matching_everywhere(table: Sequence[Row]) -> list[SamplingSettings]:
    """Settings that match for every model and scale, fewest evaluations first, with the default guidance scale."""
    by_setting: dict[SamplingSettings, list[bool]] = {}
    for row in table:
        by_setting.setdefault(replace(row.settings, guidance_scale=REFERENCE.guidance_scale), []).append(row.matches)
    points = len({(row.model, row.guidance_scale) for row in table})
    matching_settings = [
        setting for setting, verdicts in by_setting.items() if len(verdicts) == points and all(verdicts)
    ]
    return sorted(matching_settings, key=lambda setting: setting.evaluations)


def table(chosen: Sequence[Row], name: Callable[[SamplingSettings], str] = lambda s: "") -> str:
    """Rows as a Markdown table. name: text to append to the solver of a setting."""
    head = ("model", "guidance", "solver", "steps", "spacing", "evaluations", "Frechet", "recognised", "recall",
            "matches")  # fmt: skip
    lines = []
    for row in chosen:
        s = row.settings
        summaries = [f"{row.mean[m]:.3g} ± {row.deviation[m]:.2g}" for m in METRICS]
        cells = [row.model, f"{s.guidance_scale:g}", s.solver + name(s), str(s.steps), s.spacing, str(s.evaluations)]
        lines.append([*cells, *summaries, "yes" if row.matches else "no"])
    return markdown_table(head, lines) + "\n"


NOTE = """Made by `{command}`: {blocks} blocks of {images} images per row, the same labels and seeds in every row.

A setting *matches* where no metric's mean is worse than that of 100 Euler-Maruyama steps by more than two of
the reference's standard deviations over blocks. Evaluations are of the velocity, per token. Named settings are marked.

"""


def shipped_sweep() -> list[SweepRecord]:
    """The sweep records shipped with the library."""
    return read_records(SWEEP, SweepRecord)


def sweep_report(records: Sequence[SweepRecord]) -> str:
    """All rows as a Markdown table, preceded by a note on the method."""
    names = {replace(s, guidance_scale=REFERENCE.guidance_scale): name for name, s in NAMED_SETTINGS.items()}

    def name(settings: SamplingSettings) -> str:
        match = names.get(replace(settings, guidance_scale=REFERENCE.guidance_scale))
        return f" (**{match}**)" if match else ""

    first, blocks = records[0], len({r.block for r in records})
    return NOTE.format(command=first.command, images=first.images, blocks=blocks) + table(rows(records), name)


def main(out: str, *names: str) -> None:
    """Sweep the models, resume from the records in `out`, and print the table."""
    path = Path(out)
    records = read_records(path, SweepRecord) if path.exists() else []
    command = " ".join(["python -m spherear.study.solvers", out, *names])
    for name in names:
        pipeline = Pipeline.from_pretrained(name, **AS_WRITTEN.to_dict())
        size = pipeline.vae.config.image_size
        done = {place_of(r) for r in records}
        total = len(compared_settings()) * len(SCALES) * BLOCKS - len([p for p in done if p[0] == name and p[-1] >= 0])
        for block in tqdm(
            sweep(name, pipeline, Reference.load(judge_of(pipeline), size), done, command),
            name,
            total,
            unit="block",
        ):
            records += block
            write_records(path, records)
    print(table(rows(records)))
    print("matching everywhere:", *(f"{s.solver} x {s.steps}, {s.spacing}" for s in matching_everywhere(rows(records))))


if __name__ == "__main__":
    main(*sys.argv[1:])
