"""Spectral optimizers for PyTorch: Muon for any model, exact spectral gradient descent."""

from importlib.metadata import version

from .muon import Muon, muon
from .specgd import SpecGD, specgd
from .triton_kernels import orthogonalize

__all__ = ["Muon", "SpecGD", "muon", "orthogonalize", "specgd"]

__version__ = version("torch-specgd")
