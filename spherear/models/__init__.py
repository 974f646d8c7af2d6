"""What is trained: the VAE, the velocity head, the AR model, their presets and checkpoints."""
