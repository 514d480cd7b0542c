"""Spectral optimizers for PyTorch: Muon for any model, exact spectral gradient descent."""

from importlib.metadata import version

from specgd_common.cuts import Interleaved

from .groups.lora import LoraPair, find_lora_pairs, lora_param_groups
from .groups.param_groups import ParamGroups, param_groups
from .muon import Muon
from .qk_clip import QKClip, qk_clip_
from .schedules.momentum_warmup import MomentumWarmup
from .schedules.step_sizes import (
    ConstantThenGeometric,
    ConstantThenLinear,
    TravelBudgetWarning,
    check_travel_budget,
)
from .specgd import SpecGD, specgd
from .spectrum.lora_report import lora_report
from .spectrum.measures import effective_rank, lora_singular_values, stable_rank
from .spectrum.tracker import SpectrumTracker
from .step.muon import muon
from .step.precondition import Eigenbasis, Shampoo
from .trainer import muon_for_trainer
from .triton_kernels import orthogonalize

__all__ = [
    "ConstantThenGeometric",
    "ConstantThenLinear",
    "Eigenbasis",
    "Interleaved",
    "LoraPair",
    "MomentumWarmup",
    "Muon",
    "ParamGroups",
    "QKClip",
    "Shampoo",
    "SpecGD",
    "SpectrumTracker",
    "TravelBudgetWarning",
    "check_travel_budget",
    "effective_rank",
    "find_lora_pairs",
    "lora_param_groups",
    "lora_report",
    "lora_singular_values",
    "muon",
    "muon_for_trainer",
    "orthogonalize",
    "param_groups",
    "qk_clip_",
    "specgd",
    "stable_rank",
]

__version__ = version("torch-specgd")
