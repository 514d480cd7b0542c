"""Warm starts without loss of plasticity: direction-aware shrinking (DASH) and its peers.

>>> from warmstart import dash_shrink
"""

from .apply import apply_factors
from .dash import dash_shrink
from .direction import GradientDirection
from .factors import shrink_factors, unit_cosine
from .fire import fire_reinit
from .peers import PRESETS, head_reset, shrink_and_perturb, uniform_shrink
from .report import ShrinkReport
from .targets import Target, find_targets

__all__ = [
    "PRESETS",
    "GradientDirection",
    "ShrinkReport",
    "Target",
    "apply_factors",
    "dash_shrink",
    "find_targets",
    "fire_reinit",
    "head_reset",
    "shrink_and_perturb",
    "shrink_factors",
    "uniform_shrink",
    "unit_cosine",
]
