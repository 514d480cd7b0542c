"""Functions of singular values and eigenvalues, by the engine's products alone."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .engine import orthogonalize
from .iterate.normalize import largest_entry
from .iterate.products import Products, TorchProducts
from .iterate.roots import inverse_root_of
from .iterate.run import as_written
from .schedule.schedule import ROOTS, Schedule
from .workshop.design import design_schedule

POWERS = (-0.25, 0.5)
# By root: degrees whose errors on eigenvalues from 2e-4 on are at most 2e-7, 4e-6 and 4e-5.
_ROOT_DEGREES = {2: (9, 9, 9, 3), 4: (9, 9, 9), 8: (9, 9, 5)}
_SMALLEST = 2e-4


@lru_cache(maxsize=len(ROOTS))
def root_schedule(root: int) -> Schedule:
    """Return the steps of `inverse_root`.

    Args:
        root: One of 2, 4, 8.
    """
    lower = _SMALLEST ** (1 / root)
    return design_schedule(_ROOT_DEGREES[root], None, lower, 1.0, root=root)


@lru_cache(maxsize=64)
def power_schedule(power: float) -> Schedule:
    """Return the steps and weights of `spectral_power`, for singular values from 1e-3 on.

    Args:
        power: In [-0.25, 0.5].
    """
    return design_schedule(
        5, 9, 1e-3, 1.05, 0.6, "schatten4", f"power {power:g}", function=lambda s: s**power
    )


@lru_cache(maxsize=1)
def _rotation_schedule() -> Schedule:
    """Return steps for matrices near orthogonal ones: off by 2e-6 from 0.03 on."""
    return design_schedule(9, 3, 0.03, 1.0, normalization="schatten4", headroom=1.02)


def inverse_root(a: Tensor, root: int = 4, *, check: bool = True) -> Tensor:
    r"""Return the inverse root of a positive semidefinite matrix, as Shampoo takes it.

    .. math:: A = V \Lambda V^T \;\mapsto\; V \Lambda^{-1/r} V^T

    Matrix products alone, in float32 (float64 for float64): 16 bits cannot hold an eigenvalue of
    1e-3 beside one of 1. Eigenvalues from 2e-4 of the Schatten-4 norm on (which is at most
    n^(1/4) times the largest) are inverted to five digits; smaller ones, and zeros, as if they were
    about that small. A ridge of the caller's decides otherwise: ``a + ridge * torch.eye(n)``.

    Args:
        a: (..., n, n), symmetric to the rounding of its dtype, any real floating dtype.
        root: r: 2, 4 (default) or 8.
        check: Whether to look if a is symmetric, for which a GPU has to be waited for (default
            True).

    Returns:
        (..., n, n) in a's dtype. A zero matrix gives zeros, a NaN stays in its own matrix.

    Raises:
        TypeError: For what is no dense tensor of a real floating dtype.
        ValueError: For a matrix that is not square or not symmetric, or another root.

    Source:
        Coupled iteration: Guo and Higham, SIAM J. Matrix Anal. Appl. 28 (2006); steps of this
        package, `design_schedule(root=...)`.

    Example:
        >>> a = torch.diag(torch.tensor([16.0, 1.0, 0.0625]))
        >>> inverse_root(a, 4).diagonal().round(decimals=1).tolist()
        [0.5, 1.0, 2.0]
    """
    if root not in ROOTS:
        raise ValueError(f"root must be one of {ROOTS}, got {root}")
    _check_square(a, check)
    if not a.numel():
        return a.clone()
    wide = a.detach().to(torch.promote_types(a.dtype, torch.float32))
    with as_written(a.device):
        found = inverse_root_of(wide.reshape(-1, *a.shape[-2:]), root_schedule(root), _OPS)
    return found.view(a.shape).to(a.dtype)


def spectral_power(x: Tensor, power: float, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Raise the singular values of a matrix to a power.

    .. math:: X = U \Sigma V^T \;\mapsto\; U \Sigma^p V^T

    Between gradient descent (1) and Muon (0). Off by at most 0.02, absolute where the power is
    below one and relative above, for singular values from 1e-3 of the Schatten-4 norm on, in units
    of that norm's power; smaller ones go to zero.

    Args:
        x: (..., m, n), as `orthogonalize` takes it.
        power: p in [-0.25, 0.5].
        dtype: Arithmetic of the iteration, default float32 or wider. In bfloat16 no result is
            above the largest it ought to be, but small singular values are off by more: they are
            as small as the rounding of large ones.

    Returns:
        (..., m, n) in x's dtype. A zero matrix gives zeros, a NaN stays in its own matrix.

    Raises:
        TypeError: As `orthogonalize`.
        ValueError: For a power outside the range, or fewer than two dimensions.

    Source:
        HTMuon, arXiv 2603.10067, by SVD; here a weighted sum of the iterates of nine steps.

    Example:
        >>> spectral_power(torch.diag(torch.tensor([4.0, 1.0])), 0.5).diagonal().round().tolist()
        [2.0, 1.0]
    """
    if not POWERS[0] <= power <= POWERS[1]:
        raise ValueError(f"power must be in {list(POWERS)}, got {power}")
    schedule = power_schedule(float(power))
    arithmetic = dtype
    if dtype is None and isinstance(x, Tensor) and x.dtype != torch.float64:
        arithmetic = torch.float32
    found = orthogonalize(x, schedule=schedule, dtype=arithmetic)
    if not x.numel():
        return found
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    with as_written(x.device):
        scale = largest_entry(wide)
        short = wide / scale if x.shape[-2] <= x.shape[-1] else (wide / scale).mT
        norm = torch.linalg.matrix_norm(short @ short.mT, keepdim=True).sqrt() * scale
        return (found * (norm + (norm == 0)) ** power).to(x.dtype)


