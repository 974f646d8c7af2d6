"""What a study compares: variants of the latents, seeds, and ways of sampling, declared as data.

Knows: names, numbers and the grids that ship.  Does not know: how a cell is trained or measured.
"""

from dataclasses import dataclass, replace

from spherear.models.config import Config, one_of, require

LEAST_STEPS = 20  # of training, however small the budget
LEAST_IMAGES = 100

FAMILIES = {
    "S": "power_spherical",
    "vMF": "vmf",
    "G": "gaussian",
    "F": "fixed_variance",
    "N": "normalized_gaussian",
    "VQ": "vq",
    "D": "decoder_normalized",
}


@dataclass(frozen=True)
class Variant:
    """A family at one strength, named as in the paper's figure 4.

    S-04, vMF-04, G-04, N-04, D-04: KL weight 0.004.  F-02: noise scale 0.2.  VQ-64: 64 codes.
    """

    name: str
    family: str
    kl_weight: float = 0.004
    noise_scale: float = 0.0
    codes: int = 0

    @classmethod
    def named(cls, name: str) -> "Variant":
        """The variant of that name. Anything else: ValueError."""
        letters, _, digits = name.partition("-")
        one_of("family", letters, FAMILIES)
        require(digits.isdigit() and int(digits) > 0, f"variant is {name!r}; expected a name like S-04, F-02 or VQ-64")
        family, strength = FAMILIES[letters], int(digits)
        if family == "fixed_variance":
            return cls(name, family, noise_scale=strength / 10)
        if family == "vq":
            return cls(name, family, codes=strength)
        return cls(name, family, kl_weight=strength / 1000)


@dataclass(frozen=True)
class Point:
    """One way of sampling. project_ar, project_decoder: whether tokens are projected on their way there."""

    guidance_scale: float
    schedule: str = "linear"
    project_ar: bool = True
    project_decoder: bool = True


@dataclass(frozen=True)
class Grid(Config):
    """What is compared: variants x seeds, each cell trained once and sampled in all the ways below.

    scales: guidance scales under the linear schedule.  constant_scales: under the constant one.
    ablation_scales: where projection is left out on one side or both, in families that have one.
    """

    name: str
    preset: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    vae_steps: int
    ar_steps: int
    images: int
    solver_steps: int
    scales: tuple[float, ...]
    constant_scales: tuple[float, ...] = ()
    ablation_scales: tuple[float, ...] = ()

    def check(self) -> None:
        for name in self.variants:
            Variant.named(name)
        for name in ("vae_steps", "ar_steps", "solver_steps"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        require(self.images >= 20, f"images is {self.images}; expected at least 20")
        for name in ("variants", "seeds", "scales"):
            require(len(getattr(self, name)) > 0, f"{name} is empty; expected at least one")

    @property
    def cells(self) -> list[tuple[str, int]]:
        """(variant, seed), seed by seed, so that what is done first is already balanced."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]

    def points(self, has_projection: bool) -> list[Point]:
        """All ways a cell is sampled in."""
        points = [Point(scale) for scale in self.scales]
        points += [Point(scale, "constant") for scale in self.constant_scales]
        if has_projection:
            sides = ((False, True), (True, False), (False, False))
            points += [Point(s, "linear", ar, decoder) for s in self.ablation_scales for ar, decoder in sides]
        return points

    def scaled(self, factor: float) -> "Grid":
        """Less training and fewer images, by one factor for every cell."""
        return replace(
            self,
            vae_steps=max(LEAST_STEPS, round(factor * self.vae_steps)),
            ar_steps=max(LEAST_STEPS, round(factor * self.ar_steps)),
            images=max(LEAST_IMAGES, round(factor * self.images)),
        )


GRIDS = {
    "quick": Grid(
        "quick", "digits", ("S-04", "N-04", "G-04", "F-02"), seeds=(0, 1), vae_steps=300, ar_steps=500, images=200,
        solver_steps=25, scales=(1.0, 2.0, 4.5, 8.0), ablation_scales=(4.5,),
    ),
    "full": Grid(
        "full", "digits",
        ("S-04", "G-04", "N-04", "F-02", "D-04", "vMF-04", "VQ-64",
         "S-01", "G-01", "N-01", "F-01", "S-16", "G-16", "N-16", "F-05"),
        seeds=(0, 1, 2), vae_steps=600, ar_steps=1000, images=500, solver_steps=25,
        scales=(1.0, 2.0, 3.0, 4.5, 8.0, 12.0), constant_scales=(2.0, 4.5), ablation_scales=(2.0, 4.5, 8.0),
    ),
    "shapes": Grid(
        "shapes", "shapes",
        ("S-04", "G-04", "N-04", "F-02", "D-04", "vMF-04", "VQ-256",
         "S-01", "G-01", "N-01", "F-01", "S-16", "G-16", "N-16", "F-05"),
        seeds=(0, 1, 2), vae_steps=20_000, ar_steps=60_000, images=2000, solver_steps=100,
        scales=(1.0, 2.0, 3.0, 4.5, 8.0, 12.0), constant_scales=(2.0, 4.5), ablation_scales=(2.0, 4.5, 8.0),
    ),
    "laws": Grid(
        "laws", "digits3", ("S-04", "G-04", "VQ-3"), seeds=(0,), vae_steps=600, ar_steps=1000, images=100,
        solver_steps=25, scales=(1.0, 2.0),
    ),
}  # fmt: skip


def grid_named(name: str) -> Grid:
    """The grid of that name. Unknown names: ValueError with the known."""
    one_of("grid", name, GRIDS)
    return GRIDS[name]
