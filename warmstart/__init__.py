"""Warm starts."""
