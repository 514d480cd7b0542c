"""Normalization: divide by an upper bound of the largest singular value, without overflow.

The square of a value near the end of float32's range does not fit in it, so every norm is
taken after a division by the largest entry. That division is exact for a power of two, and
makes 1e-30 and 1e30 as easy as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frobenius_normalize", "largest_entry", "schatten4_scale"]


def largest_entry(x: Tensor) -> Tensor:
    """Return max |x_ij| of each matrix, shape (..., 1, 1), with 1 for a zero matrix."""
    amax = x.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(amax == 0, torch.ones_like(amax), amax)


def _safe_norm(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return torch.where(norm == 0, torch.ones_like(norm), norm)


def frobenius_normalize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x / ||x||_F`` of each matrix in `dtype`, computed in float32 or wider.

    Args:
        x: (..., m, n), floating, any scale.
        dtype: The result's dtype.

    Returns:
        A new tensor; zero matrices stay zero, a matrix with a NaN becomes NaN alone.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x = x.to(wide)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    low, high = torch.finfo(wide).tiny ** 0.5 * 1e3, torch.finfo(wide).max ** 0.5 / 1e3
    # The squares inside a norm between these bounds neither overflow nor vanish, and one
    # division suffices; NaN takes the slow way too, which keeps it inside its own matrix.
    if x.device.type == "cpu" and bool(((norm > low) & (norm < high)).all()):
        return (x / norm).to(dtype)
    x = x / largest_entry(x)
    return (x / _safe_norm(x)).to(dtype)


def schatten4_scale(gram: Tensor) -> Tensor:
    """Return ``||X X^T||_F^(-1/2)``, the factor by which X is divided by its Schatten-4 norm.

    Args:
        gram: (..., n, n), the Gram matrix of a normalized X (entries of order one at most).

    Returns:
        (..., 1, 1) in float32 or wider; 1 for a zero matrix.
    """
    wide = torch.promote_types(gram.dtype, torch.float32)
    return _safe_norm(gram.to(wide)).rsqrt()
