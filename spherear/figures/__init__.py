"""Figures: numbers in, a figure out."""
