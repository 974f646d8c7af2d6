"""Every figure of the kit, drawn from what ships: models, records and laws; nothing is trained.

    python -m spherear.lab.gallery notebooks/figures

Knows: which model and which settings each figure shows.  Does not know: how figures look.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from spherear.bench.growth import Growth
from spherear.lab.cell import real_latents
from spherear.lab.collapse import collapse_row
from spherear.lab.diagnostics import (
    effective_rank,
    prediction_error,
    projection_jacobian,
    radial_share,
    spread_histogram,
    trace,
)
from spherear.lab.direction_laws import direction_laws
from spherear.lab.overview import overview
from spherear.lab.paper_figures import direction_laws_figure, overview_figure, published_fid_figure, token_laws_figure
from spherear.lab.perturbation import KINDS, error_growth
from spherear.lab.plots import (
    collapse_figure,
    growth_figure,
    jacobian_figure,
    radial_share_figure,
    rank_figure,
    spread_figure,
)
from spherear.lab.records import shipped_records
from spherear.lab.report import report, save_figure
from spherear.lab.speed_figures import growth_figure as decode_growth_figure
from spherear.lab.speed_figures import sweep_figure
from spherear.lab.study_figures import ablation_figure, drift_figure, guidance_figure
from spherear.lab.sweep import rows, shipped_sweep, sweep_report
from spherear.lab.token_laws import token_laws
from spherear.models.config import one_of, require
from spherear.models.files import read_json, write_text
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.training.data import load_data

VELOCITIES = ("power_spherical", "normalized_gaussian", "gaussian", "fixed_variance")
SCALES = (1.0, 4.5, 8.0, 12.0)
GROWTH = Path(__file__).parent / "results" / "growth.json"
SIZES = (1e-4, 1e-3, 1e-2, 1e-1)


@cache
def shipped(family: str, preset: str = "digits") -> Pipeline:
    """The model of a family that ships."""
    return Pipeline.from_pretrained(f"{preset}-{family}")


@cache
def latents_of(family: str) -> tuple[Float[Tensor, "n tokens dim"], Int[Tensor, " n"]]:
    """Posterior samples of the training images, and their labels."""
    vae = shipped(family).vae
    return real_latents(vae, load_data("digits", vae.config.image_size), seed=0)


def overview_of_a_seven() -> Figure:
    """A held-out 7, its tokens, and another one drawn."""
    data = load_data("digits:test", 16)
    images, labels = data.batch(torch.arange(len(data)))
    seven = images[labels == 7][0]
    return overview_figure(overview(shipped("power_spherical"), seven, label=7, position=6, seed=2))


def tokens_in_space() -> Figure:
    """The three models whose tokens have three numbers; images of a 2."""
    discrete, gaussian, sphere = (shipped(family, "digits3") for family in ("vq", "gaussian", "power_spherical"))
    return token_laws_figure(token_laws(discrete, gaussian, sphere, (1, 6, 9), label=2))


def collapse() -> Figure:
    """Length of raw tokens under guidance, beside the images."""
    return collapse_figure([collapse_row(shipped(f), latents_of(f)[0], SCALES) for f in VELOCITIES])


def growth() -> Figure:
    """Perturbations of token 5 of four images, in float64."""
    pipeline = Pipeline.from_pretrained("digits-power_spherical")
    pipeline.vae.double()
    pipeline.ar.double()
    settings = SamplingSettings(guidance_scale=2.0, solver="euler", steps=10)
    return growth_figure(
        [
            error_growth(pipeline, [1, 3, 5, 7], settings, [0, 1, 2, 3], 4, kind, size, projected)
            for kind in KINDS
            for size in SIZES
            for projected in (True, False)
        ]
    )


def spread() -> Figure:
    """Posterior spread of held-out digits."""
    data = load_data("digits:test", 16)
    images, _ = data.batch(torch.arange(len(data)))
    families = ("power_spherical", "normalized_gaussian", "gaussian")
    return spread_figure({f: spread_histogram(shipped(f).vae.encode(images).spread) for f in families})


def rank() -> Figure:
    """Effective rank of generated tokens at guidance 2."""
    labels, settings = torch.arange(200) % 10, SamplingSettings(guidance_scale=2.0, steps=25)
    families = (*VELOCITIES, "vq")
    return rank_figure({f: effective_rank(trace(shipped(f).steps(labels, settings)).tokens) for f in families})


def share() -> Figure:
    """Radial share of a one-step prediction error at t = 1/2."""
    shares = {}
    for family in VELOCITIES:
        tokens, labels = (x[:500] for x in latents_of(family))
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
        shares[family] = radial_share(prediction_error(shipped(family).ar, tokens, labels, 0.5, noise), tokens)
    return radial_share_figure(shares)


def shipped_growth() -> Growth:
    """What `spherear bench growth --out` wrote for SphereAR-B on two cores."""
    (row,) = read_json(GROWTH)["rows"]
    return Growth(**row)


def jacobian() -> Figure:
    """Of the projection, at a raw token."""
    pipeline = shipped("power_spherical")
    raw = trace(pipeline.steps([3], SamplingSettings(guidance_scale=8.0, steps=25))).raw[0, 9]
    return jacobian_figure(projection_jacobian(pipeline.vae.project, raw))


FIGURES: dict[str, Callable[[], Figure]] = {
    "figure1-published": published_fid_figure,
    "figure2-overview": overview_of_a_seven,
    "figure3-tokens": tokens_in_space,
    "figure4-guidance": lambda: guidance_figure(shipped_records()),
    "figure5-directions": lambda: direction_laws_figure(direction_laws()),
    "drift": lambda: drift_figure(shipped_records()),
    "ablation": lambda: ablation_figure(shipped_records()),
    "collapse": collapse,
    "growth": growth,
    "spread": spread,
    "rank": rank,
    "radial-share": share,
    "jacobian": jacobian,
    "sweep": lambda: sweep_figure(rows(shipped_sweep())),
    "decode-growth": lambda: decode_growth_figure(shipped_growth()),
}


def main(out: str, *names: str) -> None:
    """Draw the figures (those named, or all) into the folder `out`, and the tables beside them.

    A name of no figure, or an option where a folder is expected: ValueError, nothing drawn.
    """
    require(not out.startswith("-"), f"out is {out!r}; expected a folder, and names of figures behind it")
    for name in names:
        one_of("figure", name, FIGURES)
    for name in names or FIGURES:
        save_figure(FIGURES[name](), Path(out) / f"{name}.png")
        print(f"{out}/{name}.png")
    write_text(Path(out) / "claims.md", report(shipped_records()))
    write_text(Path(out) / "sweep.md", sweep_report(shipped_sweep()))


if __name__ == "__main__":
    main(*sys.argv[1:])
