"""spherear: hyperspherical latents for continuous-token autoregressive image generation."""

__version__ = "0.1.0"
