"""The live panels, each a widget that shows itself as the last line of a notebook cell.

Knows: their names.  Does not know: anything else; `spherear.lab.panels` has a module for each. Needs the extra `lab`.
"""

from spherear.lab.panels.collapse import CollapseExplorer
from spherear.lab.panels.guidance import GuidanceExplorer
from spherear.lab.panels.sphere import SphereExplorer
from spherear.lab.panels.token import TokenExplorer
from spherear.lab.panels.training import TrainingMonitor, reconstructions, samples

__all__ = [
    "CollapseExplorer",
    "GuidanceExplorer",
    "SphereExplorer",
    "TokenExplorer",
    "TrainingMonitor",
    "reconstructions",
    "samples",
]
