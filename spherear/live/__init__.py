"""The live panels: widgets to put on the last line of a notebook cell. Needs the extra `lab`."""

from typing import TYPE_CHECKING

from spherear.lazy import export_lazily

if TYPE_CHECKING:
    from spherear.live.guidance import GuidanceExplorer as GuidanceExplorer
    from spherear.live.perturbation import PerturbationExplorer as PerturbationExplorer
    from spherear.live.sphere import SphereExplorer as SphereExplorer
    from spherear.live.token import TokenExplorer as TokenExplorer
    from spherear.live.training import TrainingMonitor as TrainingMonitor
    from spherear.training.observers import reconstructions as reconstructions
    from spherear.training.observers import samples as samples

export_lazily(
    globals(),
    {
        "spherear.live.guidance": ("GuidanceExplorer",),
        "spherear.live.perturbation": ("PerturbationExplorer",),
        "spherear.live.sphere": ("SphereExplorer",),
        "spherear.live.token": ("TokenExplorer",),
        "spherear.live.training": ("TrainingMonitor",),
        "spherear.training.observers": ("reconstructions", "samples"),
    },
)
