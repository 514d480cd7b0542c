"""How good a result is, without a singular value decomposition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate.run import as_written


class Certificate(NamedTuple):
    """What `certify` found, one value a matrix.

    Attributes:
        sigma_max: Largest singular value, from below, by power iteration on the Gram matrix.
        deviation: ``||Y Y^T - P||_F / sqrt(rank)``, P the projector onto the row space of Y Y^T
            itself, so that a low-rank result is not blamed for its rank: 0 for a polar factor.
        rank: Trace of P, the number of singular values above the root of one half; of that many
            times the largest, where that is above 1.15.
    """

    sigma_max: Tensor
    deviation: Tensor
    rank: Tensor


def certify(y: Tensor, iterations: int = 12) -> Certificate:
    r"""Measure how far an orthogonalized matrix is from a polar factor.

    .. math:: G = Y Y^T, \quad P = \lim p^k(G),\ p(g) = 3g^2 - 2g^3, \quad
              \|G - P\|_F / \sqrt{\operatorname{tr} P}

    P comes from a few matrix products (no decomposition): p sends every eigenvalue above one
    half to one and every one below to zero.

    Args:
        y: (..., m, n), the result of an orthogonalization.
        iterations: Steps of the power iteration and of p, default 12.

    Returns:
        The certificate, in float32 (float64 for float64 input), shapes (...).

    Raises:
        ValueError: For fewer than two dimensions or no iterations.

    Example:
        >>> import torch
        >>> bool(certify(torch.eye(4)).deviation == 0)
        True
    """
    if y.ndim < 2 or iterations < 1:
        raise ValueError(
            f"y needs at least 2 dimensions and iterations at least 1, got shape "
            f"{tuple(y.shape)} and {iterations}"
        )
    y = y.detach().to(torch.promote_types(y.dtype, torch.float32))
    with as_written(y.device):
        return _measure(y.mT if y.shape[-2] > y.shape[-1] else y, iterations)


def _measure(y: Tensor, iterations: int) -> Certificate:
    g = y @ y.mT
    v = torch.ones_like(g[..., :1]) + torch.arange(g.shape[-1], device=g.device)[:, None] % 2
    for _ in range(iterations):
        v = g @ v
        v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp_min(1e-30)
    sigma = torch.linalg.vector_norm(g @ v, dim=(-2, -1)).sqrt()
    # The step below maps [0, 1.36] to [0, 1]: what lies beyond is scaled down first.
    p = g / torch.where(sigma > 1.15, sigma.square(), 1.0)[..., None, None]
    for _ in range(iterations):
        square = p @ p
        p = 3 * square - 2 * square @ p
    rank = p.diagonal(dim1=-2, dim2=-1).sum(-1)
    deviation = torch.linalg.matrix_norm(g - p) / rank.clamp_min(1).sqrt()
    return Certificate(sigma, deviation, rank)
