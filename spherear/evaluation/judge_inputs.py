"""The inputs of the offline judges, as data. Does not import torch."""

from dataclasses import dataclass


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
    "mnist": JudgeInput(channels=1, native=32, size=32, shown=(32,), pools=3, width=32, thumbnail=4),
    "shapes": JudgeInput(channels=3, native=32, size=32, shown=(32,), pools=3, thumbnail=4),
}
