"""The commands that measure, and the film: `spherear study | evaluate | judge | film`.

What a command needs is imported inside it, as in `spherear.cli`.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from spherear.console import command_line, require_installed, say
from spherear.evaluation.defaults import Drawing, default_count
from spherear.models.config import require
from spherear.sampling.placement import Placement, Plan, choose
from spherear.sampling.settings import SamplingSettings
from spherear.study.design import Grid, find_grid

Settings = Annotated[Drawing, tyro.conf.arg(name="")]
Place = Annotated[Placement, tyro.conf.arg(name="")]
AUTO = Placement()
PRESET = Drawing()
FILM_SCALES = (1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0, 20.0)


def study(
    grid: tyro.conf.Positional[str] = "quick",
    out: Path | None = None,
    data: str = "",
    judge: str = "",
    jobs: int = 0,
    budget: float | None = None,
    compile: bool = False,
    recorded: bool = False,
    place: Place = AUTO,
) -> int:
    """Train and compare the families of latents: every cell of a grid in its own process, measured and recorded.

    The same command goes on where it stopped: finished cells are kept, others resume from their checkpoints.

    Args:
        grid: quick (colour shapes, two families, two seeds, a quarter of an hour), full (digits, all families and
            strengths, three seeds, about an hour), select (colour shapes, four families over their strengths, two
            seeds, hours), report (six other seeds at the strengths chosen there: minutes of a GPU, days of a CPU),
            length16, length64, length256 (colour shapes of so many tokens, three seeds), dim2, dim8 (those of 64 tokens
            with so many numbers each), others (64 tokens, the families that length64 lacks), heads (digits, models of
            full: families and heads at one to a hundred evaluations per token, three seeds), heads-scratch (those of
            few evaluations, without a teacher), heads-colour (heads, with models of report), laws (tokens of three
            numbers, for figures), a grid of your own by name, or a JSON file of the fields of
            `spherear.study.design.Grid`, as every study writes it (grid.json).
        out: The study's folder; runs/study/<grid> by default.
        data: Your own data, such as folder:PATH, instead of the grid's: every fifth picture of a class is held out, and
            sizes are proposed from the pictures unless a JSON file names a preset.
        judge: What sees the images: a name, the folder of `spherear judge`, or torchvision:NAME. By default that of the
            data: if none ships, one is trained on them, and its accuracy on held-out images is said.
        jobs: Cells at once; 0: one per core, or one where there is a GPU.
        budget: Minutes to aim at: training and images are scaled down, equally in every cell. A study that has
            begun keeps the budget it began with.
        compile: Compile the training steps: faster where there is a C++ compiler, except for short runs.
        recorded: Take the cells that were trained before from the records that ship, and train only what they lack.
        place: How the images of every cell are drawn; the device also trains, on CUDA where there is one or on the CPU.
    """
    require_installed("matplotlib")
    import torch

    from spherear.models.sources import Outline
    from spherear.study.cell import GRID_FILE, reference_of, sizes_of
    from spherear.study.design import Variant
    from spherear.study.records import shipped_records
    from spherear.study.runner import open_study, restore, run_study, waiting_cells, within_budget

    require(jobs >= 0, f"jobs is {jobs}; expected 0 or more")
    require(not (recorded and judge), f"judge is {judge!r}; expected none: the recorded cells have another one")
    known = shipped_records(grid) if recorded else []
    plan = find_grid(grid, data).on(data, judge, proposed=not grid.endswith(".json"))
    folder, cores = out or Path("runs/study") / plan.name, os.cpu_count() or 1
    at_once = jobs or (1 if torch.cuda.is_available() else cores)
    threads = max(1, cores // at_once)
    sizes, *_ = (sizes_of(plan, Variant.named(name)) for name in plan.variants)
    drawn_with = choose(Outline(sizes.vae, sizes.ar).parameters()[1], place)  # refused before anything begins
    if budget is not None and not (folder / GRID_FILE).exists():
        plan = within_budget(plan, budget, at_once, threads, place)
    plan = open_study(plan, folder, command_line())
    reference_of(plan, folder)  # before the cells: a judge is trained once
    if recorded:
        say(f"{len(restore(plan, folder, known))} cells are taken from the records that ship")
    say(f"images are drawn with {drawn_with.sentence}")
    waiting, failed = len(waiting_cells(plan, folder)), 0
    with tqdm(total=len(plan.cells), initial=len(plan.cells) - waiting, desc=f"study {plan.name}", unit="cell") as bar:
        for ended in run_study(plan, folder, at_once, threads, compile, place):
            bar.update()
            if ended.status:
                failed += 1
                bar.write(f"{ended.job.name} failed ({ended.last_line}); see {ended.job.log}", file=sys.stderr)
            else:
                bar.write(f"{ended.job.name}: {ended.seconds:.0f} s", file=sys.stderr)
    _draw_study(plan, folder)
    return 1 if failed else 0


def _draw_study(plan: Grid, folder: Path) -> None:
    """Write the figures and tables of a study's records, and print where all of it is."""
    from spherear.figures.heads import write_heads
    from spherear.figures.study import write_report
    from spherear.study.claims import default_sampling
    from spherear.study.records import RECORDED, read_records, select, shipped_records
    from spherear.study.runner import RESULTS_FILE

    records = read_records(folder / RESULTS_FILE)
    selection = shipped_records(plan.selection) if plan.selection in RECORDED else None
    print(folder / RESULTS_FILE)
    # families are compared with the same head alone, and with the grid's own solver
    for head in sorted({r.head for r in default_sampling(records, metric="frechet")}):
        where = folder / "figures" / ("" if head == "auto" else head)
        print(*write_report(select(records, head=head), where, selection), sep="\n")
    if plan.methods:
        print(*write_heads(records, plan.solver, plan.solver_steps, folder / "figures"), sep="\n")


