"""Benchmarks of decoding and training, as ratios measured in one run."""

MEASUREMENTS = {
    "decode": "every engine against the plain reference and the machine's limits, with random weights",
    "latency": "waiting time for digits, per named settings",
    "growth": "time over tokens",
    "memory": "memory over solver steps",
    "train": "a training step, encoding at every step and with cached posteriors",
}
"""The measurements of `spherear bench`, by name; `bench.command` holds the functions."""
