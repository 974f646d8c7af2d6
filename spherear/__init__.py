"""spherear: hyperspherical latents for continuous-token autoregressive image generation.

The names most programs need, imported when they are first used; everything else is in the wings: `sphere`, `models`,
`sampling`, `training`, `evaluation`, `train`, `analysis`, `bench`, `study`, `figures`, `live`.
"""

from typing import TYPE_CHECKING

from spherear.lazy import export_lazily

if TYPE_CHECKING:
    from spherear.models.ar import ARConfig as ARConfig
    from spherear.models.ar import SphereAR as SphereAR
    from spherear.models.presets import preset as preset
    from spherear.models.vae import VAE as VAE
    from spherear.models.vae import VAEConfig as VAEConfig
    from spherear.sampling.decode import Step as Step
    from spherear.sampling.decode import decode as decode
    from spherear.sampling.noise import seeded_noise as seeded_noise
    from spherear.sampling.pipeline import Frame as Frame
    from spherear.sampling.pipeline import Pipeline as Pipeline
    from spherear.sampling.pipeline import load_published as load_published
    from spherear.sampling.pixels import save_png as save_png
    from spherear.sampling.pixels import tile as tile
    from spherear.sampling.pixels import to_uint8 as to_uint8
    from spherear.sampling.settings import SamplingSettings as SamplingSettings

__version__ = "0.1.0"

export_lazily(
    globals(),
    {
        "spherear.models.ar": ("ARConfig", "SphereAR"),
        "spherear.models.presets": ("preset",),
        "spherear.models.vae": ("VAE", "VAEConfig"),
        "spherear.sampling.decode": ("Step", "decode"),
        "spherear.sampling.noise": ("seeded_noise",),
        "spherear.sampling.pipeline": ("Frame", "Pipeline", "load_published"),
        "spherear.sampling.pixels": ("save_png", "tile", "to_uint8"),
        "spherear.sampling.settings": ("SamplingSettings",),
    },
)
