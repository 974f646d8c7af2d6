"""The parts of a run: data, recipes, losses, state, progress."""