def spectral_clip(x: Tensor, limit: float) -> Tensor:
    r"""Clip the singular values of a matrix.

    .. math:: X = U \Sigma V^T \;\mapsto\; U \min(\Sigma, \tau) V^T
              = \tfrac12 \bigl(X + \tau O - P (X - \tau O)^T O\bigr)

    O is the polar factor of X, P that of X - tau O: two orthogonalizations, four products.

    Args:
        x: (..., m, n), as `orthogonalize` takes it.
        limit: tau, positive, in the unit of x's entries.

    Returns:
        (..., m, n) in x's dtype.

    Raises:
        TypeError: As `orthogonalize`.
        ValueError: For a limit that is not positive and finite, or fewer than two dimensions.

    Source:
        MuCon, arXiv 2605.26459, clips; the identity is ``2 min(s, t) = s + t - |s - t|``.

    Example:
        >>> spectral_clip(torch.diag(torch.tensor([4.0, 1.0])), 2.0).diagonal().round().tolist()
        [2.0, 1.0]
    """
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be positive and finite, got {limit}")
    o = orthogonalize(x, accuracy="high")
    beyond = x.detach() - limit * o
    p = orthogonalize(beyond, accuracy="high")
    with as_written(x.device):
        far = p @ beyond.mT @ o if x.shape[-2] <= x.shape[-1] else o @ (beyond.mT @ p)
        return (x.detach() + limit * o - far) / 2


def spectral_smooth(x: Tensor, smoothing: float) -> Tensor:
    r"""Smooth the polar factor: small singular values stay small.

    .. math:: X = U \Sigma V^T \;\mapsto\; U \Sigma (\Sigma^2 + \epsilon^2)^{-1/2} V^T

    These are the first columns of the polar factor of [X, epsilon I]: what method "smoothed" of
    `orthogonalize` takes from a singular value decomposition.

    Args:
        x: (..., m, n), as `orthogonalize` takes it.
        smoothing: epsilon, positive, in the unit of x's entries; from 1e-4 of the largest singular
            value on it is exact to the rounding of the arithmetic.

    Returns:
        (..., m, n) in x's dtype.

    Raises:
        TypeError: As `orthogonalize`.
        ValueError: For a smoothing that is not positive and finite, or fewer than two dimensions.

    Example:
        >>> y = spectral_smooth(torch.diag(torch.tensor([4.0, 3.0])), 3.0)
        >>> y.diagonal().mul(5).round().tolist()
        [4.0, 4.0]
    """
    if not (math.isfinite(smoothing) and smoothing > 0):
        raise ValueError(f"smoothing must be positive and finite, got {smoothing}")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        orthogonalize(x)  # refuses it by name; integers would become floats below
    wide = x.shape[-2] <= x.shape[-1]
    y = x.detach() if wide else x.detach().mT
    n = y.shape[-2]
    ridge = (smoothing * torch.eye(n, dtype=y.dtype, device=y.device)).expand(*y.shape[:-2], n, n)
    found = orthogonalize(torch.cat([y, ridge], dim=-1), accuracy="high")[..., : y.shape[-1]]
    return (found if wide else found.mT).contiguous()


