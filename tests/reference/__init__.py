"""Slow, obvious float64 truths that every fast path is held to. Not shipped."""
