"""The inputs of the offline judges, as data. Does not import torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from spherear.registry import Table

SIZES = {16: 2, 32: 3, 64: 4}  # input pixels of a network for one's own images, and its pooling layers


@dataclass(frozen=True)
class JudgeInput:
    """Input of a data set's classifier.

    channels: 1 means grey.  native: pixels to which images are averaged down.  size: input pixels of the
    network.  shown: pixels of its training images.  pools: max-pooling layers, each halving the size.
    width: channels of the first convolution; the next ones have 2 and 4 times as many.
    thumbnail: 0, or the size of a thumbnail that the features must predict beside the class, in training. Features for
    the class alone ignore colour and place, and most of them die.
    """

    channels: int
    native: int
    size: int
    shown: tuple[int, ...]
    pools: int
    width: int = 16
    thumbnail: int = 0


JUDGE_INPUTS = {
    "digits": JudgeInput(channels=1, native=8, size=16, shown=(8, 16, 32), pools=2),
    "mnist": JudgeInput(channels=1, native=32, size=32, shown=(32,), pools=3, thumbnail=4),
    "shapes": JudgeInput(channels=3, native=32, size=32, shown=(32,), pools=3, thumbnail=4),
}


def judge_input_for(image_size: int, grey: bool) -> JudgeInput:
    """The input of a judge for images of one's own: the smallest of 16, 32 and 64 pixels that holds them, or 64."""
    size = next((size for size in SIZES if size >= image_size), max(SIZES))
    native = min(image_size, size)
    return JudgeInput(1 if grey else 3, native, size, (image_size,), SIZES[size], thumbnail=4)


def judge_row(make: Any) -> Callable[[int, int], Any]:
    """The function. TypeError for what cannot be called."""
    if not callable(make):
        raise TypeError(f"judge is {make!r}; expected a function (classes, image_size) that returns a judge")
    return make


def _shipped(name: str, classes: int, image_size: int) -> Any:
    from spherear.evaluation.classifier import load_classifier

    return load_classifier(name)


JUDGES = Table[Callable[[int, int], Any]]({name: partial(_shipped, name) for name in JUDGE_INPUTS}, judge_row)
"""Judges by name. One's own is a function (classes, image_size) below `@JUDGES.register`; it returns an object with
features(images) -> (n, f) of images in [-1, 1], and classify(features) -> logits (n, classes)."""
