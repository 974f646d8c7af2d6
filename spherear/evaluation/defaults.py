"""What drawing and evaluating do unless asked otherwise: guidance and number of images of the sizes in the presets.

Importing this module does not import torch.
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal  # inherited annotations are read in this module

from spherear.models.heads.table import HEADS, HeadKind
from spherear.sampling.settings import SCHEDULES, SOLVERS, SPACINGS, SamplingSettings, check_settings  # noqa: F401

if TYPE_CHECKING:
    from spherear.models.ar import ARConfig

GUIDANCE = 2.0  # of a model of other sizes than the presets'
COUNT, OFFICIAL_COUNT = 2000, 50_000  # images to score; the latter where scores are published, for ImageNet
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Drawing(SamplingSettings):
    """Sampling settings of a command, whose guidance scale, solver and steps may be left open."""

    guidance_scale: float | None = None  # type: ignore[assignment]
    """s in v = v_null + s (v_cond - v_null); 1 is no guidance. None: that of the preset of the model's sizes, or 2."""

    solver: "Literal[*SOLVERS] | None" = None  # type: ignore[valid-type]
    """How a token is drawn from noise. None: euler_maruyama, or what the model's head takes."""
    steps: int | None = None  # type: ignore[assignment]
    """Solver steps per token. None: 100 of euler_maruyama, 50 of a geodesic head, 1 of a mean velocity."""

    def check(self) -> None:
        self._settings(GUIDANCE, HEADS["velocity"])

    def of(self, ar: "ARConfig") -> SamplingSettings:
        """The settings for an AR model of these sizes. ValueError for what its head cannot honour."""
        found = self._settings(preset_guidance(ar), ar.head_kind)
        check_settings(ar.head_kind, found)
        return found

    def _settings(self, guidance_scale: float, head: HeadKind) -> SamplingSettings:
        open_ones: dict[str, Any] = {"guidance_scale": guidance_scale, "solver": head.solver, "steps": head.steps}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return SamplingSettings(**open_ones | {name: value for name, value in values.items() if value is not None})


def preset_guidance(ar: "ARConfig") -> float:
    """The guidance scale of the preset with an AR model's sizes, whatever its classes; `GUIDANCE` if there is none."""
    from spherear.models.presets import PRESETS

    def sizes(config: "ARConfig") -> "ARConfig":
        return replace(config, codes=0, classes=(), num_classes=1, head="auto")

    return next((row.guidance_scale for row in PRESETS.values() if sizes(row.ar) == sizes(ar)), GUIDANCE)


def default_count(ar: "ARConfig") -> int:
    """Images to score: 50,000 for models of ImageNet's 1,000 classes, as published scores have it; else 2,000."""
    return OFFICIAL_COUNT if ar.num_classes == IMAGENET_CLASSES else COUNT
