"""What a run learns from: data sets by index, and the batches made of them."""

from spherear.training.data.catalog import load_data

__all__ = ["load_data"]
