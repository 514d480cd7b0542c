"""Signs of lost plasticity in one activation or weight: dormant units, ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from specgd_common.tensors import norm64

# Up to here all singular values are computed; above, a block power iteration finds the largest.
_EXACT, _BLOCK, _ITERATIONS = 256, 8, 40


def features(x: Tensor) -> Tensor:
    """Return activations as (examples, units), channels of convolutions averaged over positions."""
    x = x.float()
    if x.ndim == 4 or x.ndim == 5:
        return x.flatten(2).mean(2)
    return x.flatten(0, -2) if x.ndim == 3 else x


def feature_rows(x: Tensor, samples: int) -> Tensor:
    """Return at most ``samples`` rows of ``features(x)``, a copy."""
    if x.ndim >= 4:
        return features(x[:samples])
    rows = x.flatten(0, -2)
    return rows[:: -(-len(rows) // samples)].to(torch.float32, copy=True)


def unit_scores(x: Tensor) -> Tensor:
    """Return mean |activation| of every unit: channels of convolutions, else the last axis."""
    x = x.abs()
    over = (0, *range(2, x.ndim)) if x.ndim >= 4 else tuple(range(x.ndim - 1))
    return x.mean(over, dtype=torch.float32)


def share_below(scores: Tensor, tau: float) -> float:
    """Return the share of units whose score is at most ``tau`` times the mean score."""
    return float((scores <= tau * scores.mean()).float().mean())


def dormant_share(x: Tensor, tau: float) -> float:
    """Return the share of units with mean |activation| at most ``tau`` times the layer's mean.

    Units are the channels (dimension 1) of convolutional activations, the last dimension otherwise.

    Example:
        >>> import torch
        >>> from warmstart.judge.plasticity import dormant_share
        >>> dormant_share(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 0.1)
        0.5
    """
    return share_below(unit_scores(x), tau)


def effective_rank(x: Tensor) -> float:
    """Return exp(entropy of the normalized singular values); 0 for a zero matrix.

    Example:
        >>> import torch
        >>> from warmstart.judge.plasticity import effective_rank
        >>> round(effective_rank(torch.eye(4)), 4)
        4.0
    """
    s = torch.linalg.svdvals(x.float())
    total = s.sum()
    if total == 0:
        return 0.0
    p = s[s > 0] / total
    return float(torch.exp(-(p * p.log()).sum()))


def stable_rank(w: Tensor) -> float:
    """Return |W|_F^2 / |W|_2^2 of W as (out, rest); 0 for a zero matrix, NaN for a broken one.

    Above 256 rows and columns |W|_2 comes from a block power iteration, from below: within a
    hundredth at random initialization, where the spectrum is flattest (2048 rows: 0.6 %), in a
    tenth of the time that all singular values take there.
    """
    w = w.flatten(1).float()
    largest = w.abs().amax()
    if largest == 0 or not largest.isfinite():
        return 0.0 if largest == 0 else float("nan")
    w = w / largest  # squares of 1e30 leave float32
    top = _largest_singular_value(w) if min(w.shape) > _EXACT else torch.linalg.svdvals(w)[0]
    return (norm64(w) / float(top)) ** 2


def _largest_singular_value(w: Tensor) -> Tensor:
    start = torch.Generator().manual_seed(0)  # the global random state is the user's
    x = torch.randn(w.shape[1], _BLOCK, generator=start).to(w.device)
    for _ in range(_ITERATIONS):
        x = torch.linalg.qr(w.T @ (w @ x)).Q
    return torch.linalg.matrix_norm(w @ x, 2)
