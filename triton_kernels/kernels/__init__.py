"""Triton kernels, one file a family. Imported only where a GPU (or a test) asks for them."""
