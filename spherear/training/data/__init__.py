"""Training data: data sets read by index, and the batches made from them."""

from spherear.training.data.catalog import load_data

__all__ = ["load_data"]
