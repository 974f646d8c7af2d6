"""How a run is carried out: what speeds it up or spreads it out, and leaves its result alone.

Knows: choices of execution, as data.  Does not know: models, data or recipes.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Engine:
    """Choices that may differ between a run and its continuation; the defaults are the plain path."""

    compile: bool = False
    """Compile the model's part of a step; needs a C++ compiler, and a minute or so at the start."""
    cache: Path | None = None
    """Folder for cached posteriors (see cached_copies), shared by runs on the same VAE; none: in memory."""
