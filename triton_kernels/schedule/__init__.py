"""Schedules: odd polynomials whose composition sends every singular value to one."""
