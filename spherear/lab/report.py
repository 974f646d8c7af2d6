"""What a study found, as files to look at: figures, and the paper's statements held against its records.

Knows: which figures and tables there are.  Does not know: how they look, or how anything was measured.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from spherear.lab.claims import claims, claims_table
from spherear.lab.records import Record, select
from spherear.lab.study_figures import ablation_figure, ablation_table, drift_figure, guidance_figure, has_ablation
from spherear.models.files import atomic_path, write_text

NOTE = """Made by `{command}`: {cells} trained models, {seeds} seeds, {vae} VAE and {ar} AR steps each.

All families have the same backbone, budget, data, labels and sampling seeds; none was tuned alone. A family's best
point is the variant and guidance scale with the lowest Frechet distance to held-out images, mean over seeds (mean ±
standard deviation over seeds is shown). A statement is *confirmed* where the difference has the stated sign in every
seed, *contradicted* where it has the other sign in every seed, *undecided* otherwise. With three seeds, chance alone
would confirm one statement in eight.

"""


def save_figure(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=dpi)


def write_report(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write what the records can show: guidance.png, drift.png, ablation.png, claims.md; returns their paths."""
    figures = {"guidance.png": guidance_figure(records), "drift.png": drift_figure(records)}
    if has_ablation(records):
        figures["ablation.png"] = ablation_figure(records)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    write_text(folder / "claims.md", report(records))
    return [folder / name for name in (*figures, "claims.md")]


def report(records: Sequence[Record]) -> str:
    """The statements and the ablation as Markdown, with how they were come by."""
    first = records[0]
    cells = {(r.variant, r.seed) for r in records}
    seeds = sorted({r.seed for r in records})
    text = NOTE.format(
        command=first.command, cells=len(cells), seeds=len(seeds), vae=first.vae_steps, ar=first.ar_steps
    )
    high = max(r.guidance_scale for r in select(records, schedule="linear"))
    without = {r.guidance_scale for r in select(records, project_ar=False)}
    text += claims_table(claims(records, high, max(without, default=high)))
    return text + ("\n" + ablation_table(records) if has_ablation(records) else "")
