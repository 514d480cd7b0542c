"""Prune ratio, anchor and c_D (given, or the data's own) -> log-weight of every example."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# c_D of the paper by data set; larger c_D keeps harder examples at a given ratio.
C_D_PRESETS = {"cifar10": 5.5, "cifar100": 4.0, "imagenet": 11.0}

# Mean probabilities are moved into the open interval: float32 cannot tell 1 - 6e-8 from 1, and
# a density at exactly 0 or 1 is 0 or infinite.
PROB_EPS = 1e-6
# An anchor closer to 1 than this would make beta_r vanish: nothing is difficult any more.
MAX_ANCHOR = 0.99
# Bins of the table of counts from which a c_D is found.
P_BINS, S_BINS = 200, 120
# Decades of the score: with probabilities that float32 rounds to 1 it comes down to 1e-8.
LOG_SCORE = (-10.0, 0.0)
C_D_RANGE = (0.25, 32.0)


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


def expected_mean_prob(
    counts: NDArray[np.float64], p: NDArray[np.float64], log_weight: NDArray[np.float64], kept: int
) -> float:
    r"""Return the mean probability of ``kept`` examples drawn without replacement by weight.

    Successive sampling is an exponential race: an example is in by time t with probability
    :math:`1 - e^{-t w}`, and t is where the expected number is ``kept``.

    Args:
        counts: (M,) examples in each cell.
        p: (M,) probability of each cell.
        log_weight: (M,) log of its weight, up to a constant.
        kept: Number drawn; all are taken if there are not more.

    Example:
        >>> expected_mean_prob(np.ones(2), np.array([0.2, 0.4]), np.zeros(2), 1)
        0.30000000000000004
    """
    if kept >= counts.sum():
        return float((counts * p).sum() / counts.sum())
    w = log_weight - log_weight.max()
    low, high = -50.0, 800.0  # log t: from nothing to everything, whatever the weights
    for _ in range(60):
        middle = (low + high) / 2
        inside = -np.expm1(-np.exp(np.clip(w + middle, -700, 6)))
        low, high = (low, middle) if (counts * inside).sum() > kept else (middle, high)
    taken = counts * inside
    return float((taken * p).sum() / taken.sum())


def auto_c_d(
    counts: NDArray[np.int64],
    prune_ratio: float,
    mu_d: float,
    kept: int,
    C: float,
    typical: float = 0.5,
) -> float:
    """Return the data's own c_D: that at which the kept examples are as hard as wanted.

    Our rule, not the paper's. Larger c_D keeps harder examples, and the best value depends on the
    data and on the ratio. The kept examples shall on average be as probable as a point between a
    draw by score alone and all examples: halfway for ``c_d="auto"``, at the prune ratio for the
    default, whose kept examples are the more typical the fewer they are. One mergeable pass of
    counts is enough, and nothing is trained.

    Args:
        counts: (P_BINS, S_BINS) rows by mean probability and log score, summed over all chunks.
        prune_ratio: r, in [0, 1).
        mu_d: Anchor of the Beta distribution.
        kept: Number of examples to keep.
        C: Constant of the Beta distribution.
        typical: How far their mean probability goes from a draw by score alone (0) to that of
            all examples (1).

    Returns:
        A value in [0.25, 32]; an end of it where no value meets the target.
    """
    i, j = np.nonzero(counts)
    if len(i) == 0 or prune_ratio == 0.0:
        return 4.0
    n = counts[i, j].astype(np.float64)
    p = (i + 0.5) / P_BINS
    log_score = (LOG_SCORE[0] + (j + 0.5) / S_BINS * (LOG_SCORE[1] - LOG_SCORE[0])) * np.log(10)
    everyone = float((n * p).sum() / n.sum())
    hard = expected_mean_prob(n, p, log_score, kept)
    target = typical * everyone + (1 - typical) * hard

    low, high = np.log(C_D_RANGE)
    for _ in range(24):
        middle = (low + high) / 2
        alpha, beta = beta_parameters(prune_ratio, mu_d, float(np.exp(middle)), C=C)
        weight = log_score + log_beta_density(p, alpha, beta)
        above = expected_mean_prob(n, p, weight, kept) > target
        low, high = (middle, high) if above else (low, middle)
    return round(float(np.exp((low + high) / 2)), 3)
