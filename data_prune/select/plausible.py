"""Which labels a class believes: a floor under the mean probability. Ours, not the paper's.

A wrong label stays improbable while the rest of its class is learned, in whatever way it came to
be wrong. A label is set aside when it is less probable than half the median of its class. But
labels that are merely hard move while they are learned: where the improbable ones move clearly
more than the others, none is set aside. Medians and counts come from one table of counts over
(class, probability), the movement from sums; both merge over chunks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Bins are as wide as the square root of the probability: fine where a hard class is still low.
BINS = 256
SHARE = 0.5
# How much more than the others the improbable must move to be hard rather than wrong.
MOVING = 1.25


def prob_bins(mean_prob: NDArray) -> NDArray[np.int16]:
    """Return the bin of each probability; -1 where it is not known.

    Example:
        >>> prob_bins(np.array([0.0, 0.25, 1.0, np.nan])).tolist()
        [0, 128, 255, -1]
    """
    with np.errstate(invalid="ignore"):
        bins = np.minimum(np.sqrt(np.asarray(mean_prob, dtype=np.float64)) * BINS, BINS - 1)
    return np.where(np.isnan(bins), -1, bins).astype(np.int16)


def prob_counts(mean_prob: NDArray, group: NDArray | None, groups: int) -> NDArray[np.int64]:
    """Return how many examples of each group lie in each bin, (groups, BINS)."""
    bins = prob_bins(mean_prob).astype(np.int64)
    cells = bins if group is None else group.astype(np.int64) * BINS + bins
    return np.bincount(cells[bins >= 0], minlength=groups * BINS).reshape(groups, BINS)


def floors(counts: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Return the lowest bin that each group believes, and how many examples it believes.

    Args:
        counts: What ``prob_counts`` gives, summed over all chunks.

    Example:
        >>> low, believed = floors(prob_counts(np.array([0.9, 0.8, 0.7, 0.2]), None, 1))
        >>> low.tolist(), believed.tolist()
        ([151], [3])
    """
    total = counts.cumsum(axis=1)
    median = (total * 2 >= total[:, -1:]).argmax(axis=1)
    lowest = np.floor((median + 0.5) * np.sqrt(SHARE)).astype(np.int16)
    below = np.where(lowest > 0, np.take_along_axis(total, lowest[:, None] - 1, 1)[:, 0], 0)
    return lowest, total[:, -1] - below


def movement(mean_prob: NDArray, score: NDArray, believed: NDArray[np.bool_]) -> NDArray:
    """Return sums and counts of the uncertainty, of what is believed and of the rest, (2, 2).

    The score divided by its difficulty, 1 - p, is how much the probability moved.
    """
    known = ~np.isnan(mean_prob) & ~np.isnan(score)
    moved = score.astype(np.float64) / np.maximum(1.0 - mean_prob.astype(np.float64), 1e-6)
    parts = (known & believed, known & ~believed)
    return np.array([[moved[part].sum(), part.sum()] for part in parts])


def merely_hard(moved: NDArray) -> bool:
    """Say whether the improbable labels are being learned; from the sums of ``movement``.

    Example:
        >>> merely_hard(np.array([[5.0, 50.0], [2.0, 10.0]]))
        True
    """
    (believed, many), (rest, few) = moved
    return bool(few > 0 and many > 0 and rest * many > MOVING * believed * few)
