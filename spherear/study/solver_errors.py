"""Few evaluations: how far from the solution they end, and whether the images are as good as the published ones.

    python -m spherear.study.solver_errors error OUT MODEL ...
    python -m spherear.study.solver_errors quality OUT MODEL ...

Both write one line of JSON per measurement to OUT, an existing file is resumed, and print a table.

`error` draws the same labels and seeds with every setting of `compared_settings`, and measures the root mean square
difference from 200 steps of the midpoint rule, an eighth as long as the shortest compared. Nothing in it is random.
`quality` scores CANDIDATES against the published settings, and against NEARLY_SOLVED, on the same labels and seeds: on
the GPU where there is one, in minutes, and in hours on a CPU. A candidate passes where the 95 % interval of the
difference, over blocks of images, lies within a fixed margin. The margins were set before `adams_bashforth_3` was
measured, but after an older and smaller sweep was read: for the other solvers the choice is exploratory.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from spherear.console import markdown_table
from spherear.models.config import Config, one_of, require
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.placement import AS_WRITTEN, Placement
from spherear.sampling.settings import SamplingSettings
from spherear.study.records import RESULTS, provenance, read_measurements, write_records
from spherear.study.reference import Reference, judge_of
from spherear.study.statistics import Difference

SHIPPED = RESULTS / "solver_errors.jsonl"
METRICS = ("frechet", "accuracy", "recall")
LOWER_IS_BETTER = {"frechet"}
SCALES = (2.0, 4.5)
REFERENCE = SamplingSettings()
EVALUATIONS = (4, 6, 10, 25)
ERRORS = ("token_error", "image_error")
ERROR_IMAGES = 100
BLOCKS, IMAGES = 10, 1000  # of `quality`
MARGINS = {"frechet": 0.1, "accuracy": 0.02, "recall": 0.05}
"""How much worse a candidate may be: of the Frechet distance a share of the reference's, of the others as such."""


@dataclass(frozen=True)
class SolverRecord(Config):
    """One number of a setting on a model. block: of images, from 0; its seeds begin at block x images."""

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

    @property
    def place(self) -> "Place":
        """What tells it from other measurements of its kind."""
        return _place(self.model, self, self.guidance_scale, self.block)


Place = tuple[str, float, str, int, str, int, int]


def _place(model: str, s: SamplingSettings | SolverRecord, scale: float, block: int) -> Place:
    return (model, scale, s.solver, s.steps, s.spacing, s.evaluations, block)


SOLUTION = SamplingSettings(solver="midpoint", steps=200)


def settings_of(solver: str, steps: int, spacing: str = "even") -> SamplingSettings:
    """Settings that differ from the published ones in how a token is solved."""
    return replace(REFERENCE, solver=solver, steps=steps, spacing=spacing)


