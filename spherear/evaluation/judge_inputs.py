"""The inputs of the offline judges, as data. Does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeInput:
    """Input of a data set's classifier.

    channels: 1 means grey.  native: pixels to which images are averaged down.  size: input pixels of the
    network.  shown: pixels of its training images.  pools: max-pooling layers, each halving the size.
    """

    channels: int
    native: int
    size: int
    shown: tuple[int, ...]
    pools: int


JUDGE_INPUTS = {
    "digits": JudgeInput(channels=1, native=8, size=16, shown=(8, 16, 32), pools=2),
    "shapes": JudgeInput(channels=3, native=32, size=32, shown=(32,), pools=3),
}
