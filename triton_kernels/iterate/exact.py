"""Paths through an exact decomposition, in float32 or float64."""

from __future__ import annotations

import torch
from torch import Tensor

from .normalize import largest_entry


def svd_polar(x: Tensor, tolerance: float | None = None) -> Tensor:
    """Return the compact polar factor ``U_r V_r^T`` from the singular value decomposition.

    Directions whose singular value is at most ``tolerance * sigma_max`` stay zero, so the
    result of the zero matrix is zero and of a rank-r matrix has rank r.

    Args:
        x: (b, m, n), float32 or float64.
        tolerance: Relative, default ``max(m, n) * eps`` of the dtype.

    Returns:
        (b, m, n), same dtype.
    """
    if tolerance is None:
        tolerance = max(x.shape[-2:]) * torch.finfo(x.dtype).eps
    x = x / largest_entry(x)
    finite = x.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    # LAPACK refuses a whole batch for a NaN in one member, which is decomposed as zeros here.
    u, s, vh = torch.linalg.svd(torch.where(finite, x, 0.0), full_matrices=False)
    keep = (s > tolerance * s[..., :1]).to(x.dtype)
    return torch.where(finite, (u * keep[..., None, :]) @ vh, torch.nan)


def smoothed_polar(x: Tensor, smoothing: float) -> Tensor:
    """Return ``X (X^T X + smoothing^2 I)^(-1/2)``: ``s -> s / sqrt(s^2 + smoothing^2)``.

    Args:
        x: (b, m, n), float32 or float64.
        smoothing: Positive, in the unit of x's singular values.

    Returns:
        (b, m, n), same dtype.
    """
    finite = x.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    scale = largest_entry(torch.where(finite, x, 0.0))
    u, s, vh = torch.linalg.svd(torch.where(finite, x, 0.0) / scale, full_matrices=False)
    shrunk = s / torch.hypot(s, torch.full_like(s, smoothing) / scale[..., 0])
    return torch.where(finite, (u * shrunk[..., None, :]) @ vh, torch.nan)
