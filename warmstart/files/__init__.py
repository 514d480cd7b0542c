"""The same methods on checkpoints: state dicts, files, and files with their model."""
