"""Reference files of the ADM evaluation suite: `.npz` with images (`arr_0`), statistics of Inception features, or both.

The suite computes features with TensorFlow; which network made the statistics of a file is not written in it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spherear.evaluation.metrics import Moments
from spherear.evaluation.samples import read_samples, unreadable_as_value_error
from spherear.models.config import require

WIDTH = 2048  # of Inception's last pooled features
STATISTICS = ("mu", "sigma")
CONTENT = "images (arr_0: bytes, (n, height, width, 3)) or statistics (mu and sigma of 2048 Inception features)"
ASYMMETRY = 1e-3  # of a covariance, as a share of its largest entry


@dataclass(frozen=True)
class ADMReference:
    """images: bytes (n, height, width, 3), or None.  moments: of Inception features, or None; at least one is there."""

    path: Path
    images: np.ndarray | None
    moments: Moments | None

    def describe_images(self) -> str:
        """The number and the size of the images, in words; empty without images."""
        if self.images is None:
            return ""
        count, height, width, _ = self.images.shape
        return f"{count} images of {self.path}, {width} x {height} px"


def read_adm(path: Path) -> ADMReference:
    """The images and the statistics in a file.

    Statistics of another width, not finite or not symmetric, images that are not bytes, a file with neither, or no
    `.npz`: ValueError. No pickle is read.
    """
    require(path.is_file(), f"{path} is not a file; expected an .npz with {CONTENT}")
    with (
        unreadable_as_value_error(path, f"a complete .npz with {CONTENT}"),
        path.open("rb") as opened,
        np.load(opened, allow_pickle=False) as file,
    ):
        names = sorted(file.files)
        given = {name: np.asarray(file[name]) for name in STATISTICS if name in names}
    require("arr_0" in names or bool(given), f"{path} holds {names}; expected {CONTENT}")
    require(len(given) in (0, 2), f"{path} holds {sorted(given)} alone; expected both mu and sigma")
    images = read_samples(path) if "arr_0" in names else None
    moments = _moments(path, given["mu"], given["sigma"]) if given else None
    return ADMReference(path, images, moments)


def _moments(path: Path, mean: np.ndarray, covariance: np.ndarray) -> Moments:
    require(
        mean.shape == (WIDTH,) and covariance.shape == (WIDTH, WIDTH),
        f"{path} holds mu {mean.shape} and sigma {covariance.shape}; expected {WIDTH} features, as Inception has: "
        "statistics of another network do not compare",
    )
    for name, values in zip(STATISTICS, (mean, covariance), strict=True):
        fits = np.issubdtype(values.dtype, np.floating) and bool(np.isfinite(values).all())
        require(fits, f"{name} of {path} is {values.dtype} with values that are not finite; expected finite floats")
    off = float(np.abs(covariance - covariance.T).max())
    require(
        off <= ASYMMETRY * float(np.abs(covariance).max()) and float(covariance.diagonal().min()) >= 0,
        f"sigma of {path} is not a covariance (entries differ by {off:g} from their mirror); expected a symmetric one",
    )
    return Moments(torch.from_numpy(mean).double(), torch.from_numpy(covariance).double())
