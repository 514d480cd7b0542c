"""Orthogonalization engine: Newton-Schulz on GPUs (Triton) and CPUs behind one function."""

from .engine import orthogonalize
from .schedules import SCHEDULES, Schedule, resolve_schedule

__all__ = ["SCHEDULES", "Schedule", "orthogonalize", "resolve_schedule"]
