"""The command line: `spherear demo | lab | page | train | export | sample | evaluate | study | bench | notebooks
| doctor`.

What a command needs is imported inside it, so that every help text comes without loading torch.
"""

import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from spherear import __version__
from spherear.bench import MEASUREMENTS
from spherear.console import INTERRUPTED, command_line, exit_status, require_installed, say
from spherear.evaluation.defaults import Drawing, default_count
from spherear.evaluation.judge_inputs import JUDGE_INPUTS
from spherear.live.commands import doctor, lab, notebooks, page
from spherear.models.config import require
from spherear.sampling.placement import Placement, Plan, choose
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.families import FAMILIES
from spherear.study.design import GRIDS
from spherear.training.recipes import PRECISIONS, RECIPES

Settings = Annotated[Drawing, tyro.conf.arg(name="")]
Place = Annotated[Placement, tyro.conf.arg(name="")]
AUTO = Placement()
PRESET = Drawing()


def demo(
    run: Path = Path("runs/demo"),
    seed: int = 0,
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0),
    bottleneck: Literal[*FAMILIES] = "power_spherical",  # type: ignore[valid-type]
    vae_steps: int | None = None,
    ar_steps: int | None = None,
    place: Place = AUTO,
) -> int:
    """Watch SphereAR learn handwritten digits: train, sample at several guidance scales, judge, save.

    Ctrl-C leaves a run that resumes: the same command goes on where it stopped.

    Args:
        run: Folder of the run; holds models, samples.png and results.json at the end.
        seed: Of weights, data order, noise and samples.
        guidance: Guidance scales to sample at, ten digits per class each.
        bottleneck: How tokens are constrained.
        vae_steps: Training steps of the VAE; the preset's by default.
        ar_steps: Training steps of the AR model; the preset's by default.
        place: How digits are drawn; the device also trains, on CUDA where there is one or on the CPU.
    """
    require_installed("matplotlib")
    from spherear.demo import place_digits, sample_and_judge, save_results, train_digits
    from spherear.training.build import pick_device
    from spherear.training.progress import watch

    require(len(guidance) > 0, "guidance is empty; expected at least one scale")
    for scale in guidance:
        SamplingSettings(guidance_scale=scale)  # refused before anything is trained
    say(f"digits are drawn with {place_digits(bottleneck, place).sentence}")
    began, part = time.monotonic(), itertools.count(1)
    pipeline = train_digits(
        run,
        lambda states, title, total: watch(states, f"{next(part)}/3 {title}", total),
        seed,
        bottleneck,
        (vae_steps, ar_steps),
        pick_device(place.device),
    )
    if pipeline is None:
        print(f"stopped: {run} holds all it takes; the same command goes on")
        return INTERRUPTED
    drawing = sample_and_judge(pipeline.place(place), guidance, seed)
    sheets = list(tqdm(drawing, "3/3 100 digits per guidance scale", len(guidance), unit="sheet"))
    save_results(run, sheets, command_line())
    print(f"\n{'guidance':>8} {'recognised':>10} {'Frechet':>8} {'precision':>9} {'recall':>6} {'diversity':>9}")
    for sheet in sheets:
        j = sheet.judgement
        print(f"{sheet.scale:8g} {j.accuracy:10.0%} {j.frechet:8.1f} {j.precision:9.2f}", end="")
        print(f" {j.recall:6.2f} {j.diversity:9.2f}")
    print(
        "\nrecognised: as the requested digit, by a classifier that never saw these images. Frechet distance,\n"
        "precision and recall: to held-out digits in its features. diversity: distance within a class, real = 1.\n"
        f"\n{run / 'samples.png'}: the images    {run}: the models, for `spherear sample --run {run}`\n"
        f"{time.monotonic() - began:.0f} s"
    )
    return 0


