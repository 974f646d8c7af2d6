"""The table of families: every way a VAE's tokens can be constrained, one row each, without torch.

`sphere.bottlenecks` holds the class of each row. Studies, figures, panels and the command line read letters, titles,
colours, markers and default variants here; none of them lists families itself.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """One family of latents.

    name: the key of configs and records.  letter, title, color, marker: how figures and panels show it (the palette of
    Okabe & Ito, which colour-blind readers can tell apart).  strength: the number that sets its variants apart, as a
    multiple of `unit`: a KL weight, a noise scale, or how many codes.  variants: strengths that a full study compares.
    spread: what `Latent.spread` is.
    ablation: only compared in the ablation of normalisation, not drawn beside the others.
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
        """'S Power Spherical' and the like."""
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
    """The label of a family, or the name itself where it is none."""
    return FAMILIES[name].label if name in FAMILIES else name
