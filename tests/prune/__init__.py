"""Tests of this part, in files by what they guard."""
