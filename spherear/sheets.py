"""A sheet of images as one PNG, one column per class, with its settings inside the file."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from spherear.models.ar import ARConfig
from spherear.models.config import require
from spherear.sampling.decode import trace
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.pixels import save_png, tile
from spherear.sampling.settings import SamplingSettings

MOST_COLUMNS = 10


def columns_of(config: ARConfig, labels: Sequence[str]) -> list[int]:
    """The classes of a sheet, given by name or number; the first ten if none are given. Errors: as `label_of`."""
    return [config.label_of(label) for label in labels] or list(range(min(MOST_COLUMNS, config.num_classes)))


def draw_sheet(
    pipeline: Pipeline,
    model: str,
    columns: Sequence[int],
    count: int,
    settings: SamplingSettings,
    seed: int,
    out: Path,
    zoom: int = 4,
) -> None:
    """Draw `count` images of each class and write the PNG. model: its name for `Pipeline.from_pretrained`.

    Image i, row by row, has the seed `seed + i`. The settings in the file are those that panels read. ValueError for
    a count or a zoom below 1, and for what `Pipeline.sample` refuses.
    """
    for name, value in (("count", count), ("zoom", zoom)):
        require(value >= 1, f"{name} is {value}; expected at least 1")
    labels = list(columns) * count
    steps = pipeline.steps(labels, settings, seed)
    tokens = trace(iter(tqdm(steps, "sampling", pipeline.vae.config.tokens, unit="token", disable=None))).tokens
    sheet = tile(pipeline.images(tokens), columns=len(columns))
    drawn = {
        "models": [model], "labels": labels, "seed": seed, "settings": settings.to_dict(), "columns": len(columns),
        "zoom": zoom,
    }  # fmt: skip
    save_png(out, sheet, zoom, drawn)
