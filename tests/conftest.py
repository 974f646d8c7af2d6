"""Shared by every test: one thread per worker's share of the machine, and no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
