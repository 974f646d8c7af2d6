"""The command line: `spherear demo | lab | page | train | distill | export | sample | evaluate | judge | study |
film | bench | notebooks | docs | doctor`.

What a command needs is imported inside it, so that every help text comes without loading torch.
"""

import io
import itertools
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
from spherear.commands import AUTO, PRESET, Place, Settings, evaluate, film, judge, study
from spherear.console import INTERRUPTED, command_line, exit_status, require_installed, say
from spherear.live.commands import docs, doctor, lab, notebooks, page
from spherear.models.config import require
from spherear.registry import take_imports
from spherear.sampling.placement import Plan
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.families import FAMILIES
from spherear.training.distillation.recipe import DistillRecipe
from spherear.training.recipes import PRECISIONS, RECIPES

DISTILL = DistillRecipe()
Recipe = Annotated[DistillRecipe, tyro.conf.arg(name="")]


def demo(
    run: Path = Path("runs/demo"),
    seed: int = 0,
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0),
    bottleneck: "Literal[*FAMILIES]" = "power_spherical",  # type: ignore[valid-type]
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


def sample(
    run: str = "runs/demo",
    vae: str = "",
    labels: tuple[str, ...] = (),
    count: int = 1,
    seed: int = 0,
    out: Path = Path("samples.png"),
    overwrite: bool = False,
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
        out: The PNG to write, with its settings inside; if there is one, its name with the next free number.
        overwrite: Replace a PNG of that name.
        zoom: Pixels of the PNG per pixel of an image.
        settings: How tokens are drawn.
        place: Where and how the model runs.
    """
    for name, value in (("count", count), ("zoom", zoom)):
        require(value >= 1, f"{name} is {value}; expected at least 1")
    from spherear.models.sources import source_of
    from spherear.sampling.pipeline import Pipeline
    from spherear.sampling.pixels import free_path
    from spherear.sheets import columns_of, draw_sheet

    plan = Plan.of(source_of(run, vae), place)
    say(plan.sentence)
    pipeline = Pipeline.from_plan(plan)
    config = pipeline.ar.config
    columns = columns_of(config, labels)
    out = out if overwrite else free_path(out)
    draw_sheet(pipeline, str(plan.source.absolute()), columns, count, settings.of(config), seed, out, zoom)
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
    paths: tuple[str, ...] = (),
    threads: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> int:
    """Measure speed and memory, as ratios within one run: a table, and JSON with --out.

    decode: every engine against the plain reference and the machine's own ceilings, with random weights.
    latency: how long a person waits, by named settings and with one evaluation per token, for one model and two beside
    each other.  growth: time over tokens.  memory: over steps.
    train: a training step, encoding at every step and with cached posteriors.
    image: one guided image, whole, for every engine and dtype; and the memory of four settings.
    head: a guided batch with 101 evaluations of a velocity, and with one, two and four of a mean velocity.
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
        paths: Of `decode`: these alone, beside the reference.
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
    request = command.Request(presets, batches, dtypes, tokens, steps, repeats, compiled, pick_device(device), paths)
    return command.bench(kind, request, out)


def distill(
    run: tyro.conf.Positional[str],
    vae: str = "",
    out: Path | None = None,
    data: str = "",
    device: str = "auto",
    recipe: Recipe = DISTILL,
) -> int:
    """Teach a head of few evaluations the guided flow of a trained model; its transformer stays as it is.

    The new head takes the guidance scale as an input: one evaluation draws a guided token, without a second branch.
    The same command goes on where it stopped. `spherear sample --run OUT` draws with it, and panels offer it beside
    the model.

    Args:
        run: Folder of a finished run (with vae/ and ar/ in it), a hub repository owner/name, a shipped name, or a
            published file. Its head is a velocity, flat or geodesic.
        vae: The published file of the VAE, if it is not in that of the AR model; or the folder of the VAE's run.
        out: Folder of the new model; heads/NAME beside the run, or in runs/RUN for one that is no folder here.
        data: Data set, like --data of `spherear train`; by default what the run was trained on, or what a shipped
            model was made for.
        device: cpu, cuda, or auto: cuda where there is one.
        recipe: Hyperparameters of the training.
    """
    from spherear.models.sources import heads_folder, source_of
    from spherear.sampling.pipeline import Pipeline
    from spherear.study.reference import data_of
    from spherear.train import distill as states_of
    from spherear.training.build import pick_device
    from spherear.training.data.catalog import load_data
    from spherear.training.distillation.student import student_name
    from spherear.training.progress import watch

    autoencoder, ar = source_of(run, vae).load()
    folder = out or heads_folder(run) / student_name(ar)
    spec = data or data_of(run, Pipeline(autoencoder, ar))
    states = states_of(
        autoencoder, ar, load_data(spec, autoencoder.config.image_size), recipe, folder, pick_device(device)
    )
    say(f"{recipe.steps:,} steps on {spec}, by {recipe.objective}")
    if not watch(states, f"head ({student_name(ar)})", recipe.steps):
        print(f"stopped: {folder} holds all it takes; the same command goes on")
        return INTERRUPTED
    print(f"{folder}: the model, for `spherear sample --run {folder}` and `spherear evaluate {folder}`")
    return 0


def train_models() -> int:
    """Train a VAE, an AR model, or both and draw a sheet: `spherear train vae|ar|all --help`."""
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
    from spherear.training.jobs import AllJob
    from spherear.training.jobs.arguments import parse_job

    def work() -> int:
        job = parse_job(args)
        if isinstance(job, AllJob):
            from spherear.train_all import train_all

            return train_all(job)
        from spherear import train

        return train.run(job)

    return exit_status(work)


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "lab": lab,
    "page": page,
    "train": train_models,
    "distill": distill,
    "export": export,
    "sample": sample,
    "evaluate": evaluate,
    "judge": judge,
    "study": study,
    "film": film,
    "bench": bench,
    "notebooks": notebooks,
    "docs": docs,
    "doctor": doctor,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for what a person can mend, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where frames and accents cannot be encoded
    try:
        args = take_imports(args)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    description = (
        "Hyperspherical autoregressive image generation. With every command, --import MODULE makes parts of your own "
        "known: families, solvers, data sets and what else is registered there."
    )
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="spherear", description=description, args=[word])


if __name__ == "__main__":
    sys.exit(main())
