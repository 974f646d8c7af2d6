"""spherear: hyperspherical latents for continuous-token autoregressive image generation.

The names most programs need; everything else is in the wings: `sphere`, `models`, `sampling`, `training`,
`evaluation`, `train`, `lab`.
"""

from spherear.models import VAE, ARConfig, SphereAR, VAEConfig, preset
from spherear.sampling import (
    Frame,
    Pipeline,
    SamplingSettings,
    Step,
    decode,
    load_published,
    save_png,
    seeded_noise,
    tile,
    to_uint8,
)

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "ARConfig",
    "Frame",
    "Pipeline",
    "SamplingSettings",
    "SphereAR",
    "Step",
    "VAEConfig",
    "decode",
    "load_published",
    "preset",
    "save_png",
    "seeded_noise",
    "tile",
    "to_uint8",
]
