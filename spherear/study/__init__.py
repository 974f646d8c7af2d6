"""Comparisons of families and of solvers: design, execution, records and claims."""
