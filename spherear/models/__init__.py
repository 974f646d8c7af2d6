"""The models: VAE, AR model and its heads, with their presets and checkpoints."""
