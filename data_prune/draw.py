"""A plan and the columns of a table in memory -> the positions that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prune.plan import Columns, Plan
from data_prune.selection import search
from data_prune.topk import Chunk

__all__ = ["draw", "parts"]

# Rows whose priorities are computed at once: their temporaries stay in the caches.
CHUNK = 1 << 16
# Rows whose priorities are counted at once: more than the cells of a table of counts.
PASS = 1 << 20


def parts(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Ranges that cover ``count`` rows.

    Example:
        >>> list(parts(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def draw(
    plan: Plan, columns: Callable[[slice], Columns], ids: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Carry the plan out on N rows, with 8 to 12 bytes a row besides the result.

    Args:
        plan: what to do.
        columns: a range of rows -> what the plan reads of them.
        ids: (N,) of all rows.

    Returns:
        (k,) ascending.
    """
    priority, group = _priorities(plan, columns, len(ids))

    def chunk(part: slice) -> Chunk:
        return priority[part], ids[part], None if group is None else group[part]

    def fold(f: Callable[[Chunk], Any], merge: Callable[[Any, Any], Any]) -> Any:
        return reduce(merge, (f(chunk(part)) for part in parts(len(ids), PASS)))

    found = search(fold, dataclasses.replace(plan, total=len(ids)))
    kept, filled = np.empty(int(plan.quotas.sum()), dtype=np.int64), 0
    for part in parts(len(ids)):
        rows = np.flatnonzero(found.keep(chunk(part)))
        np.add(rows, part.start, out=kept[filled : filled + len(rows)])
        filled += len(rows)
    return kept[:filled]


def _priorities(
    plan: Plan, columns: Callable[[slice], Columns], count: int
) -> tuple[NDArray[np.uint64], NDArray | None]:
    """Priority and group of every row: computed once and held, so that a pass only counts."""
    priority, group = np.empty(count, dtype=np.uint64), None
    for part in parts(count):
        priority[part], _, of_part = plan.chunk(columns(part))
        if of_part is not None:
            group = np.empty(count, dtype=of_part.dtype) if group is None else group
            group[part] = of_part
    return priority, group
