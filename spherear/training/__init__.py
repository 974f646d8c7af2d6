"""The parts of a training run: data, recipes, losses, state and progress."""
