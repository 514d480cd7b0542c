"""Orthogonalization engine: Newton-Schulz on GPUs (Triton) and CPUs behind one function."""

from .certificate import Certificate, certify
from .design import design_schedule
from .engine import orthogonalize
from .planning import Plan, plan
from .schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = [
    "SCHEDULES",
    "Certificate",
    "Plan",
    "Schedule",
    "certify",
    "design_schedule",
    "orthogonalize",
    "plan",
    "resolve_schedule",
]
