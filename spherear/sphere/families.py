"""The table of families of latents, one row per family. It does not import torch.

`sphere.bottlenecks` holds the class of each row that ships. Studies, figures, panels and the command line take letters,
titles, colours, markers and default variants from here.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from spherear.registry import Table, load_parts


@dataclass(frozen=True)
class Family:
    """One family of latents.

    name: its key in configs and records.  letter, title, color, marker: its style in figures and panels (the
    colour-blind safe palette of Okabe & Ito).  strength: the hyperparameter that its variants differ in, as a
    multiple of `unit`: KL weight, noise scale or number of codes.  variants: strengths compared in a full study.
    spread: the meaning of `Latent.spread`.
    ablation: only used in the ablation of normalisation; left out of the other figures.
    discrete: tokens come from a codebook.
    options, bottleneck: what of a VAE's config the class takes, and the class; for a family of one's own.
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
    discrete: bool = False
    options: tuple[str, ...] = ()
    bottleneck: Any = field(default=None, compare=False, repr=False)

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
    Family("vq", "VQ", "vector quantised", "#CC79A7", "P", "codes", 1, ("64",), spread="distance to the code",
           discrete=True),
    Family("decoder_normalized", "D", "normalised for the decoder alone", "#000000", "X", ablation=True),
)  # fmt: skip
SPARE = (
    ("#F0E442", "*"), ("#882255", "h"), ("#332288", "<"), ("#999933", ">"), ("#44AA99", "p"), ("#AA4499", "d"),
)  # fmt: skip
"""Colours and markers of families of one's own, in order; the palettes of Okabe & Ito and of Tol."""


def family_row(kind: Any, **look: Any) -> Family:
    """The row of a class of one's own: a `Bottleneck` with `name`. look: further fields of `Family`.

    Letter, title, colour and marker come by default: the shortest free beginning of the name, the name, and the first
    free ones of SPARE. TypeError for anything but a class of bottlenecks or an unknown field, ValueError for a letter
    that is taken.
    """
    from spherear.sphere.bottlenecks import Bottleneck, VectorQuantizedBottleneck

    name = str(getattr(kind, "name", ""))
    if not (isinstance(kind, type) and issubclass(kind, Bottleneck) and name):
        raise TypeError(f"family is {kind!r}; expected a subclass of Bottleneck with a name")
    others = [row for row in FAMILIES.values() if row.name != name]
    taken = {row.letter for row in others}
    letters = (name[:size].capitalize() for size in range(1, len(name) + 1))
    look.setdefault("letter", next((letter for letter in letters if letter not in taken), name))
    used = {row.color for row in others}
    color, marker = next((pair for pair in SPARE if pair[0] not in used), SPARE[-1])
    defaults = {"title": name.replace("_", " "), "color": color, "marker": marker}
    unknown = sorted(look.keys() - {field.name for field in fields(Family)} | look.keys() & FIXED)
    if unknown:
        raise TypeError(f"a family has no field {unknown}; expected some of {sorted(defaults)}, variants, ...")
    if look["letter"] in taken or "-" in look["letter"]:
        raise ValueError(f"the letter of {name!r} is {look['letter']!r}; expected one without '-' that is not taken")
    discrete = issubclass(kind, VectorQuantizedBottleneck)
    return Family(name, **(defaults | look), discrete=discrete, options=tuple(kind.options), bottleneck=kind)


FIXED = {"name", "discrete", "options", "bottleneck"}  # what the class itself says
FAMILIES = Table[Family]({row.name: row for row in _ROWS}, family_row)
"""All families. A class of one's own becomes one by `@FAMILIES.register`, or `@FAMILIES.register(letter="Q", ...)`."""


def family_of_letter(letter: str) -> Family:
    """The family of a letter. Unknown letters: ValueError that lists the known ones."""
    for again in (False, True):
        if again:
            load_parts()
        for row in FAMILIES.values():
            if row.letter == letter:
                return row
    known = ", ".join(repr(row.letter) for row in FAMILIES.values())
    raise ValueError(f"family is {letter!r}; expected one of {known}")


def family_label(name: str) -> str:
    """The label of a family, or `name` itself if there is no such family."""
    return FAMILIES[name].label if name in FAMILIES else name
