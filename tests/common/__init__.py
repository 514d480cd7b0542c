"""Tests of the leaf that all parts may import."""