def study(
    grid: tyro.conf.Positional[Literal[*GRIDS]] = "quick",  # type: ignore[valid-type]
    out: Path | None = None,
    jobs: int = 0,
    budget: float | None = None,
    compile: bool = False,
    place: Place = AUTO,
) -> int:
    """Train and compare the families of latents: every cell of a grid in its own process, measured and recorded.

    The same command goes on where it stopped: finished cells are kept, others resume from their checkpoints.

    Args:
        grid: quick (colour shapes, two families, two seeds, a quarter of an hour), full (digits, all families and
            strengths, three seeds, an hour or two), select (colour shapes, four families over their strengths, two
            seeds, hours) or laws (tokens of three numbers, for figures).
        out: The study's folder; runs/study/<grid> by default.
        jobs: Cells at once; 0: one per core, or one where there is a GPU.
        budget: Minutes to aim at: training and images are scaled down, equally in every cell. A study that has
            begun keeps the budget it began with.
        compile: Compile the AR models' training steps: faster where there is a C++ compiler, except for short runs.
        place: How the images of every cell are drawn; the device also trains, on CUDA where there is one or on the CPU.
    """
    require_installed("matplotlib")
    import torch

    from spherear.figures.study import write_report
    from spherear.models.sources import Outline
    from spherear.study.cell import GRID_FILE, sizes_of
    from spherear.study.design import Variant
    from spherear.study.records import read_records
    from spherear.study.runner import RESULTS_FILE, open_study, run_study, waiting_cells, within_budget

    require(jobs >= 0, f"jobs is {jobs}; expected 0 or more")
    folder, cores = out or Path("runs/study") / grid, os.cpu_count() or 1
    at_once = jobs or (1 if torch.cuda.is_available() else cores)
    threads = max(1, cores // at_once)
    plan = GRIDS[grid]
    sizes = sizes_of(plan, Variant.named(plan.variants[0]))
    drawn_with = choose(Outline(sizes.vae, sizes.ar).parameters()[1], place)  # refused before anything begins
    if budget is not None and not (folder / GRID_FILE).exists():
        plan = within_budget(plan, budget, at_once, threads, place)
    plan = open_study(plan, folder, command_line())
    say(f"images are drawn with {drawn_with.sentence}")
    waiting, failed = len(waiting_cells(plan, folder)), 0
    with tqdm(total=len(plan.cells), initial=len(plan.cells) - waiting, desc=f"study {grid}", unit="cell") as bar:
        for ended in run_study(plan, folder, at_once, threads, compile, place):
            bar.update()
            if ended.status:
                failed += 1
                bar.write(f"{ended.job.name} failed ({ended.last_line}); see {ended.job.log}", file=sys.stderr)
            else:
                bar.write(f"{ended.job.name}: {ended.seconds:.0f} s", file=sys.stderr)
    records = read_records(folder / RESULTS_FILE)
    for path in (folder / RESULTS_FILE, *(write_report(records, folder / "figures") if records else ())):
        print(path)
    return 1 if failed else 0


def sample(
    run: str = "runs/demo",
    vae: str = "",
    labels: tuple[str, ...] = (),
    count: int = 1,
    seed: int = 0,
    out: Path = Path("samples.png"),
    zoom: int = 4,
    settings: Settings = PRESET,
    place: Place = AUTO,
) -> int:
    """Draw images with a trained pipeline and save them as one PNG, one column per label.

    Args:
        run: Folder of a finished run (with vae/ and ar/ in it), a hub repository owner/name, a shipped name, or a
            published file.
        vae: The published file of the VAE, if it is not in that of the AR model.
        labels: Classes to draw, by name or number, one column each; the first ten if none are given.
        count: Images of each label.
        seed: Of the first image; each further image takes the next one.
        out: The PNG to write.
        zoom: Pixels of the PNG per pixel of an image.
        settings: How tokens are drawn.
        place: Where and how the model runs.
    """
    require(min(count, zoom) >= 1, f"count and zoom are {count} and {zoom}; expected at least 1")
    from spherear.models.sources import source_of
    from spherear.sampling.decode import trace
    from spherear.sampling.pipeline import Pipeline
    from spherear.sampling.pixels import save_png, tile

    plan = Plan.of(source_of(run, vae), place)
    say(plan.sentence)
    pipeline = Pipeline.from_plan(plan)
    config = pipeline.ar.config
    columns = [config.label_of(label) for label in labels] or list(range(min(10, config.num_classes)))
    steps = pipeline.steps(columns * count, settings.of(config), seed)
    tokens = trace(iter(tqdm(steps, "sampling", pipeline.vae.config.tokens, unit="token"))).tokens
    sheet = tile(pipeline.images(tokens), columns=len(columns))
    save_png(out, sheet, zoom)
    print(f"{out}: {', '.join(map(config.name_of, columns))}")
    return 0


def bench(
    kind: tyro.conf.Positional[Literal[*MEASUREMENTS]] = "decode",  # type: ignore[valid-type]
    presets: tuple[Literal[*RECIPES], ...] = (),  # type: ignore[valid-type]
    batches: tuple[int, ...] = (),
    dtypes: tuple[Literal[*PRECISIONS], ...] = (),  # type: ignore[valid-type]
    tokens: int = 0,
    steps: int = 0,
    repeats: int = 0,
    compiled: bool = False,
    threads: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> int:
    """Measure speed and memory, as ratios within one run: a table, and JSON with --out.

    decode: every engine against the plain reference and the machine's own ceilings, with random weights.
    latency: how long a person waits for digits, by named settings.  growth: time over tokens.  memory: over steps.
    train: a training step, encoding at every step and with cached posteriors.
    Empty or 0: what suits the measurement and the device.

    Args:
        kind: What to measure.
        presets: Sizes of the model.
        batches: Images at once; guidance doubles the rows.
        dtypes: Of the AR model's arithmetic.
        tokens: How many of an image's tokens are drawn.
        steps: Solver steps per token; of `train`, the steps timed.
        repeats: Runs behind each median, after one to warm up.
        compiled: Also with torch.compile.
        threads: Of torch on the CPU; 0: as it is.
        device: cpu, cuda, or auto: cuda where there is one.
        out: A JSON file to write.
    """
    import torch

    from spherear.bench import command
    from spherear.training.build import pick_device

    require(threads >= 0, f"threads is {threads}; expected 0 or more")
    if threads:
        torch.set_num_threads(threads)
    request = command.Request(presets, batches, dtypes, tokens, steps, repeats, compiled, pick_device(device))
    return command.bench(kind, request, out)


def evaluate(
    run: tyro.conf.Positional[str],
    vae: str = "",
    count: int | None = None,
    out: Path = Path("runs/evaluate"),
    data: Literal["auto", *JUDGE_INPUTS] = "auto",  # type: ignore[valid-type]
    reference: str | None = None,
    held_out: str = "",
    seed: int = 0,
    shard: int = 64,
    settings: Settings = PRESET,
    place: Place = AUTO,
) -> int:
    """Draw class-balanced images into one array on disk, and score them.

    The same command goes on where it stopped; under torchrun, processes share the work and give the same bytes.

    Args:
        run: Folder of a finished run (with vae/ and ar/ in it), a hub repository owner/name, a shipped name, or a
            published file.
        vae: The published file of the VAE, if it is not in that of the AR model; or the folder of the VAE's run.
        count: Images to draw: 50,000 for models of ImageNet's 1,000 classes, as published scores have it, else 2,000.
        out: Folder of samples.npz (arr_0, as the ADM evaluation suite reads it) and results.json.
        data: The data set whose held-out images and judge score offline; auto: by image size and class names.
        reference: What FID, IS, precision and recall compare with: a folder of pictures, or a data set that
            torch-fidelity knows (FID and IS by Inception, precision and recall by VGG16); or an .npz of the ADM
            evaluation suite, of images (arr_0), statistics (mu and sigma), or both (all by Inception).
        held_out: A data set with the model's classes that it was not trained on, such as folder:imagenet/val: the AR
            model's loss there, and PSNR, LPIPS and Frechet distance of the VAE's reconstructions.
        seed: Of the first image; image i takes seed + i.
        shard: Images drawn together.
        settings: How tokens are drawn.
        place: Where and how the model runs; a set that has begun goes on only with the same engine and dtype.
    """
    from spherear import signals
    from spherear.evaluation.samples import FACTS, draw_samples, finish_samples, images_drawn, read_samples
    from spherear.models.files import read_json, write_json
    from spherear.models.sources import source_of
    from spherear.sampling.pipeline import Pipeline
    from spherear.study.reference import Against, score_samples
    from spherear.training.progress import counting

    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    plan = Plan.of(source_of(run, vae), place)
    say(plan.sentence)
    ar = plan.outline.ar
    count, drawing = default_count(ar) if count is None else count, settings.of(ar)
    say(f"{count:,} images at guidance scale {drawing.guidance_scale:g}")
    pipeline = Pipeline.from_plan(plan)
    work = draw_samples(out, pipeline, count, drawing, seed, shard, rank, size)
    against = (
        Against.of(pipeline, data, reference, count, held_out) if rank == 0 else Against("")
    )  # the others wait for the first
    with signals.handled(), counting("drawing", count, "image", images_drawn(out)) as bar:

        def show() -> None:
            bar.update(images_drawn(out) - bar.n)  # of all processes

        for _ in work:
            show()
        if rank > 0:
            return 0
        images = read_samples(finish_samples(out, show))
    scores = score_samples(images, pipeline, against, seed)
    drawn_with = {"samples": read_json(out / FACTS), "classes": list(ar.classes)}
    found = {"scores": scores.values, "against": scores.against, "absent": scores.absent}
    write_json(out / "results.json", {"command": command_line(), **drawn_with, **found})
    print(*scores.rows(), sep="\n")
    print(out / "results.json")
    return 0


def train_models() -> int:
    """Train a VAE or an AR model: `spherear train vae --help`, `spherear train ar --help`."""
    return _train(["--help"])


def export(run: tyro.conf.Positional[Path], out: Path, step: int | None = None) -> int:
    """Make a model of a run that is not finished, to sample from and to evaluate.

    Args:
        run: Folder of a run, or one with vae/ and ar/ in it.
        out: Folder of the model; `spherear evaluate` takes it if it has vae/ and ar/ in it, as the run has.
        step: Which checkpoint (see --keep-every of `spherear train`); the newest if none is given.
    """
    from spherear.export import described
    from spherear.export import export as export_run

    print(described(run, out, export_run(run, out, step)))
    return 0


def _train(args: list[str]) -> int:
    """`spherear train ...`: the help without torch, a run with it."""
    if "--help" in args or "-h" in args:
        from spherear.training.jobs import parse_job

        return exit_status(lambda: bool(parse_job(args)))
    from spherear import train

    return train.main(args)


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "lab": lab,
    "page": page,
    "train": train_models,
    "export": export,
    "sample": sample,
    "evaluate": evaluate,
    "study": study,
    "bench": bench,
    "notebooks": notebooks,
    "doctor": doctor,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where frames and accents cannot be encoded
    word = args[0] if args else "--help"
    if word == "--version":
        print(f"spherear {__version__}")
        return 0
    if word == "train":
        return _train(args[1:])
    if word in COMMANDS:
        return exit_status(lambda: tyro.cli(COMMANDS[word], prog=f"spherear {word}", args=args[1:]))
    if not word.startswith("-"):
        nearest = get_close_matches(word, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        print(f"error: {word!r} is no command; expected one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    description = "Hyperspherical autoregressive image generation."
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="spherear", description=description, args=[word])


if __name__ == "__main__":
    sys.exit(main())
