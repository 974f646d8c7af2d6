"""What decoding and training cost, as ratios measured in one run."""
