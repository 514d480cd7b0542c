"""Orthogonalization engine."""
