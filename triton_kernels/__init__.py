"""Orthogonalization engine: Newton-Schulz on GPUs (Triton) and CPUs behind one function.

The documentation calls this part the engine; on disk it is `triton_kernels`.
"""

from .engine import orthogonalize, orthogonalize_together
from .multi_tensor import momentum_step, weight_step
from .planning.choose import plan
from .planning.plan import Plan
from .schedule.named import SCHEDULES, resolve_schedule
from .schedule.named import Coefficients as Coefficients
from .schedule.schedule import Schedule
from .spectral import eigenbasis, inverse_root, spectral_clip, spectral_power, spectral_smooth
from .workshop.certificate import Certificate, certify
from .workshop.cost import Cost, cost_on_paper
from .workshop.design import design_schedule

__all__ = [
    "SCHEDULES",
    "Certificate",
    "Cost",
    "Plan",
    "Schedule",
    "certify",
    "cost_on_paper",
    "design_schedule",
    "eigenbasis",
    "inverse_root",
    "momentum_step",
    "orthogonalize",
    "orthogonalize_together",
    "plan",
    "resolve_schedule",
    "spectral_clip",
    "spectral_power",
    "spectral_smooth",
    "weight_step",
]