def evaluate(
    run: tyro.conf.Positional[str],
    vae: str = "",
    count: int | None = None,
    out: Path = Path("runs/evaluate"),
    data: str = "auto",
    judge: str = "auto",
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
        data: The data set whose held-out images score offline: digits, mnist, shapes, folder:PATH#train or one of your
            own; auto: what the run was trained on, or by image size and class names.
        judge: What sees the images: a name, the folder of `spherear judge`, or torchvision:NAME; auto: that of the
            data, or one trained on them and kept in the run's folder.
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
    from spherear.study.reference import Against, score_samples, trained_data
    from spherear.training.progress import counting

    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    plan = Plan.of(source_of(run, vae), place)
    say(plan.sentence)
    ar = plan.outline.ar
    count, drawing = default_count(ar) if count is None else count, settings.of(ar)
    say(f"{count:,} images at guidance scale {drawing.guidance_scale:g}")
    pipeline = Pipeline.from_plan(plan)
    work = draw_samples(out, pipeline, count, drawing, seed, shard, rank, size)
    against = Against("")  # of the other processes, which wait for the first
    if rank == 0:
        trained_on, kept = trained_data(run)
        against = Against.of(pipeline, data, reference, count, judge, kept, trained_on, held_out)
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


def judge(data: str, out: Path, image_size: int = 0, seed: int = 0, epochs: int = 60) -> int:
    """Train a judge on a data set: a small classifier whose features and guesses score generated images.

    Every fifth picture of a class of folder:PATH or tar:PATH is held out; the accuracy on these is printed and stored.

    Args:
        data: The data set, such as folder:PATH.
        out: Folder of the judge, for --judge of `spherear study` and `spherear evaluate`.
        image_size: Pixels of the images it sees; 0: as proposed for the data.
        seed: Of weights, order and augmentation.
        epochs: Passes over the training images.
    """
    from spherear.study.judges import FACTS, train_judge
    from spherear.training.data.catalog import training_part
    from spherear.training.data.propose import look_at, propose_sizes

    require(not (out / FACTS).exists(), f"{out} holds a judge; expected a new folder")
    spec = training_part(data)
    size = image_size or propose_sizes(look_at(spec)).vae.image_size
    trained = train_judge(spec, size, out, seed, epochs)
    print(f"{out}: {trained.title}")
    return 0


def film(
    out: Path = Path("film.gif"),
    scales: tuple[float, ...] = FILM_SCALES,
    families: tuple[str, ...] = ("S", "G"),
    labels: tuple[str, ...] = (),
    seed: int = 0,
    zoom: int = 3,
    pause: int = 350,
    overwrite: bool = False,
) -> int:
    """Draw a short loop of rising guidance: families of latents side by side, for slides and pages.

    Shipped colour models draw the same classes and seeds at every scale. The loop begins with the strongest guidance,
    goes down and comes back. Numbers: mean length of the last quarter of the tokens, against real ones.

    Args:
        out: The film to write: .gif, or .png for an animated PNG; if there is one, its name with the next free number.
        scales: Guidance scales, rising, one frame each; at least two.
        families: Letters of the families, from left to right.
        labels: Classes to draw, by name or number, one image each, five in a row; all if none are given.
        seed: Of the first image; each further image takes the next one.
        zoom: Pixels of the film per pixel of an image.
        pause: Milliseconds per frame; both ends stay longer.
        overwrite: Replace a file of that name.
    """
    from spherear.figures.film import check_path, draw_side, frame, model_of, save_film
    from spherear.sampling.pixels import free_path
    from spherear.sheets import columns_of
    from spherear.sphere.families import family_of_letter

    check_path(out)
    for name, value, least in (("zoom", zoom, 1), ("pause", pause, 20), ("seed", seed, 0)):
        require(value >= least, f"{name} is {value}; expected at least {least}")
    require(len(families) > 0, "families is empty; expected at least one letter")
    rising = len(scales) >= 2 and all(a < b for a, b in pairwise(scales))
    require(rising, f"scales is {scales}; expected at least two, rising")
    for scale in scales:
        SamplingSettings(guidance_scale=scale)  # refused before anything is drawn
    names = [family_of_letter(letter).name for letter in families]
    classes = columns_of(model_of(names[0])[0].ar.config, labels)
    frames = []
    for scale in tqdm(scales, "film", unit="frame"):
        sides = [draw_side(name, classes, seed, scale) for name in names]
        frames.append(frame(sides, scale, scales[-1], min(5, len(classes)), zoom))
    out = out if overwrite else free_path(out)
    save_film(out, frames, pause)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, guidance {scales[0]:g} to {scales[-1]:g}")
    return 0
