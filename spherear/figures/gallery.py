"""All figures of the kit, drawn from shipped models, shipped records and closed-form densities. Nothing is trained.

python -m spherear.figures.gallery notebooks/figures
python -m spherear.figures.gallery slides --dpi 200     for slides, twice as fine
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import tyro
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from spherear.analysis.densities import direction_laws
from spherear.analysis.diagnostics import (
    effective_rank,
    prediction_error,
    projection_jacobian,
    radial_share,
    spread_histogram,
)
from spherear.analysis.latents import CollapseRow, collapse_row, real_latents, token_laws
from spherear.analysis.perturbation import KINDS, Perturbation, error_growth
from spherear.analysis.trajectories import overview
from spherear.bench.growth import Growth
from spherear.figures.diagnostics import (
    collapse_figure,
    jacobian_figure,
    perturbation_growth_figure,
    radial_share_figure,
    rank_figure,
    scales_sheet_figure,
    sheets_figure,
    spread_figure,
)
from spherear.figures.heads import heads_figure
from spherear.figures.paper import direction_laws_figure, overview_figure, published_fid_figure, token_laws_figure
from spherear.figures.sizes import sizes_figure
from spherear.figures.study import (
    ablation_figure,
    decode_time_figure,
    drift_figure,
    guidance_figure,
    quality_figure,
    report,
)
from spherear.figures.style import DPI, save_figure
from spherear.models.config import one_of, require
from spherear.models.files import read_json, write_text
from spherear.models.pretrained import shipped_families, shipped_name
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import Pipeline, cached_pipeline
from spherear.sampling.placement import AS_WRITTEN
from spherear.sampling.settings import SamplingSettings
from spherear.sphere.families import family_label, family_of_letter
from spherear.study.claims import default_sampling
from spherear.study.design import GRIDS, Point, Variant
from spherear.study.questions.families import every_family
from spherear.study.questions.families import report as families_report
from spherear.study.questions.heads import Curve, curves, untaught_report
from spherear.study.questions.heads import report as heads_report
from spherear.study.questions.sizes import shipped_advantages, shipped_report
from spherear.study.records import RESULTS, select, shipped_records
from spherear.study.reference import held_out
from spherear.study.release import SHIPPED_VARIANTS
from spherear.study.solver_errors import shipped_quality, verdicts
from spherear.study.solver_errors import shipped_report as shipped_solvers
from spherear.training.data import load_data

SCALES = (1.0, 4.5, 8.0, 12.0)
SHEET_SCALES = (1.0, 4.5, 12.0, 20.0)
SHEET_CAPTION = "recognised {accuracy:.0%}, late length {norm_change_late:+.0%},\nsaturation {saturation_shift:+.2f}"
COLOUR_DRIFT = ("norm_change_late", "saturation_shift", "frechet")
FAMILY_DRIFT = ("norm_change_late", "accuracy", "frechet")
GROWTH = RESULTS / "growth.json"
SIZES = (1e-4, 1e-3, 1e-2, 1e-1)


def shipped(family: str, preset: str = "digits") -> Pipeline:
    """The shipped model of a family, cached."""
    return cached_pipeline(shipped_name(family, preset))


def velocity_families() -> list[str]:
    """The families of shipped digits models with continuous tokens."""
    return [family for family in shipped_families("digits") if not shipped(family).ar.config.codes]


@cache
def latents_of(family: str) -> tuple[Float[Tensor, "n tokens dim"], Int[Tensor, " n"]]:
    """Posterior samples of the training images, and their labels."""
    vae = shipped(family).vae
    return real_latents(vae, load_data("digits", vae.config.image_size), seed=0)


def overview_of_a_seven() -> Figure:
    """A held-out 7, its tokens, and a generated 7."""
    images, labels = held_out("digits", 16)
    seven = images[labels == 7][0]
    return overview_figure(overview(shipped("power_spherical"), seven, label=7, position=6, seed=2))


def tokens_in_space() -> Figure:
    """Tokens of the three models with three-dimensional latents (or codes), for images of a 2."""
    discrete, gaussian, sphere = (shipped(family, "digits3") for family in ("vq", "gaussian", "power_spherical"))
    return token_laws_figure(token_laws(discrete, gaussian, sphere, (1, 6, 9), label=2))


@cache
def rising_guidance(family: str) -> CollapseRow:
    """Lengths of raw tokens, and images, of the shipped digits model at each of SCALES."""
    return collapse_row(shipped(family), latents_of(family)[0], SCALES)


def collapse() -> Figure:
    """Length of raw tokens under guidance, with images."""
    return collapse_figure([rising_guidance(family) for family in velocity_families()])


def side_by_side() -> Figure:
    """A sphere and a Gaussian: images of the same labels and seeds under rising guidance."""
    rows = [rising_guidance(family_of_letter(letter).name) for letter in "SG"]
    return sheets_figure(
        {family_label(row.family): torch.cat(row.images) for row in rows},
        {family_label(row.family): "late length " + ", ".join(f"{n.late:+.0%}" for n in row.norms) for row in rows},
        len(rows[0].images[0]),
        [f"{scale:g}" for scale in SCALES],
        "guidance",
    )


def sheet_of_scales() -> Figure:
    """Two colour images of every class, same labels and seeds in every panel; captions: of 5,000 by the same models."""
    grid, labels, sheets, captions = GRIDS["report"], torch.arange(20) % 10, {}, {}
    records = select(shipped_records("report"), seed=grid.seeds[0])
    for variant in SHIPPED_VARIANTS["report"]:
        family = Variant.named(variant).family
        pipeline = shipped(family, grid.preset)
        name = f"{family_label(family)}, {variant}"
        sheets[name] = [pipeline.sample(labels, grid.settings(Point(scale))) for scale in SHEET_SCALES]
        found = [default_sampling(records, variant=variant, guidance_scale=scale) for scale in SHEET_SCALES]
        captions[name] = [SHEET_CAPTION.format_map({r.metric: r.value for r in point}) for point in found]
    return scales_sheet_figure(sheets, captions, SHEET_SCALES)


def growth() -> Figure:
    """Perturbations of token 5 of four images, in float64."""
    pipeline = Pipeline.from_pretrained("digits-power_spherical", **AS_WRITTEN.to_dict())
    pipeline.vae.double()
    pipeline.ar.double()
    settings = SamplingSettings(guidance_scale=2.0, solver="euler", steps=10)
    growths = [
        error_growth(pipeline, Perturbation((1, 3, 5, 7), 0, settings, 4, kind, size), projected)
        for kind in KINDS
        for size in SIZES
        for projected in (True, False)
    ]
    return perturbation_growth_figure(growths)


def spread() -> Figure:
    """Posterior spread of held-out digits."""
    images, _ = held_out("digits", 16)
    families = [family_of_letter(letter).name for letter in "SNG"]
    return spread_figure({f: spread_histogram(shipped(f).vae.encode(images).spread) for f in families})


def rank() -> Figure:
    """Effective rank of generated tokens at guidance 2."""
    labels, settings = torch.arange(200) % 10, SamplingSettings(guidance_scale=2.0, steps=25)
    families = shipped_families("digits")
    return rank_figure({f: effective_rank(trace(shipped(f).steps(labels, settings)).tokens) for f in families})


def share() -> Figure:
    """Radial share of a one-step prediction error at t = 1/2."""
    shares = {}
    for family in velocity_families():
        tokens, labels = (x[:500] for x in latents_of(family))
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
        shares[family] = radial_share(prediction_error(shipped(family).ar, tokens, labels, 0.5, noise), tokens)
    return radial_share_figure(shares)


def shipped_growth() -> Growth:
    """The shipped result of `spherear bench growth --out`: SphereAR-B on two cores."""
    (row,) = read_json(GROWTH)["rows"]
    return Growth(**row)


def jacobian() -> Figure:
    """The Jacobian of the projection at a raw token."""
    pipeline = shipped("power_spherical")
    raw = trace(pipeline.steps([3], SamplingSettings(guidance_scale=8.0, steps=25))).raw[0, 9]
    return jacobian_figure(projection_jacobian(pipeline.vae.project, raw))


def colour_claims() -> str:
    """The statements on colour images: by the longer trainings of one strength each, then by the shorter of three.

    Last, every family beside S, in small batches.
    """
    long, short = (shipped_records(study) for study in ("report", "select"))
    return (
        f"# One strength a family, chosen in shorter trainings\n\n{report(long, short)}\n"
        f"# Those shorter trainings: three strengths a family\n\n{report(short)}\n"
        f"# Every family beside S, in small batches\n\n{families_report(every_family())}"
    )


def head_curves(study: str) -> list[Curve]:
    """Few evaluations, on the records of a study of heads."""
    grid = GRIDS[study]
    return curves(shipped_records(study), grid.solver, grid.solver_steps)


def head_costs(study: str) -> str:
    """What few evaluations cost, as Markdown."""
    grid = GRIDS[study]
    return heads_report(shipped_records(study), grid.solver, grid.solver_steps)


def heads_without_a_teacher() -> str:
    """Heads that learnt from data alone beside those that were distilled, as Markdown."""
    grid = GRIDS["heads"]
    return untaught_report(shipped_records("heads"), shipped_records("heads-scratch"), grid.solver, grid.solver_steps)


FIGURES: dict[str, Callable[[], Figure]] = {
    "figure1-published": published_fid_figure,
    "figure2-overview": overview_of_a_seven,
    "figure3-tokens": tokens_in_space,
    "figure4-guidance": lambda: guidance_figure(shipped_records()),
    "figure5-directions": lambda: direction_laws_figure(direction_laws()),
    "figure4-colour": lambda: guidance_figure(shipped_records("report")),
    "drift": lambda: drift_figure(shipped_records()),
    "drift-colour": lambda: drift_figure(shipped_records("report"), COLOUR_DRIFT),
    "lengths": lambda: sizes_figure(shipped_advantages("tokens"), "tokens"),
    "dimensions": lambda: sizes_figure(shipped_advantages("numbers per token"), "numbers per token"),
    "heads": lambda: heads_figure(head_curves("heads")),
    "heads-colour": lambda: heads_figure(head_curves("heads-colour")),
    "ablation": lambda: ablation_figure(shipped_records()),
    "ablation-colour": lambda: ablation_figure(every_family()),
    "families-colour": lambda: drift_figure(every_family(), FAMILY_DRIFT, ablation=True),
    "collapse": collapse,
    "side-by-side": side_by_side,
    "scales": sheet_of_scales,
    "growth": growth,
    "spread": spread,
    "rank": rank,
    "radial-share": share,
    "jacobian": jacobian,
    "solvers": lambda: quality_figure(verdicts(shipped_quality())),
    "decode-growth": lambda: decode_time_figure(shipped_growth()),
}


def main(out: tyro.conf.Positional[Path], names: tyro.conf.Positional[tuple[str, ...]] = (), dpi: int = DPI) -> None:
    """Write figures as PNG and the tables to a folder.

    An unknown figure or fewer than 10 dots per inch: ValueError, and nothing is written.

    Args:
        out: The folder; files of the same names are replaced.
        names: Which figures; all if none are given.
        dpi: Dots per inch; 200 suits slides.
    """
    for name in names:
        one_of("figure", name, FIGURES)
    require(dpi >= 10, f"dpi is {dpi}; expected at least 10")
    for name in names or FIGURES:
        save_figure(FIGURES[name](), out / f"{name}.png", dpi)
        print(out / f"{name}.png")
    write_text(out / "claims.md", report(shipped_records()))
    write_text(out / "claims-colour.md", colour_claims())
    for name in ("heads", "heads-colour"):
        write_text(out / f"{name}.md", head_costs(name))
    write_text(out / "heads-scratch.md", heads_without_a_teacher())
    for name, what in (("lengths", "tokens"), ("dimensions", "numbers per token")):
        write_text(out / f"{name}.md", shipped_report(what))
    write_text(out / "solvers.md", shipped_solvers())


if __name__ == "__main__":
    tyro.cli(main)
