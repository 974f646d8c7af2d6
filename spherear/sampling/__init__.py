"""Sampling images: solvers, settings, the token loop and the pipeline around it."""
