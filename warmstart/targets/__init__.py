"""First station: which tensors are shrunk, and over which dimensions one unit of each extends."""
