"""The strip of the guidance panel: the same images at several guidance scales, one column per scale."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from spherear.analysis.canvas import Canvas
from spherear.live.latest_wins import Cancellation
from spherear.live.picture import Picture, paint, sheet
from spherear.sampling.pipeline import Pipeline

IMAGES, COLUMNS = 6, 3
GAP, FONT = 8, 22
Sheet = UInt8[np.ndarray, "height width 3"]


def strip_pictures(picture: Picture, scales: Sequence[float]) -> list[Picture]:
    """A picture per scale: the first images of `picture`, with its models, seed and other settings."""
    labels = picture.labels[:IMAGES]
    columns = min(COLUMNS, len(labels))
    return [
        replace(picture, labels=labels, columns=columns, settings=replace(picture.settings, guidance_scale=scale))
        for scale in scales
    ]


def strip_columns(
    pictures: Sequence[Picture], pipeline: Callable[[str], Pipeline], cancellation: Cancellation
) -> Iterator[list[Sheet]]:
    """The finished sheets of each picture in turn, one per model; ends early when it is cancelled."""
    for picture in pictures:
        canvases: list[Canvas] = []
        for canvases in paint(picture, pipeline):  # noqa: B007
            if cancellation.over:
                return
        yield [sheet(canvas.images(), picture.columns, picture.zoom) for canvas in canvases]


def strip_pixels(columns: Sequence[Sequence[Sheet]], scales: Sequence[float]) -> UInt8[np.ndarray, "whole wide 3"]:
    """Columns beside each other, one row per model, the scale above each column; grey where nothing is drawn yet."""
    height, width, _ = columns[0][0].shape
    rows, top = len(columns[0]), FONT + GAP
    whole = Image.new("RGB", (len(scales) * (width + GAP) - GAP, top + rows * (height + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=FONT)
    for place, scale in enumerate(scales):
        left = place * (width + GAP)
        pen.text((left, 0), f"guidance {scale:g}", fill="black", font=font)
        for row in range(rows):
            blank = np.full((height, width, 3), 128, np.uint8)
            pixels = columns[place][row] if place < len(columns) else blank
            whole.paste(Image.fromarray(pixels), (left, top + row * (height + GAP)))
    return np.asarray(whole)
