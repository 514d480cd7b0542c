"""How many are kept and the sizes of the groups -> how many stay of each group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Labels that lie no further apart are looked up, several times faster than searched.
MAX_LOOKUP = 1 << 16


def stratum_budgets(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return equal budgets over strata; what a small stratum cannot use goes to the larger ones.

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
    sizes: NDArray[np.int64],
    total: int,
    available: NDArray[np.int64] | None = None,
    least: int = 0,
) -> NDArray[np.int64]:
    """Return quotas proportional to the class sizes, by largest remainder; exactly ``total``.

    Args:
        sizes: (groups,) Examples of each class.
        total: Sum of the quotas.
        available: (groups,) No quota exceeds this; what one class lacks goes to the others.
        least: No quota of a class is below this, or below what it has; the largest quotas pay
            for it. Fewer where ``total`` is too small for so many from every class.

    Example:
        >>> class_quotas(np.array([50, 30, 21]), 10).tolist()
        [5, 3, 2]
        >>> class_quotas(np.array([500, 30, 2]), 10, least=1).tolist()
        [8, 1, 1]
    """
    available = sizes if available is None else available
    share = sizes * (total / sizes.sum())
    lowest = np.minimum(min(least, total // len(sizes)), available)
    quotas = np.clip(np.floor(share).astype(np.int64), lowest, available)
    order = np.lexsort((np.arange(len(sizes)), -(share - quotas)))
    while (left := total - int(quotas.sum())) > 0:
        quotas[order[quotas[order] < available[order]][:left]] += 1
    while (over := int(quotas.sum()) - total) > 0:
        largest = np.argsort(-quotas, kind="stable")
        quotas[largest[quotas[largest] > lowest[largest]][:over]] -= 1
    return quotas


def class_index(classes: NDArray, label: NDArray) -> NDArray:
    """Return the position of each label in ``classes`` (ascending), in the smallest unsigned type.

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
