"""The methods that follow no plan: exact decompositions, twelve steps, torch.optim.Muon's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule.named import SCHEDULES, Schedule
from .iteration import direct
from .normalize import begin, largest_entry
from .products import TorchProducts

_PRECISE_STEPS = 12


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


def precise(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the polar factor of (b, n, m) by twelve steps, in float32 or wider."""
    # The tail of the table is Taylor's quintic, which converges to the last digit.
    steps = SCHEDULES["polar_express_8"].steps
    steps += (steps[-1],) * (_PRECISE_STEPS - len(steps))
    schedule, ops = Schedule("precise", steps, 1.02, 1e-4), TorchProducts()
    return direct(begin(x, dtype, schedule.normalization, ops), schedule, ops)


def torch_muon(x: Tensor, schedule: Schedule, eps: float, dtype: torch.dtype) -> Tensor:
    """Do what torch.optim.Muon does, batched: the norm in `dtype`, clamped at eps."""
    x = x.to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in schedule.coefficients:
        r = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(r, r, r, beta=b, alpha=c), x, beta=a)
    return x
