"""The idea: points, laws and latents of fixed length."""
