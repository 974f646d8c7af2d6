"""What is trained: the VAE, the velocity head, the AR model, their presets and checkpoints."""

from spherear.models.ar import ARConfig, SphereAR
from spherear.models.head import VelocityHead, flow_matching_loss
from spherear.models.layers import KVCache
from spherear.models.presets import PRESETS, Preset, preset
from spherear.models.vae import VAE, VAEConfig

__all__ = [
    "PRESETS",
    "VAE",
    "ARConfig",
    "KVCache",
    "Preset",
    "SphereAR",
    "VAEConfig",
    "VelocityHead",
    "flow_matching_loss",
    "preset",
]
