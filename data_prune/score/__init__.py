"""Recorded values -> scores, the table that holds them, and its file."""
