"""Warm starts inside a training run: a plain loop, Lightning, the Hugging Face Trainer."""
