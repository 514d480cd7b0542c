"""Warm starts without loss of plasticity: direction-aware shrinking (DASH) and its peers.

>>> from warmstart import dash_shrink
"""

from .apply import apply_factors
from .dash import dash_shrink
from .direction import GradientDirection
from .factors import shrink_factors, unit_cosine
from .report import ShrinkReport
from .targets import Target, find_targets

__all__ = [
    "GradientDirection",
    "ShrinkReport",
    "Target",
    "apply_factors",
    "dash_shrink",
    "find_targets",
    "shrink_factors",
    "unit_cosine",
]
