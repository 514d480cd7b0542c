"""Prune ratio and anchor -> Beta distribution -> log-weight of every example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# c_D of the paper by data set; larger c_D keeps harder examples at a given ratio.
C_D_PRESETS = {"cifar10": 5.5, "cifar100": 4.0, "imagenet": 11.0}

# Mean probabilities are moved into the open interval: float32 cannot tell 1 - 6e-8 from 1, and
# a density at exactly 0 or 1 is 0 or infinite.
PROB_EPS = 1e-6
ANCHOR_STATISTICS = ("mean", "median")
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
    r"""Return the parameters of the Beta distribution that favours easy or hard examples.

    .. math:: \beta_r = C (1 - \mu_D)(1 - r^{c_D}), \qquad \alpha_r = S - \beta_r

    With S = C (the paper) its mean is :math:`\mu_D + (1 - \mu_D) r^{c_D}`: at the anchor for
    r = 0, sliding to 1 (easy examples) as r grows.

    Args:
        prune_ratio: r, the fraction removed, in [0, 1).
        mu_d: Mean probability of the examples with the highest scores, in [0, 1).
        c_d: How late the slide to easy examples begins, > 0.
        C: The constant of the paper.
        beta_sum: S = alpha + beta; None takes C, the paper; C + 1 is the authors' code.

    Returns:
        (alpha, beta).

    Raises:
        ValueError: If an argument is outside its range.

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


def anchor_probability(mean_prob: NDArray, statistic: str = "mean") -> float:
    """Return mu_D from the mean probabilities of the highest scores; NaN if there are none.

    Args:
        mean_prob: Of the examples with the highest scores.
        statistic: "mean" (the paper), or "median", which a few odd examples among them, such as
            wrong labels, do not move.

    Example:
        >>> anchor_probability(np.array([0.5, 0.6, 0.1]), "median")
        0.5
    """
    of = np.mean if statistic == "mean" else np.median
    return float(of(mean_prob.astype(np.float64))) if len(mean_prob) else float("nan")


def top_scores(scores: NDArray, ids: NDArray, count: int) -> NDArray[np.int64]:
    """Return the positions of the ``count`` highest scores, in order, ties by ascending id."""
    known = np.flatnonzero(~np.isnan(scores))
    if len(known) > count:
        edge = np.partition(scores[known], len(known) - count)[len(known) - count]
        known = known[scores[known] >= edge]
    order = np.lexsort((ids[known], -scores[known].astype(np.float64)))
    return known[order[:count]]


def log_beta_density(mean_prob: NDArray, alpha: float, beta: float) -> NDArray[np.float64]:
    """Return the log of the Beta density up to its normalizer, finite on all of [0, 1].

    Args:
        mean_prob: (N,) mean probabilities.
        alpha: First parameter.
        beta: Second parameter.

    Returns:
        (N,) float64: ``(alpha - 1) log p + (beta - 1) log(1 - p)``.
    """
    p = np.clip(np.asarray(mean_prob, dtype=np.float64), PROB_EPS, 1.0 - PROB_EPS)
    return (alpha - 1.0) * np.log(p) + (beta - 1.0) * np.log1p(-p)
