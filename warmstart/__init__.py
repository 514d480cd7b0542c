"""Warm starts without loss of plasticity: direction-aware shrinking (DASH) and its peers.

>>> from warmstart import dash_shrink
"""

from .apply import apply_factors
from .checkpoint import (
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    undo_state_dict,
    uniform_state_dict,
)
from .compare import Comparison, compare
from .dash import dash_shrink
from .diagnostics import Diagnostics
from .direction import GradientDirection
from .factors import shrink_factors, unit_cosine
from .fire import fire_reinit
from .peers import PRESETS, head_reset, shrink_and_perturb, uniform_shrink
from .report import ShrinkReport
from .targets import Target, find_targets
from .training import l2_init_penalty, rewarm_advice

__all__ = [
    "PRESETS",
    "Comparison",
    "Diagnostics",
    "GradientDirection",
    "ShrinkReport",
    "Target",
    "apply_factors",
    "compare",
    "dash_shrink",
    "find_targets",
    "fire_reinit",
    "fire_state_dict",
    "head_reset",
    "l2_init_penalty",
    "perturb_state_dict",
    "rewarm_advice",
    "shrink_and_perturb",
    "shrink_factors",
    "shrink_state_dict",
    "undo_state_dict",
    "uniform_shrink",
    "uniform_state_dict",
    "unit_cosine",
]
