"""Orthogonalization on any number of ranks: layout, owners, exchange, in the order of the data.

The files are imported by name: `layout` needs nothing of the package, `orthogonalize` needs all.
"""
