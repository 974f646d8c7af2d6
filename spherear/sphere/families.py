"""The table of families of latents, one row per family. It does not import torch.

`sphere.bottlenecks` holds the class of each row. Studies, figures, panels and the command line take letters, titles,
colours, markers and default variants from here.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """One family of latents.

    name: its key in configs and records.  letter, title, color, marker: its style in figures and panels (the
    colour-blind safe palette of Okabe & Ito).  strength: the hyperparameter that its variants differ in, as a
    multiple of `unit`: KL weight, noise scale or number of codes.  variants: strengths compared in a full study.
    spread: the meaning of `Latent.spread`.
    ablation: only used in the ablation of normalisation; left out of the other figures.
    """

    name: str
    letter: str
    title: str
    color: str
    marker: str
    strength: Literal["kl_weight", "noise_scale", "codes"] = "kl_weight"
    unit: float | int = 0.001
    variants: tuple[str, ...] = ("04",)
    spread: str = "standard deviation"
    ablation: bool = False

    @property
    def label(self) -> str:
        """Letter and title, such as 'S Power Spherical'."""
        return f"{self.letter} {self.title}"


_ROWS = (
    Family("power_spherical", "S", "Power Spherical", "#0072B2", "o", variants=("04", "01", "16"),
           spread="concentration"),
    Family("normalized_gaussian", "N", "normalised Gaussian", "#009E73", "s", variants=("04", "01", "16")),
    Family("gaussian", "G", "Gaussian", "#D55E00", "D", variants=("04", "01", "16")),
    Family("fixed_variance", "F", "fixed variance", "#E69F00", "^", "noise_scale", 0.1, ("02", "01", "05")),
    Family("vmf", "vMF", "von Mises-Fisher", "#56B4E9", "v", spread="concentration"),
    Family("vq", "VQ", "vector quantised", "#CC79A7", "P", "codes", 1, ("64",), spread="distance to the code"),
    Family("decoder_normalized", "D", "normalised for the decoder alone", "#000000", "X", ablation=True),
)  # fmt: skip
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}
BY_LETTER: dict[str, Family] = {row.letter: row for row in _ROWS}


def family_label(name: str) -> str:
    """The label of a family, or `name` itself if there is no such family."""
    return FAMILIES[name].label if name in FAMILIES else name
