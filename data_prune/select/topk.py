"""Streams of (priority, id, group) -> the exact top k of each group, by mergeable counts.

A radix search over the bits of ``(priority, id)``: every pass counts, chunk by chunk, how many
candidates share the prefix found so far; counts are sums, so they merge over chunks, files,
ranks and machines, and the memory does not depend on the number of examples. As soon as few
candidates are left they are collected and sorted. One code path serves arrays in memory,
Parquet files and Ray.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One chunk: priority (n,) uint64, id (n,) uint64, group (n,) integers or None for one group.
Chunk = tuple[NDArray, NDArray, "NDArray | None"]
# ``fold(f, merge)``: f of every chunk, the results merged in any order, none of them held.
Fold = Callable[[Callable[[Any], Any], Callable[[Any, Any], Any]], Any]

# Candidates that may be collected and sorted, all groups together: 2**18 are 6 MB.
COLLECT = 1 << 18
_SIGN = np.uint64(1 << 63)


def sortable(x: NDArray[np.float64], tier: NDArray | int = 1) -> NDArray[np.uint64]:
    """Return unsigned integers in the order of (tier, x); x gives its last bits to the tier.

    Args:
        x: (N,) float64 without NaN; -inf and +inf are allowed.
        tier: 0 to 3; every example of a tier comes before all of the lower ones.

    Returns:
        (N,) uint64.

    Example:
        >>> sortable(np.array([-1.0, 2.0, 9.0]), np.array([1, 1, 0])).argsort().tolist()
        [2, 0, 1]
    """
    # Adding 0.0 turns -0.0 into 0.0: they are equal and must tie.
    bits = (np.asarray(x, dtype=np.float64) + 0.0).view(np.uint64)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> np.uint64(2)) | (np.asarray(tier, dtype=np.uint64) << np.uint64(62))


@dataclass
class Search:
    """What is known of each group's threshold: a prefix of 128 bits, and how many are to find.

    ``high`` and ``low`` are the two words (priority, ~id); ``depth`` bits of them are fixed, and
    a pass fixes up to ``bits`` more, never across the border of the words.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    quota: NDArray[np.int64]  # to be taken of each group
    left: NDArray[np.int64]  # still to be taken among those that share the prefix
    depth: int = 0
    bits: int = 16

    @property
    def width(self) -> int:
        """Bits that the next pass fixes."""
        return min(self.bits, 64 - self.depth % 64)

    def inside(self, chunk: Chunk) -> tuple[NDArray, NDArray, NDArray]:
        """Return the candidates of a chunk: words (priority, ~id) and groups."""
        priority, ids, group = chunk
        g = np.zeros(1, dtype=np.int64) if group is None else group
        if self.depth > 0:
            top = np.uint64(64 - min(self.depth, 64))
            same = (priority >> top) == (self.high >> top)[g]
            if self.depth > 64:
                rest = np.uint64(128 - self.depth)
                same &= (~ids >> rest) == (self.low >> rest)[g]
            priority, ids = priority[same], ids[same]
            g = g if group is None else g[same]
        return priority, ~ids, np.broadcast_to(g, priority.shape).astype(np.int64)

    def count(self, chunk: Chunk) -> NDArray[np.int64]:
        """Return (groups, 2**width) candidates by their next bits: the mergeable half of a pass."""
        high, low, g = self.inside(chunk)
        word, used = (high, self.depth) if self.depth < 64 else (low, self.depth - 64)
        digit = (word >> np.uint64(64 - used - self.width)) & np.uint64((1 << self.width) - 1)
        cells = len(self.left) << self.width
        return np.bincount((g << self.width) + digit.astype(np.int64), minlength=cells).reshape(
            len(self.left), -1
        )

    def descend(self, counts: NDArray[np.int64]) -> int:
        """Fix the next bits from the merged counts; return how many candidates are left."""
        from_top = counts[:, ::-1].cumsum(axis=1)
        reverse = np.minimum((from_top < self.left[:, None]).sum(axis=1), counts.shape[1] - 1)
        digit = counts.shape[1] - 1 - reverse
        rows = np.arange(len(self.left))
        above = from_top[rows, reverse] - counts[rows, digit]
        self.left = self.left - above
        if self.depth < 64:
            self.high |= digit.astype(np.uint64) << np.uint64(64 - self.depth - self.width)
        else:
            self.low |= digit.astype(np.uint64) << np.uint64(128 - self.depth - self.width)
        self.depth += self.width
        return int(counts[rows, digit][self.left > 0].sum())

    def finish(self, fold: Fold) -> None:
        """Collect the candidates and fix the threshold: the last that is taken, by group."""
        found = fold(
            lambda chunk: [np.stack([word.astype(np.uint64) for word in self.inside(chunk)])],
            operator.iadd,
        )
        candidates = np.concatenate(found, axis=1)
        high, low, g = candidates[:, np.lexsort((candidates[1], candidates[0], candidates[2]))]
        open_groups = np.flatnonzero(self.left > 0)
        start, end = (np.searchsorted(g, open_groups, side=side) for side in ("left", "right"))
        last = np.maximum(end - self.left[open_groups], start)
        self.high[open_groups], self.low[open_groups] = high[last], low[last]
        self.depth = 128

    def keep(self, chunk: Chunk) -> NDArray[np.bool_]:
        """Say which examples of a chunk are selected."""
        priority, ids, group = chunk
        low = ~ids
        g = 0 if group is None else group
        high_t, low_t, some = self.high[g], self.low[g], self.quota[g] > 0
        return some & ((priority > high_t) | ((priority == high_t) & (low >= low_t)))


def find_threshold(fold: Fold, quotas: NDArray[np.int64], total: int) -> Search:
    """Find the threshold of each group such that exactly its quota lies at or above it.

    Args:
        fold: Applies a function to every chunk and merges the results, in any order.
        quotas: (groups,) how many to keep of each.
        total: Number of examples in all chunks.

    Returns:
        The finished search; ``search.keep(chunk)`` tells what is selected.

    Example:
        >>> chunk = (np.array([5, 9, 7], np.uint64), np.arange(3, dtype=np.uint64), None)
        >>> search = find_threshold(lambda f, merge: f(chunk), np.array([2]), 3)
        >>> search.keep(chunk).tolist()
        [False, True, True]
    """
    groups = len(quotas)
    if total == int(quotas.sum()):
        # Every row is kept; a search would find the same, more slowly.
        nothing = np.zeros(groups, dtype=np.uint64)
        return Search(nothing, nothing.copy(), quotas, quotas.copy(), depth=128)
    # The table of counts stays at or below 2**20 cells (8 MB) up to 2**16 groups.
    bits = min(16, max(4, 20 - (groups - 1).bit_length()))
    search = Search(
        high=np.zeros(groups, dtype=np.uint64),
        low=np.zeros(groups, dtype=np.uint64),
        quota=np.asarray(quotas, dtype=np.int64),
        left=np.array(quotas, dtype=np.int64),
        bits=bits,
    )
    candidates = total
    while candidates > COLLECT and search.depth < 128:
        candidates = search.descend(fold(search.count, operator.iadd))
    if search.depth < 128:
        search.finish(fold)
    return search
