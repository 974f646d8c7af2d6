"""Small models on the CPU: the network in numpy, as an engine, and several models of one shape at once.

A step of a small model is some three hundred operations on a few rows, and calling one takes longer than computing it.
Numpy's calls take less than torch's, and models of one shape share them. No results depend on it, but for rounding.
"""
