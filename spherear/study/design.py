"""The design of a study: variants of the latents, seeds and sampling settings, as data. Does not import torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from spherear.models.config import Config, one_of, require
from spherear.models.files import read_json
from spherear.models.heads.table import HEADS, HeadKind
from spherear.models.sizes import AUTO
from spherear.registry import Table, needed_modules
from spherear.sampling.settings import SamplingSettings, can_honour, check_settings
from spherear.sampling.solvers import SOLVERS, SPACINGS
from spherear.sphere.families import FAMILIES, family_of_letter
from spherear.training.jobs import PROPOSED
from spherear.training.recipes import RECIPES, recipes

MIN_STEPS = 20  # minimum of training steps for any budget
MIN_IMAGES = 100
HALVES = ("", "a", "b")  # of the real images; see `study.reference.held_out`


@dataclass(frozen=True)
class Variant:
    """A family with one setting of its strength, named as in the paper's figure 4.

    S-04, vMF-04, G-04, N-04, D-04: KL weight 0.004.  F-02: noise scale 0.2.  VQ-64: 64 codes.
    S-04@geodesic: the same with that row of HEADS; without one, the head that suits the tokens (auto).
    """

    name: str
    family: str
    kl_weight: float = 0.004
    noise_scale: float = 0.0
    codes: int = 0
    head: str = AUTO

    @classmethod
    def named(cls, name: str) -> "Variant":
        """The variant of that name. An invalid name: ValueError."""
        latent, at, head = name.partition("@")
        letter, _, digits = latent.partition("-")
        row = family_of_letter(letter)
        require(digits.isdigit() and int(digits) > 0, f"variant is {name!r}; expected a name like S-04, F-02 or VQ-64")
        if at:
            one_of(f"the head of variant {name!r}", head, HEADS)
            wanted = "codes" if row.discrete else "numbers"
            fits = HEADS[head].discrete == row.discrete
            require(fits, f"the head of variant {name!r} is {head!r}; expected one of those for {wanted}")
        strength: dict[str, Any] = {row.strength: int(digits) if row.unit == 1 else round(int(digits) * row.unit, 9)}
        return cls(name, row.name, **strength, head=head or AUTO)

    @property
    def head_kind(self) -> HeadKind:
        """The row of HEADS."""
        auto = "categorical" if FAMILIES[self.family].discrete else "velocity"
        return HEADS[auto if self.head == AUTO else self.head]

    @property
    def latent(self) -> str:
        """The name without a head: variants of one latent have the same VAE."""
        return self.name.partition("@")[0]

    @property
    def teacher(self) -> "Variant":
        """The variant with the velocity whose averages this one's head learns: flat, or along great circles."""
        return Variant.named(f"{self.latent}@geodesic" if self.head_kind.curved else self.latent)


def default_variants(families: Iterable[str] = FAMILIES) -> tuple[str, ...]:
    """The variants listed in the table of families: the first of every family, then the second of each, and so on."""
    rounds = zip_longest(*([f"{FAMILIES[f].letter}-{v}" for v in FAMILIES[f].variants] for f in families))
    return tuple(name for names in rounds for name in names if name is not None)


