"""Killed writers, damaged files, states of other kinds: refused in one line, or right."""
