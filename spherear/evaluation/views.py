"""How each offline judge sees the images of its data set, as data, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """How a classifier sees the images of a data set.

    channels: 1 looks at grey alone.  native: pixels images are averaged down to.  size: pixels the network
    works at.  shown: pixels of the images it is trained on.  pools: halvings inside.
    """

    channels: int
    native: int
    size: int
    shown: tuple[int, ...]
    pools: int


VIEWS = {
    "digits": View(channels=1, native=8, size=16, shown=(8, 16, 32), pools=2),
    "shapes": View(channels=3, native=32, size=32, shown=(32,), pools=3),
}