@dataclass(frozen=True)
class Point:
    """One sampling setting. project_ar, project_decoder: project tokens before the AR model, before the decoder.

    solver, steps: instead of the grid's; empty, 0: the grid's.
    """

    guidance_scale: float
    schedule: str = "linear"
    project_ar: bool = True
    project_decoder: bool = True
    solver: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Grid(Config):
    """A grid of variants x seeds: each cell is trained once and sampled with every setting below.

    scales: guidance scales with the linear schedule.  constant_scales: with the constant schedule.
    ablation_scales: scales also sampled without projection on one side or both, for families that have a projection.
    solver, spacing: of the sampling settings.  methods: other solvers and their steps, such as euler-4, with which
    every scale is drawn too.  Heads are drawn with what they can honour.
    distill_steps: of heads of average velocities, which then learn from the variant whose velocity they average; 0:
    they are trained from scratch.  batch_size: images per training step; 0: those of the recipe.
    half: of the real images, see `study.reference.held_out`.
    latent_dim: numbers per token; 0: as in the preset.
    preset: sizes and recipe, or `proposed` from the data.  data: instead of the preset's.  judge: see
    `study.judges.find_judge`; empty: the one of the data.  selection: the study that chose the best points, on other
    seeds, where its records ship; empty: every other seed of this one.  models: a study of the same sizes and training,
    whose trained models are taken where its folder lies beside this one's.
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
    solver: str = "euler_maruyama"
    spacing: str = "even"
    methods: tuple[str, ...] = ()
    distill_steps: int = 0
    batch_size: int = 0
    half: str = ""
    latent_dim: int = 0
    data: str = ""
    judge: str = ""
    selection: str = ""
    models: str = ""

    def check(self) -> None:
        one_of("preset", self.preset, (PROPOSED, *RECIPES))
        for name in ("variants", "seeds", "scales"):
            require(len(getattr(self, name)) > 0, f"{name} is empty; expected at least one")
        require(self.preset != PROPOSED or bool(self.data), f"preset is {PROPOSED!r} without data; expected some")
        for name in self.variants:
            Variant.named(name)
        for name in ("vae_steps", "ar_steps", "solver_steps"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        for method in self.methods:
            solver, _, steps = method.rpartition("-")
            require(steps.isdigit() and int(steps) > 0, f"method is {method!r}; expected one like euler-4")
            one_of("solver", solver, SOLVERS)
        one_of("half", self.half, HALVES)
        require(self.latent_dim >= 0, f"latent_dim is {self.latent_dim}; expected 1 or more, or 0 for the preset's")
        require(self.batch_size >= 0, f"batch_size is {self.batch_size}; expected 1 or more, or 0 for the recipe's")
        require(self.distill_steps >= 0, f"distill_steps is {self.distill_steps}; expected 1 or more, or 0 for none")
        for variant in map(Variant.named, self.variants):
            if not self.points(True, variant.head_kind):
                check_settings(variant.head_kind, self.settings(Point(self.scales[0])))
        require(self.images >= 20, f"images is {self.images}; expected at least 20")

    def needed_modules(self) -> list[str]:
        """The modules of one's own that registered families of the variants, the solver or the spacing."""
        variants = [Variant.named(name) for name in self.variants]
        parts = [(table, part) for v in variants for table, part in ((FAMILIES, v.family), (HEADS, v.head))]
        return needed_modules([*parts, (SOLVERS, self.solver), (SPACINGS, self.spacing)])

    @property
    def data_spec(self) -> str:
        """The data set."""
        return self.data or recipes(self.preset).data

    def on(self, data: str, judge: str = "", proposed: bool = False) -> "Grid":
        """The grid on another data set and judge, where they are not empty. proposed: sizes too are those of the data.

        ValueError for a class with too few pictures to hold some out.
        """
        if not data:
            return replace(self, judge=judge or self.judge)
        from spherear.training.data.catalog import training_part

        sizes = PROPOSED if proposed else self.preset
        return replace(self, data=training_part(data), judge=judge or self.judge, preset=sizes)

    @property
    def cells(self) -> list[tuple[str, int]]:
        """(variant, seed) pairs, ordered by seed, so that a partial study already covers all variants."""
        return [(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def rounds(self) -> list[list[tuple[str, int]]]:
        """The cells by their needs: each latent's own, then heads that take its VAE, then those that are taught.

        Where another study has trained the VAEs, no head waits for one.
        """

        def order(name: str) -> int:
            return 2 if self.teacher_of(Variant.named(name)) else int("@" in name and not self.models)

        return [[cell for cell in self.cells if order(cell[0]) == number] for number in range(3)]

    def teacher_of(self, variant: Variant) -> Variant | None:
        """The variant whose head this one's is distilled from; None: it is trained from scratch."""
        return variant.teacher if self.distill_steps and variant.head_kind.takes_scale else None

    def points(self, has_projection: bool, head: HeadKind = HEADS["velocity"]) -> list[Point]:
        """All sampling settings of a cell that its head can honour; a categorical head has no solver to vary."""
        points = [Point(scale) for scale in self.scales]
        points += [Point(scale, "constant") for scale in self.constant_scales]
        if has_projection:
            sides = ((False, True), (True, False), (False, False))
            points += [Point(s, "linear", ar, decoder) for s in self.ablation_scales for ar, decoder in sides]
        if not head.discrete:
            pairs = [(solver, int(steps)) for solver, _, steps in (method.rpartition("-") for method in self.methods)]
            points += [Point(s, solver=solver, steps=steps) for solver, steps in pairs for s in self.scales]
        return [point for point in points if can_honour(head, self.settings(point))]

    def settings(self, point: Point) -> SamplingSettings:
        """The sampling settings of a point, without what happens after the last token."""
        return SamplingSettings(
            point.guidance_scale, point.schedule, point.solver or self.solver, point.steps or self.solver_steps,
            project=point.project_ar, spacing=self.spacing,
        )  # fmt: skip

    def scaled(self, factor: float) -> "Grid":
        """A copy with training steps and images multiplied by `factor`, down to the minima above."""
        return replace(
            self,
            vae_steps=max(MIN_STEPS, round(factor * self.vae_steps)),
            ar_steps=max(MIN_STEPS, round(factor * self.ar_steps)),
            images=max(MIN_IMAGES, round(factor * self.images)),
        )


def grid_row(grid: Any) -> Grid:
    """The grid. TypeError for anything else."""
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is {grid!r}; expected a Grid")
    return grid


_ROWS = {
    "quick": Grid(
        "quick", "shapes", ("S-02", "G-02"), seeds=(0, 1), vae_steps=1200, ar_steps=1500, images=500,
        solver_steps=10, solver="adams_bashforth", scales=(1.0, 2.0, 4.5, 12.0),
    ),
    "full": Grid(
        "full", "digits", default_variants(), seeds=(0, 1, 2), vae_steps=600, ar_steps=1000, images=500,
        solver_steps=10, solver="adams_bashforth",
        scales=(1.0, 2.0, 3.0, 4.5, 8.0, 12.0), constant_scales=(2.0, 4.5), ablation_scales=(2.0, 4.5, 8.0),
    ),
    "select": Grid(  # to choose every family's strength, on seeds and real images that `report` lacks
        "select", "shapes", tuple(f"{letter}-{digits}" for letter in "SNGF" for digits in ("01", "02", "04")),
        seeds=(6, 7), vae_steps=1500, ar_steps=2000, batch_size=64, images=2000,
        solver_steps=10, solver="adams_bashforth", half="a",
        scales=(1.0, 3.0, 4.5, 8.0, 12.0),
    ),
    "report": Grid(
        "report", "shapes", ("S-02", "N-02", "G-04", "F-04"),  # the best of `select`
        seeds=(0, 1, 2, 3, 4, 5), vae_steps=4000, ar_steps=5000, batch_size=64, images=5000,
        solver_steps=10, solver="adams_bashforth", half="b",
        scales=(1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 12.0, 20.0), constant_scales=(2.0, 4.5), ablation_scales=(12.0,),
        selection="select",
    ),
    "doubled": Grid(  # cells of `select` trained twice as long: does its order depend on the budget?
        "doubled", "shapes", ("S-02", "N-02", "G-02", "F-02"),
        seeds=(6,), vae_steps=6000, ar_steps=6000, images=2000,
        solver_steps=10, solver="adams_bashforth", half="a",
        scales=(1.0, 3.0, 4.5, 6.0, 8.0, 12.0, 20.0),
    ),
    "heads": Grid(
        "heads", "digits",  # of three models of `full`
        (
            "S-04", "N-04", "G-04", "S-04@geodesic", "N-04@geodesic",
            "S-04@mean_velocity", "N-04@mean_velocity", "G-04@mean_velocity",
            "S-04@geodesic_mean", "N-04@geodesic_mean",
        ),
        seeds=(0, 1, 2), vae_steps=600, ar_steps=1000, distill_steps=600, images=500, solver_steps=100, models="full",
        scales=(1.0, 2.0, 3.0, 4.5, 8.0), methods=("heun-50", "euler-10", "euler-4", "euler-2", "euler-1"),
    ),
    "laws": Grid(
        "laws", "digits3", ("S-04", "G-04", "VQ-3"), seeds=(0,), vae_steps=600, ar_steps=1000, images=100,
        solver_steps=25, scales=(1.0, 2.0),
    ),
}  # fmt: skip
_ROWS |= {  # lengths of the sequence, at equal everything else; many small steps suit a CPU
    name: replace(
        _ROWS["report"], name=name, preset=sizes, seeds=(0, 1, 2), vae_steps=5000, batch_size=8, images=1000,
        scales=(1.0, 3.0, 4.5, 8.0, 12.0, 20.0), constant_scales=(), ablation_scales=(), selection="",
    )
    for name, sizes in (("length16", "shapes16"), ("length64", "shapes"), ("length256", "shapes256"))
}  # fmt: skip
_ROWS |= {  # numbers per token, at equal everything else; at 4 they are those of length64
    f"dim{dim}": replace(
        _ROWS["length64"], name=f"dim{dim}", variants=("S-02", "N-02", "G-04"), latent_dim=dim, scales=(1.0, 4.5, 12.0),
    )
    for dim in (2, 8)
}  # fmt: skip
_ROWS["others"] = replace(  # what length64 lacks, at its weight of S; 256 codes hold as many nats
    _ROWS["length64"], name="others", variants=("vMF-02", "D-02", "G-02", "VQ-256"),
)  # fmt: skip
_ROWS["heads-colour"] = replace(  # heads of three models of `report`
    _ROWS["report"], name="heads-colour", seeds=(0, 4, 5), models="report", selection="",
    variants=(
        "S-02", "N-02", "G-04", "S-02@geodesic", "N-02@geodesic",
        "S-02@mean_velocity", "N-02@mean_velocity", "G-04@mean_velocity",
        "S-02@geodesic_mean", "N-02@geodesic_mean",
    ),
    distill_steps=1000, images=1000, solver="euler_maruyama", solver_steps=100, scales=(1.0, 3.0, 4.5, 8.0, 12.0),
    constant_scales=(), ablation_scales=(), methods=("euler-10", "euler-4", "euler-2", "euler-1"),
)  # fmt: skip
_ROWS["heads-scratch"] = replace(  # those of few evaluations, without a teacher
    _ROWS["heads"], name="heads-scratch", distill_steps=0, ar_steps=2000,
    variants=tuple(name for name in _ROWS["heads"].variants if Variant.named(name).head_kind.takes_scale),
)  # fmt: skip
GRIDS = Table[Grid](_ROWS, grid_row)
"""Grids by name. One's own: `GRIDS.register(Grid(...))`, or a JSON file of the fields of `Grid`."""


def find_grid(name: str, data: str = "") -> Grid:
    """A row of GRIDS, or the grid in a JSON file: the fields of `Grid`, or the grid.json of a study.

    data: what a file without data of its own is for.  ValueError for an unknown name or other contents;
    FileNotFoundError for a file that is not there.
    """
    if not name.endswith(".json"):
        one_of("grid", name, GRIDS)
        return GRIDS[name]
    values = read_json(Path(name))
    inner = values.get("grid", values)
    require(isinstance(inner, dict), f"{name} holds the grid {inner!r}; expected a JSON object")
    return Grid.from_dict({"data": data, **inner})
