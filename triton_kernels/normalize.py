"""Normalization: divide by an upper bound of the largest singular value, without overflow.

Both bounds come for nothing once the Gram matrix R = X X^T exists: its trace is the squared
Frobenius norm of X, and the root of its own Frobenius norm is the Schatten-4 norm of X, which
lies between the largest singular value and the Frobenius norm. So X is never divided: R is
scaled, and the first polynomial takes X's factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .products import Products

__all__ = ["largest_entry", "normalized_gram", "prescale"]

# Between these, neither the entries of R nor the squares inside its norm leave float32.
_LOW, _HIGH = 1e-14, 1e18


def largest_entry(x: Tensor) -> Tensor:
    """Return max |x_ij| of each matrix, shape (..., 1, 1), with 1 for a zero matrix."""
    amax = x.abs().amax(dim=(-2, -1), keepdim=True)
    return torch.where(amax == 0, torch.ones_like(amax), amax)


def prescale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in `dtype` with every matrix scaled to Frobenius norm one, in float32 or wider.

    Args:
        x: (b, n, m), floating, any scale.
        dtype: The result's dtype.

    Returns:
        A new tensor; zero matrices stay zero, a matrix with a NaN is NaN in itself alone.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    # The largest entry first: the square of 1e30 does not fit in float32.
    x = x.to(wide) / largest_entry(x).to(wide)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return (x / torch.where(norm == 0, torch.ones_like(norm), norm)).to(dtype)


def _gram_bound(r: Tensor, normalization: str) -> Tensor:
    """Return an upper bound of the largest eigenvalue of R: its trace or its Frobenius norm."""
    wide = torch.promote_types(r.dtype, torch.float32)
    if normalization == "frobenius":
        return r.diagonal(dim1=-2, dim2=-1).to(wide).sum(-1)[..., None, None]
    return torch.linalg.vector_norm(r, dim=(-2, -1), keepdim=True, dtype=wide)


def normalized_gram(
    x: Tensor, dtype: torch.dtype, normalization: str, ops: Products
) -> tuple[Tensor, Tensor, Tensor]:
    """Return X in `dtype`, the Gram matrix of the normalized X, and the factor that X still lacks.

    Args:
        x: (b, n, m), n <= m.
        dtype: Dtype of the arithmetic.
        normalization: "frobenius" or "schatten4".
        ops: The products.

    Returns:
        x (b, n, m) in `dtype`, ``factor^2 X X^T`` (b, n, n) and factor (b, 1, 1) in float32
        or wider, so that ``factor * x`` is the normalized matrix.
    """
    # float16 has no room for a Gram matrix of any scale, and a GPU cannot look whether one of
    # the members needs it without a synchronization, so there X itself is scaled.
    on_cpu = x.device.type == "cpu"
    y = x.to(dtype) if on_cpu and dtype != torch.float16 else prescale(x, dtype)
    r = ops.gram(y)
    bound = _gram_bound(r, normalization)
    lost = ~((bound > _LOW) & (bound < _HIGH)).flatten()
    if on_cpu and bool(lost.any()):
        # Rare: zero, tiny, huge or broken members are done again at a scale of one.
        y = y.clone() if y is x else y
        y[lost] = prescale(x[lost], dtype)
        r[lost] = ops.gram(y[lost])
        bound[lost] = _gram_bound(r[lost], normalization)
    bound = torch.where(bound == 0, torch.ones_like(bound), bound)
    # Rounded once, so that R and the factor that X takes later are of the same scale.
    scale = bound.reciprocal().to(dtype)
    return y, r.mul_(scale), scale.to(bound.dtype).sqrt()
