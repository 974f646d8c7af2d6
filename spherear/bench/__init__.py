"""What decoding and training cost, as ratios measured in one run."""

MEASUREMENTS = {
    "decode": "every engine against the plain reference and the machine's own ceilings, with random weights",
    "latency": "how long a person waits for digits, by named settings",
    "growth": "time over tokens",
    "memory": "memory over solver steps",
    "train": "a training step, encoding at every step and with cached posteriors",
}
"""What `spherear bench` measures, by the word that asks for it; `bench.command` holds the functions."""