def compared_settings() -> list[SamplingSettings]:
    """What `error` compares: the same numbers of evaluations in every way (Heun's method takes two per step)."""
    rows = [
        settings_of(solver, count, spacing)
        for solver in ("adams_bashforth", "adams_bashforth_3")
        for spacing in ("even", "early", "annealed")
        for count in EVALUATIONS
    ]
    rows += [settings_of("euler", count) for count in EVALUATIONS]
    return rows + [settings_of("heun", count // 2) for count in EVALUATIONS]


CANDIDATES = (
    settings_of("euler_maruyama", 10),
    settings_of("euler_maruyama", 5),
    *(settings_of("adams_bashforth", steps, spacing) for steps in (10, 6) for spacing in ("even", "early")),
    *(settings_of("adams_bashforth_3", steps) for steps in (10, 6, 4)),
    *(settings_of("adams_bashforth_3", steps, "annealed") for steps in (10, 6)),
)
"""What `quality` compares."""
NEARLY_SOLVED = settings_of("adams_bashforth", 20)
"""Stands for the solution in `quality`, which 400 evaluations would make long."""


def tokens_of(pipeline: Pipeline, settings: SamplingSettings, images: int) -> Float[Tensor, "images tokens dim"]:
    """The tokens of images of all classes in turn, from seeds 0, 1, 2 ..."""
    labels = torch.arange(images) % pipeline.ar.config.num_classes
    return trace(pipeline.steps(labels, settings, seeds=0)).tokens


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of a - b over all numbers."""
    return float((a.double() - b.double()).square().mean().sqrt())


def errors(
    name: str, pipeline: Pipeline, done: set[Place], command: str, images: int = ERROR_IMAGES
) -> Iterator[list[SolverRecord]]:
    """Yields the two errors of each setting and guidance scale that is not in `done`."""
    origin = provenance()
    for scale in SCALES:
        exact: tuple[Tensor, Tensor] | None = None
        for settings in compared_settings():
            key = _place(name, settings, scale, 0)
            if key in done:
                continue
            if exact is None:
                tokens = tokens_of(pipeline, replace(SOLUTION, guidance_scale=scale), images)
                exact = tokens, pipeline.images(tokens)
            tokens = tokens_of(pipeline, replace(settings, guidance_scale=scale), images)
            found = distance(tokens, exact[0]), distance(pipeline.images(tokens), exact[1])
            source = origin["commit"], origin["hardware"]
            yield [SolverRecord(*key, *row, images, command, *source) for row in zip(ERRORS, found, strict=True)]


def qualities(
    name: str, pipeline: Pipeline, real: Reference, done: set[Place], command: str, compared: Sequence[SamplingSettings]
) -> Iterator[list[SolverRecord]]:
    """Yields the scores of each block of images that is not in `done`: BLOCKS blocks of IMAGES."""
    labels = torch.arange(IMAGES) % pipeline.ar.config.num_classes
    origin = provenance()
    source = origin["commit"], origin["hardware"]
    for settings in compared:
        for scale in SCALES:
            for block in range(BLOCKS):
                key = _place(name, settings, scale, block)
                if key in done:
                    continue
                drawn = pipeline.sample(labels, replace(settings, guidance_scale=scale), seeds=block * IMAGES)
                scores = asdict(real.judge(drawn.cpu(), labels))
                yield [SolverRecord(*key, m, scores[m], IMAGES, command, *source) for m in METRICS]


@dataclass(frozen=True)
class Verdict:
    """One candidate at one model and scale. difference: candidate - reference, by metric.

    passes: whether every interval lies within its margin.
    """

    model: str
    guidance_scale: float
    settings: SamplingSettings
    mean: dict[str, float]
    difference: dict[str, Difference]
    passes: bool


def within_margin(metric: str, difference: Difference, reference: float) -> bool:
    """Whether the whole 95 % interval of the difference is better than the worst that the metric's margin allows."""
    if metric in LOWER_IS_BETTER:
        return difference.high <= MARGINS[metric] * reference
    return difference.low >= -MARGINS[metric]


def verdicts(records: Sequence[SolverRecord], reference: SamplingSettings = REFERENCE) -> list[Verdict]:
    """Every candidate with quality records against the reference, fewest evaluations first. ValueError without it."""
    values: dict[tuple, dict[str, list[float]]] = {}
    for r in sorted(records, key=lambda r: r.block):
        if r.metric in METRICS:
            place = (r.model, r.guidance_scale, r.solver, r.steps, r.spacing)
            values.setdefault(place, {}).setdefault(r.metric, []).append(r.value)
    out = []
    for (model, scale, *solved), found in values.items():
        best = values.get((model, scale, reference.solver, reference.steps, reference.spacing))
        require(best is not None, f"there is no {reference.solver} x {reference.steps} for {model} at {scale:g}")
        assert best is not None
        settings = replace(settings_of(*solved), guidance_scale=scale)
        if replace(settings, guidance_scale=REFERENCE.guidance_scale) not in CANDIDATES:
            continue
        compared = {m: Difference.of(found[m], best[m]) for m in METRICS}
        passes = all(within_margin(m, c, fmean(best[m])) for m, c in compared.items())
        out.append(Verdict(model, scale, settings, {m: fmean(found[m]) for m in METRICS}, compared, passes))
    return sorted(out, key=lambda v: (v.model, v.guidance_scale, v.settings.evaluations, v.settings.solver))


def shipped_quality() -> list[SolverRecord]:
    """The quality records in `spherear/study/results`."""
    return [r for r in read_measurements(SHIPPED, SolverRecord) if r.metric in METRICS]


def shipped_errors() -> list[SolverRecord]:
    """The errors in `spherear/study/results`."""
    return [r for r in read_measurements(SHIPPED, SolverRecord) if r.metric in ERRORS]


def error_table(records: Sequence[SolverRecord]) -> str:
    """Errors of the tokens: one line per setting, one column per model and scale; the smallest mean error first."""
    points = sorted({(r.model, r.guidance_scale) for r in records})
    rows: dict[tuple, dict[tuple, dict[str, float]]] = {}
    for r in records:
        at = rows.setdefault((r.evaluations, r.solver, r.spacing), {}).setdefault((r.model, r.guidance_scale), {})
        at[r.metric] = r.value
    order = sorted(rows, key=lambda key: (key[0], fmean(at["token_error"] for at in rows[key].values())))
    lines = [
        [str(evaluations), solver, spacing]
        + [" / ".join(f"{rows[evaluations, solver, spacing].get(p, {}).get(m, float('nan')):.3g}" for m in ERRORS)
           for p in points]
        for evaluations, solver, spacing in order
    ]  # fmt: skip
    head = ("evaluations", "solver", "spacing", *(f"{model}, {scale:g}" for model, scale in points))
    return markdown_table(head, lines) + "\n"


def quality_table(found: Sequence[Verdict]) -> str:
    """One line per candidate, model and scale: means, and intervals of the difference from the reference."""
    lines = []
    for v in found:
        s = v.settings
        cells = [f"{v.mean[m]:.3g} ({c.low:+.2g} to {c.high:+.2g})" for m, c in v.difference.items()]
        lines.append([v.model, f"{s.guidance_scale:g}", s.solver, str(s.steps), s.spacing, str(s.evaluations), *cells,
                      "yes" if v.passes else "no"])  # fmt: skip
    head = ("model", "guidance", "solver", "steps", "spacing", "evaluations", "Frechet", "recognised", "recall",
            "within the margins")  # fmt: skip
    return markdown_table(head, lines) + "\n"


def passing_everywhere(found: Sequence[Verdict]) -> list[SamplingSettings]:
    """Settings that pass for every model and scale, fewest evaluations first."""
    points = len({(v.model, v.guidance_scale) for v in found})
    passed: dict[SamplingSettings, int] = {}
    for v in found:
        settings = replace(v.settings, guidance_scale=REFERENCE.guidance_scale)
        passed[settings] = passed.get(settings, 0) + v.passes
    return sorted((s for s, count in passed.items() if count == points), key=lambda s: s.evaluations)


def quality_report(records: Sequence[SolverRecord]) -> str:
    """Both tables as Markdown, with what passes everywhere."""
    text = ""
    for reference in (REFERENCE, NEARLY_SOLVED):
        found = verdicts(records, reference)
        passing = [f"{s.solver} x {s.steps}, {s.spacing}" for s in passing_everywhere(found)]
        text += (
            f"Against {reference.solver} x {reference.steps}, {reference.spacing}, on the same seeds: means, and 95 % "
            f"intervals of the difference.\n\n{quality_table(found)}\n"
            f"Within the margins everywhere: {'; '.join(passing) or 'none'}.\n\n"
        )
    return text


def shipped_report() -> str:
    """All that ships, as Markdown."""
    quality, distances = shipped_quality(), shipped_errors()
    blocks = f"{len({r.block for r in quality})} blocks of {quality[0].images:,} images"
    margins = ", ".join(f"{name} {margin:g}" for name, margin in MARGINS.items())
    return (
        f"Quality, in {blocks}, by `{quality[0].command}` and others. Margins (Frechet: of the reference): {margins}."
        f"\n\n{quality_report(quality)}Distance of tokens and of pixels from {SOLUTION.steps} steps of the midpoint "
        f"rule, by `{distances[0].command}` and others.\n\n{error_table(distances)}"
    )


def main(kind: str, out: str, *names: str) -> None:
    """Measure the models, resume from the records in `out`, and print the table."""
    one_of("kind", kind, ("error", "quality"))
    path = Path(out)
    records = read_measurements(path, SolverRecord) if path.exists() else []
    command = " ".join(["python -m spherear.study.solver_errors", kind, out, *names])
    place = AS_WRITTEN if kind == "error" else Placement(dtype="float32")
    for name in names:
        pipeline = Pipeline.from_pretrained(name, **place.to_dict())
        print(f"{name}: images are drawn with {pipeline.placement.sentence}")
        for block in tqdm(_blocks(kind, name, pipeline, records, command), name, unit="block"):
            records += block
            write_records(path, records)
    if kind == "error":
        print(error_table([r for r in records if r.metric in ERRORS]))
        return
    print(quality_report([r for r in records if r.metric in METRICS]))


def _blocks(
    kind: str, name: str, pipeline: Pipeline, records: Sequence[SolverRecord], command: str
) -> Iterator[list[SolverRecord]]:
    """What is not measured yet."""
    if kind == "error":
        return errors(name, pipeline, {r.place for r in records if r.metric in ERRORS}, command)
    device = pipeline.vae.quant_proj.weight.device
    real = Reference.load(judge_of(pipeline), pipeline.vae.config.image_size).on(device)
    done = {r.place for r in records if r.metric in METRICS}
    return qualities(name, pipeline, real, done, command, (REFERENCE, NEARLY_SOLVED, *CANDIDATES))


if __name__ == "__main__":
    main(*sys.argv[1:])
