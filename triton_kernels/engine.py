"""`orthogonalize`: checks, the choice of method and precision, and the way through the parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .exact import smoothed_polar, svd_polar
from .iteration import direct, gram
from .products import TorchProducts
from .schedules import Schedule, ScheduleLike, is_triple, resolve_schedule

__all__ = ["METHODS", "orthogonalize"]

METHODS = ("auto", "newton_schulz", "gram", "precise", "svd", "smoothed")
_HALF = (torch.float16, torch.bfloat16)


def _check(x: Tensor, method: str, eps: float, smoothing: float, tolerance: float | None) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x must be a dense (strided) tensor, got layout {x.layout}")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(f"x must have a real floating dtype of at least 16 bits, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x must have at least 2 dimensions, got shape {tuple(x.shape)}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; accepted: {METHODS}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps}")
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ValueError(f"smoothing must be positive and finite, got {smoothing}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1), got {tolerance}")


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def arithmetic_dtype(x: Tensor, method: str) -> torch.dtype:
    """Return the dtype in which the iteration runs when the caller leaves it open.

    float64 input stays float64. bfloat16 is used only in the direct form, only where the
    short side exceeds 64 (below, float32 costs nothing and LoRA factors keep their accuracy)
    and only where the hardware multiplies it faster; float32 everywhere else.
    """
    if x.dtype == torch.float64:
        return torch.float64
    direct_form = method in ("auto", "newton_schulz")
    fast = x.is_cuda or (x.device.type == "cpu" and _cpu_has_bf16())
    if direct_form and min(x.shape[-2:]) > 64 and fast:
        return torch.bfloat16
    return torch.float32


def _torch_muon(x: Tensor, schedule: Schedule, eps: float, dtype: torch.dtype) -> Tensor:
    """Do what torch.optim.Muon does, batched: the norm in `dtype`, clamped at eps."""
    x = x.to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=eps)
    for a, b, c in schedule.steps:
        r = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(r, r, r, beta=b, alpha=c), x, beta=a)
    return x


def _iterate(
    x: Tensor,
    method: str,
    schedule: ScheduleLike,
    steps: int | None,
    eps: float,
    dtype: torch.dtype | None,
) -> Tensor:
    """Run one of the iterative methods on (b, n, m) with n <= m."""
    plan = resolve_schedule(schedule, steps)
    if method != "gram" and is_triple(schedule):
        return _torch_muon(x, plan, eps, dtype or torch.bfloat16)
    dtype = dtype or arithmetic_dtype(x, method)
    return (gram if method == "gram" else direct)(x, plan, TorchProducts(), dtype)


_PRECISE_STEPS = 12


def _precise(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Run Polar Express to convergence in float32 or wider: the tail is the Taylor quintic."""
    wide = dtype or torch.promote_types(x.dtype, torch.float32)
    plan = resolve_schedule("polar_express_8", _PRECISE_STEPS)
    return direct(x, plan, TorchProducts(), wide)


def _run(
    x: Tensor,
    method: str,
    schedule: ScheduleLike,
    steps: int | None,
    eps: float,
    dtype: torch.dtype | None,
    smoothing: float,
    tolerance: float | None,
) -> Tensor:
    """Dispatch on (b, m, n), batch not empty."""
    if method in ("svd", "smoothed"):
        wide = torch.promote_types(dtype or x.dtype, torch.float32)
        if method == "svd":
            return svd_polar(x.to(wide), tolerance)
        return smoothed_polar(x.to(wide), smoothing)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    if method == "precise":
        y = _precise(x, dtype)
    else:
        y = _iterate(x, method, schedule, steps, eps, dtype)
    return y.mT if tall else y


def orthogonalize(
    x: Tensor,
    *,
    method: str = "auto",
    schedule: ScheduleLike = None,
    steps: int | None = None,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
    smoothing: float = 1e-2,
    tolerance: float | None = None,
) -> Tensor:
    r"""Replace every singular value of a matrix by one, or nearly so.

    .. math:: X = U \Sigma V^T \;\mapsto\; U V^T

    Args:
        x: (..., m, n), any real floating dtype of at least 16 bits, any strides; leading
            dimensions are a batch. Never changed.
        method: "auto" and "newton_schulz" run the direct Newton-Schulz form, "gram" the form
            on the Gram matrix, "precise" iterates until singular values are within 1e-3 of one
            (condition numbers up to 1e4), "svd" is the exact compact polar factor and
            "smoothed" maps s to ``s / sqrt(s^2 + smoothing^2)``.
        schedule: None (five Polar Express steps with safety factor 1.02), a name in
            `SCHEDULES`, coefficients, or a `Schedule`. One bare (a, b, c) triple reproduces
            torch.optim.Muon: bfloat16, norm clamped at `eps`.
        steps: Number of steps, default the schedule's own.
        eps: Floor of the norm for a bare triple, default 1e-7. All else needs no floor: it
            normalizes 1e-30 as well as 1e30.
        dtype: Arithmetic of the iteration; default see `arithmetic_dtype`.
        smoothing: Unit of the singular values, default 1e-2; only for "smoothed".
        tolerance: Relative size below which "svd" takes a singular value for zero, default
            ``max(m, n) * eps``.

    Returns:
        (..., m, n) in x's dtype; a new tensor, whose memory layout is that of the computation
        (transposed for m > n), not necessarily contiguous.

    Raises:
        TypeError: For integer, complex, sparse or 8-bit input.
        ValueError: For fewer than two dimensions, or values outside the accepted ones.

    Source:
        Jordan et al., Muon; Polar Express (arXiv 2505.16932).

    Example:
        >>> import torch
        >>> q = orthogonalize(torch.randn(3, 8, 32), method="precise")
        >>> torch.allclose(q @ q.mT, torch.eye(8).expand(3, 8, 8), atol=2e-3)
        True
    """
    _check(x, method, eps, smoothing, tolerance)
    resolve_schedule(schedule, steps)
    if dtype is not None and dtype not in (*_HALF, torch.float32, torch.float64):
        raise TypeError(f"dtype must be a floating dtype of 16 to 64 bits, got {dtype}")
    if x.numel() == 0:
        return torch.empty_like(x)
    batch = x.detach().reshape(-1, *x.shape[-2:])
    y = _run(batch, method, schedule, steps, eps, dtype, smoothing, tolerance)
    return y.to(x.dtype).reshape(x.shape)
