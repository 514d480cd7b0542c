"""Dataset pruning."""
