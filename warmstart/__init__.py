"""Warm starts without loss of plasticity: direction-aware shrinking (DASH) and its peers.

Data flows through the folders in this order: ``targets`` (which tensors, in which units),
``direction`` (where descent would take each weight), ``shrink`` (factors, all or nothing, a
report), ``methods`` (one file for each). ``files`` does the same on checkpoints, ``loops`` inside a
run, and ``judge`` tells whether it helps.
"""

from .direction.gradient_direction import GradientDirection
from .files.head import head_state_dict
from .files.state_dicts import (
    fire_state_dict,
    perturb_state_dict,
    shrink_state_dict,
    uniform_state_dict,
)
from .files.undo import undo_state_dict
from .judge.compare import Comparison, compare
from .judge.diagnostics import Diagnostics
from .loops.warm_start import WarmStart
from .methods.dash import dash_shrink
from .methods.during_training import l2_init_penalty, rewarm_advice
from .methods.fire import fire_reinit
from .methods.head_reset import head_reset
from .methods.perturb import PRESETS, shrink_and_perturb
from .methods.recycle import recycle_units
from .methods.uniform import uniform_shrink
from .shrink.apply import apply_factors
from .shrink.factors import shrink_factors, unit_cosine
from .shrink.report import ShrinkReport
from .targets.find import Target, find_targets

__all__ = [
    "PRESETS",
    "Comparison",
    "Diagnostics",
    "GradientDirection",
    "ShrinkReport",
    "Target",
    "WarmStart",
    "apply_factors",
    "compare",
    "dash_shrink",
    "find_targets",
    "fire_reinit",
    "fire_state_dict",
    "head_reset",
    "head_state_dict",
    "l2_init_penalty",
    "perturb_state_dict",
    "recycle_units",
    "rewarm_advice",
    "shrink_and_perturb",
    "shrink_factors",
    "shrink_state_dict",
    "undo_state_dict",
    "uniform_shrink",
    "uniform_state_dict",
    "unit_cosine",
]
