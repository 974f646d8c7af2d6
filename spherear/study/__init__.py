"""Comparisons of families and solvers: what is compared, how it is measured, what the records say."""
