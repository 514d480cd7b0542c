"""Prune ratio and group sizes -> how many examples stay, of all and of each group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_index", "class_quotas", "keep_count", "stratum_budgets"]

# Labels that lie no further apart are looked up, several times faster than searched.
MAX_LOOKUP = 1 << 16


def keep_count(num_examples: int, prune_ratio: float) -> int:
    """How many examples stay: N (1 - r), rounded half to even, never fewer than one.

    Args:
        num_examples: N.
        prune_ratio: r, fraction removed, in [0, 1).

    Raises:
        ValueError: if r is outside [0, 1) or nothing would be kept.

    Example:
        >>> keep_count(50_000, 0.9)
        5000
    """
    if isinstance(prune_ratio, bool) or not isinstance(prune_ratio, (int, float, np.floating)):
        raise TypeError(f"prune_ratio must be a number, got {prune_ratio!r}")
    if not 0.0 <= prune_ratio < 1.0:
        raise ValueError(f"prune_ratio (the fraction removed) must be in [0, 1), got {prune_ratio}")
    kept = round(num_examples * (1.0 - float(prune_ratio)))
    if kept < 1:
        raise ValueError(f"prune_ratio {prune_ratio} of {num_examples} examples keeps none of them")
    return kept


def stratum_budgets(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Equal budgets over strata; what a small stratum cannot use goes to the larger ones.

    Source:
        Zheng et al., ICLR 2023, algorithm 1.

    Example:
        >>> stratum_budgets(np.array([1, 10, 10]), 9).tolist()
        [1, 4, 4]
    """
    budgets = np.zeros(len(sizes), dtype=np.int64)
    left = total
    for done, stratum in enumerate(np.argsort(sizes, kind="stable")):
        budgets[stratum] = min(int(sizes[stratum]), left // (len(sizes) - done))
        left -= int(budgets[stratum])
    return budgets


def class_quotas(
    sizes: NDArray[np.int64], total: int, available: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Quotas proportional to the class sizes, by largest remainder; exactly ``total``.

    Args:
        sizes: (groups,) examples of each class.
        total: sum of the quotas.
        available: (groups,) no quota exceeds this; what one class lacks goes to the others.

    Example:
        >>> class_quotas(np.array([50, 30, 21]), 10).tolist()
        [5, 3, 2]
    """
    available = sizes if available is None else available
    share = sizes * (total / sizes.sum())
    quotas = np.minimum(np.floor(share).astype(np.int64), available)
    order = np.lexsort((np.arange(len(sizes)), -(share - quotas)))
    while (left := total - int(quotas.sum())) > 0:
        quotas[order[quotas[order] < available[order]][:left]] += 1
    return quotas


def class_index(classes: NDArray, label: NDArray) -> NDArray:
    """Position of each label in ``classes`` (ascending), in the smallest unsigned type.

    Example:
        >>> class_index(np.array([3, 7]), np.array([7, 3, 7])).tolist()
        [1, 0, 1]
    """
    small, first = np.min_scalar_type(len(classes)), classes[0]
    if classes[-1] - first >= MAX_LOOKUP:
        return np.searchsorted(classes, label).astype(small)
    lookup = np.zeros(classes[-1] - first + 1, dtype=small)
    lookup[classes - first] = np.arange(len(classes))
    return lookup[label.astype(np.int64) - first]