def eigenbasis(
    a: Tensor, start: Tensor | None = None, rounds: int = 2, *, check: bool = True
) -> Tensor:
    r"""Turn an orthogonal basis towards the eigenvectors of a symmetric matrix.

    .. math:: S = Q^T A Q, \quad \Theta_{ij} = \tfrac12 \arctan \frac{2 S_{ij}}{S_{jj} - S_{ii}},
              \quad Q \leftarrow \operatorname{polar}(Q + Q \Theta)

    A round turns every pair of columns by its own angle of Jacobi's, all at once, and takes the
    polar factor for the basis. It converges quadratically: where A is an average that has moved a
    little since `start` was its basis, two rounds do what five steps of orthogonal iteration with
    QR do. From the identity it takes about twenty, and many more where the rank is low: a round
    turns by a Schatten-4 norm of at most 4, so that columns stay orthonormal.

    Args:
        a: (..., n, n), symmetric to the rounding of its dtype, any real floating dtype.
        start: (..., n, n), orthogonal: the last basis; default the identity.
        rounds: How many, default 2.
        check: See `inverse_root`.

    Returns:
        Q, (..., n, n) in a's dtype; ``Q.mT @ A @ Q`` is nearly diagonal, in no order.

    Raises:
        TypeError: For what is no dense tensor of a real floating dtype.
        ValueError: For a matrix that is not square or not symmetric, a start of another shape, or
            fewer than one round.

    Source:
        Jacobi 1846; the same correction to first order: Ogita and Aishima, Japan J. Indust. Appl.
        Math. 35 (2018). SOAP (arXiv 2409.11321) takes a step of QR.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> q = eigenbasis(a)
        >>> (q.mT @ a @ q).diagonal().round().sort().values.tolist()
        [1.0, 3.0]
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    _check_square(a, check)
    if start is not None and start.shape != a.shape:
        raise ValueError(f"start must have a's shape, {tuple(a.shape)}, got {tuple(start.shape)}")
    if not a.numel():
        return a.clone()
    wide = torch.promote_types(a.dtype, torch.float32)
    n = a.shape[-1]
    m = a.detach().to(wide).reshape(-1, n, n)
    if start is None:
        q = torch.eye(n, dtype=wide, device=a.device).expand_as(m)
    else:
        q = start.detach().to(wide).reshape(-1, n, n)
    m = m / largest_entry(m)
    for _ in range(rounds):
        with as_written(a.device):
            turned = turned_basis(m, q, _OPS)
        q = orthogonalize(turned, schedule=_rotation_schedule(), dtype=wide)
    return q.view(a.shape).to(a.dtype)


def turned_basis(a: Tensor, q: Tensor, ops: Products) -> Tensor:
    """Return ``Q + Q Theta``, see `eigenbasis`.

    Args:
        a: (b, n, n), symmetric.
        q: (b, n, n), orthogonal.
        ops: The products.
    """
    s = ops.apply(q.mT.contiguous(), ops.apply(a, q.contiguous()))
    d = s.diagonal(dim1=-2, dim2=-1)
    gap = d[..., None, :] - d[..., :, None]
    # Where two are equal any angle does: of a diagonal S, none.
    theta = torch.atan2(2 * s, gap.abs()) / 2 * torch.where(gap == 0, 1.0, gap.sign())
    theta = theta.triu(1)
    theta = theta - theta.mT
    # Far from a basis all turn at once. The polar factor's steps reach singular values of this sum
    # that are 1 to 4 apart.
    size = torch.linalg.matrix_norm(ops.gram(theta), keepdim=True).sqrt()
    return q + ops.apply(q.contiguous(), theta * (_TURN / size).clamp(max=1.0))


_OPS = TorchProducts()
_TURN = 4.0  # the largest Schatten-4 norm of a round's angles


def _check_square(a: Tensor, symmetric: bool) -> None:
    if not isinstance(a, Tensor):
        raise TypeError(f"a must be a torch.Tensor, got {type(a).__name__}")
    if a.layout != torch.strided or not a.is_floating_point() or a.dtype.itemsize < 2:
        raise TypeError(f"a must be dense and real, of at least 16 bits, got {a.layout}, {a.dtype}")
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a must be square, got shape {tuple(a.shape)}")
    if not (symmetric and a.numel()) or torch.compiler.is_compiling():
        return
    # A NaN passes: it stays in its own matrix.
    most = a.detach().abs().amax(dim=(-2, -1))
    off = (a - a.mT).detach().abs().amax(dim=(-2, -1))
    tolerance = 16 * torch.finfo(a.dtype).eps
    if bool((off > tolerance * most).any()):
        raise ValueError(f"a must be symmetric, got matrices off by {float(off.max()):.3g}")
