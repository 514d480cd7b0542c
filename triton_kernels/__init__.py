"""Orthogonalization engine: Newton-Schulz on GPUs (Triton) and CPUs behind one function."""

from .design import design_schedule
from .engine import orthogonalize
from .planning import Plan, plan
from .schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = [
    "SCHEDULES",
    "Plan",
    "Schedule",
    "design_schedule",
    "orthogonalize",
    "plan",
    "resolve_schedule",
]
