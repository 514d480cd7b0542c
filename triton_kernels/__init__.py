"""Orthogonalization engine: Newton-Schulz on GPUs (Triton) and CPUs behind one function."""

from .certificate import Certificate, certify
from .cost import Cost, cost_on_paper
from .design import design_schedule
from .engine import orthogonalize
from .multi_tensor import momentum_step, weight_step
from .planning import Plan, plan
from .schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = [
    "SCHEDULES",
    "Certificate",
    "Cost",
    "Plan",
    "Schedule",
    "certify",
    "cost_on_paper",
    "design_schedule",
    "momentum_step",
    "orthogonalize",
    "plan",
    "resolve_schedule",
    "weight_step",
]
