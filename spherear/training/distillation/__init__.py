"""Distillation: a head of few evaluations learns the guided flow of a velocity head; the transformer stays as it is."""
