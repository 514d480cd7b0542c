"""Spectral optimizers."""
