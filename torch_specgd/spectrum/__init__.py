"""Singular values over training: measured, tracked, shown, and how fast LoRA's can grow."""
