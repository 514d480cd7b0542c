"""Prune ratio and anchor -> Beta distribution -> log-weight of every example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["C_D_PRESETS", "anchor_mean", "beta_parameters", "log_beta_density"]

# c_D of the paper by data set; larger c_D keeps harder examples at a given ratio.
C_D_PRESETS = {"cifar10": 5.5, "cifar100": 4.0, "imagenet": 11.0}

# Mean probabilities are moved into the open interval: float32 cannot tell 1 - 6e-8 from 1, and
# a density at exactly 0 or 1 is 0 or infinite.
PROB_EPS = 1e-6
# An anchor closer to 1 than this would make beta_r vanish: nothing is difficult any more.
MAX_ANCHOR = 0.99


def beta_parameters(
    prune_ratio: float,
    mu_d: float,
    c_d: float = 4.0,
    *,
    C: float = 15.0,
    beta_sum: float | None = None,
) -> tuple[float, float]:
    r"""Parameters of the Beta distribution from which easy or hard examples are favoured.

    .. math:: \beta_r = C (1 - \mu_D)(1 - r^{c_D}), \qquad \alpha_r = S - \beta_r

    With S = C (the paper) its mean is :math:`\mu_D + (1 - \mu_D) r^{c_D}`: at the anchor for
    r = 0, sliding to 1 (easy examples) as r grows.

    Args:
        prune_ratio: r, fraction removed, in [0, 1).
        mu_d: mean probability of the examples with the highest scores, in [0, 1).
        c_d: how late the slide to easy examples begins, > 0.
        C: the constant of the paper.
        beta_sum: S = alpha + beta; None takes C, the paper; C + 1 is the authors' code.

    Returns:
        (alpha, beta).

    Raises:
        ValueError: if an argument is outside its range.

    Source:
        Cho et al., ICML 2025, Beta sampling; the authors' code uses 16 - beta.

    Example:
        >>> [round(x, 4) for x in beta_parameters(0.5, 0.4, 4.0)]
        [6.5625, 8.4375]
    """
    if not 0.0 <= prune_ratio < 1.0:
        raise ValueError(f"prune_ratio must be in [0, 1), got {prune_ratio}")
    if not c_d > 0.0:
        raise ValueError(f"c_d must be positive, got {c_d}: at 0 every ratio gives beta = 0")
    if not 0.0 <= mu_d < 1.0:
        raise ValueError(f"mu_d must be in [0, 1), got {mu_d}")
    if not C > 0.0:
        raise ValueError(f"C must be positive, got {C}")
    total = C if beta_sum is None else beta_sum
    if total < C:
        raise ValueError(f"beta_sum must be at least C = {C}, got {beta_sum}")
    beta = C * (1.0 - mu_d) * (1.0 - prune_ratio**c_d)
    return total - beta, beta


def anchor_mean(scores: NDArray, mean_prob: NDArray, ids: NDArray, count: int = 10) -> float:
    """mu_D: mean probability of the ``count`` highest scores, ties by id; NaN scores are out.

    Example:
        >>> anchor_mean(np.array([1.0, 3.0]), np.array([0.2, 0.6]), np.array([0, 1]), count=1)
        0.6
    """
    top = top_scores(scores, ids, count)
    return float(np.mean(mean_prob[top], dtype=np.float64)) if len(top) else float("nan")


def top_scores(scores: NDArray, ids: NDArray, count: int) -> NDArray[np.int64]:
    """Positions of the ``count`` highest finite scores, in order, ties by ascending id."""
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) > count:
        edge = np.partition(scores[known], len(known) - count)[len(known) - count]
        known = known[scores[known] >= edge]
    order = np.lexsort((ids[known], -scores[known].astype(np.float64)))
    return known[order[:count]]


def log_beta_density(mean_prob: NDArray, alpha: float, beta: float) -> NDArray[np.float64]:
    """Log of the Beta density up to its normalizer, finite for every probability in [0, 1].

    Args:
        mean_prob: (N,) mean probabilities.
        alpha: first parameter.
        beta: second parameter.

    Returns:
        (N,) float64: ``(alpha - 1) log p + (beta - 1) log(1 - p)``.
    """
    p = np.clip(np.asarray(mean_prob, dtype=np.float64), PROB_EPS, 1.0 - PROB_EPS)
    return (alpha - 1.0) * np.log(p) + (beta - 1.0) * np.log1p(-p)
