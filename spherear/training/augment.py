"""Crops and flips of images, as functions of (seed, epoch, index)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of one epoch.

    crop: the shorter side is resized to between 1 and `crop` times the image size before a square is cut out.
    spread: how far the square may be from the centre, from 0 (centre crop) to 1 (anywhere).
    flip: each image is mirrored with probability 1/2.
    """

    seed: int = 0
    epoch: int = 0
    crop: float = 1.0
    spread: float = 0.0
    flip: bool = False

    def view(
        self, index: int, width: int | float, height: int | float
    ) -> tuple[tuple[float, float, float, float], bool]:
        """The crop (left, top, right, bottom) of image `index` in its original pixels, and whether it is flipped.

        The random numbers depend on (seed, epoch, index) alone.
        """
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.epoch, index, 0xA46])))
        scale, x, y, mirror = stream.random(4)
        side = min(width, height) / (1 + (self.crop - 1) * scale)
        left = (width - side) * (0.5 + (x - 0.5) * self.spread)
        top = (height - side) * (0.5 + (y - 0.5) * self.spread)
        return (left, top, left + side, top + side), bool(self.flip and mirror < 0.5)


PLAIN_VIEW = Augmentation()
