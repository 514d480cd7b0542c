"""Scores and a prune ratio -> the examples that stay."""
