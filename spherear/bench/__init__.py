"""What decoding and training cost, as ratios measured in one run."""

MEASUREMENTS = ("decode", "latency", "growth", "memory", "train", "image", "head")
"""What `spherear bench` measures; `bench.command` has a function for each."""
