"""Method "ccs": cut the hardest rows, then equal budgets over ranges of the ranking column."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .survey import Columns, importance
from .topk import Chunk, Fold, Search, find_threshold, sortable


def hardness(columns: Columns, by: str) -> Chunk:
    """Return the rows in the order of their difficulty, those without a score last."""
    value = importance(columns, by)
    known = ~np.isnan(value)
    return sortable(np.where(known, value, 0.0), known.astype(np.uint64)), columns["id"], None


@dataclass(frozen=True)
class Strata:
    """Ranges of equal width in the ranking column.

    Attributes:
        low: Where the first begins.
        width: Of each.
        count: Their number. Group ``count`` holds rows without a score, the next one those cut.
        cut: Finds the hardest rows, which are left out; None leaves out none.
    """

    low: float
    width: float
    count: int
    cut: Search | None

    def of(self, columns: Columns, by: str) -> NDArray:
        """Return the stratum of each row."""
        value = importance(columns, by)
        group = np.clip((value - self.low) / self.width, 0, self.count - 1)
        group = np.where(np.isnan(value), self.count, group)
        group = group.astype(np.min_scalar_type(self.count + 1))
        if self.cut is not None:
            group[self.cut.keep(hardness(columns, by))] = self.count + 1
        return group


def find_strata(fold: Fold, cutoff: float | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the strata and their quotas, and note the cutoff in the settings.

    Args:
        fold: Applies a function to every chunk of columns and merges the results.
        cutoff: Fraction of hardest rows removed first; None interpolates what was published.
        settings: Of the plan; by, examples, kept, prune_ratio and strata are read.

    Source:
        Zheng et al., "Coverage-centric coreset selection", ICLR 2023.
    """
    by, count, total, kept = (settings[name] for name in ("by", "strata", "examples", "kept"))
    if cutoff is None:
        # Zheng et al. tune it per ratio; these are their CIFAR-10 values, linear between.
        ratios, cutoffs = [0.3, 0.5, 0.7, 0.8, 0.9], [0, 0, 0.1, 0.1, 0.3]
        cutoff = float(np.interp(settings["prune_ratio"], ratios, cutoffs))
    if not 0.0 <= cutoff < 1.0:
        raise ValueError(f"cutoff must be in [0, 1), got {cutoff}")
    removed = round(total * cutoff)
    if removed + kept > total:
        raise ValueError(
            f"cutoff {cutoff} leaves {total - removed} examples, {kept} are to be kept"
        )
    cut = None
    if removed:
        cut = find_threshold(
            lambda f, merge: fold(lambda c: f(hardness(c, by)), merge), np.array([removed]), total
        )

    def limits(columns: Columns) -> tuple[float, float]:
        value = importance(columns, by)
        if cut is not None:
            value = value[~cut.keep(hardness(columns, by))]
        value = value[~np.isnan(value)]
        return (value.min(), value.max()) if len(value) else (math.inf, -math.inf)

    low, high = fold(limits, lambda a, b: (min(a[0], b[0]), max(a[1], b[1])))
    strata = Strata(float(low), float((high - low) * 1.0001 / count or 1.0), count, cut)
    # Two more groups: rows without a score, and the rows that were cut away.
    counts: NDArray[np.int64] = fold(
        lambda c: np.bincount(strata.of(c, by), minlength=count + 2), operator.iadd
    )
    quotas = np.zeros(count + 2, dtype=np.int64)
    quotas[:count] = stratum_budgets(counts[:count], min(kept, int(counts[:count].sum())))
    quotas[count] = kept - int(quotas.sum())
    settings["cutoff"] = cutoff
    return {"quotas": quotas, "strata": strata}


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
