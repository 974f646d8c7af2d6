"""Measurements of tokens and images: tensors in, dataclasses out. Plots are in `figures`."""
