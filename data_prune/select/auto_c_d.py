"""The data's own c_D: how difficult a subset of this size should be. Ours, not the paper's.

Larger c_D keeps harder examples, and the best value depends on the data and on the ratio. The
rule takes the value at which the kept examples are, on average, as probable as a point between a
draw by score alone and all examples: halfway for ``c_d="auto"``, at the prune ratio for the
default, whose kept examples are the more typical the fewer they are. It looks at a table of
counts over (mean probability, score) only, which is one mergeable pass, and trains nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .beta import beta_parameters, log_beta_density

P_BINS, S_BINS = 200, 120
# Scores span ten decades: float32 learned examples reach 1e-8, and none exceeds 0.53.
LOG_SCORE = (-10.0, 0.0)
C_D_RANGE = (0.25, 32.0)


def joint_counts(mean_prob: NDArray, score: NDArray) -> NDArray[np.int64]:
    """Return counts of the examples with a positive score over (mean probability, log score).

    Example:
        >>> int(joint_counts(np.array([0.5, 0.9, 0.2]), np.array([0.1, 0.0, np.nan])).sum())
        1
    """
    known = (score > 0) & ~np.isnan(mean_prob)
    p, s = mean_prob[known].astype(np.float64), np.log10(score[known].astype(np.float64))
    low, high = LOG_SCORE
    i = np.clip((p * P_BINS).astype(np.int64), 0, P_BINS - 1)
    j = np.clip(((s - low) / (high - low) * S_BINS).astype(np.int64), 0, S_BINS - 1)
    cells = np.bincount(i * S_BINS + j, minlength=P_BINS * S_BINS)
    return cells.reshape(P_BINS, S_BINS)


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
    """Return the c_D at which the kept examples are as hard as wanted.

    Args:
        counts: What ``joint_counts`` gives, summed over all chunks.
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

    def mean_at(c_d: float) -> float:
        alpha, beta = beta_parameters(prune_ratio, mu_d, c_d, C=C)
        return expected_mean_prob(n, p, log_score + log_beta_density(p, alpha, beta), kept)

    low, high = np.log(C_D_RANGE)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(float(np.exp(middle))) > target else (low, middle)
    return round(float(np.exp((low + high) / 2)), 3)
