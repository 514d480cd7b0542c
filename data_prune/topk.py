"""Streams of (priority, id, group) -> the exact top k of each group, by mergeable counts.

A radix search over the bits of ``(priority, id)``: every pass counts, chunk by chunk, how many
candidates share the prefix found so far; counts are sums, so they merge over chunks, files,
ranks and machines, and the memory does not depend on the number of examples. As soon as few
candidates are left they are collected and sorted. One code path serves arrays in memory,
Parquet files and Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunk", "Search", "find_threshold", "sortable"]

# One chunk: priority (n,) uint64, id (n,) uint64, group (n,) integers or None for one group.
Chunk = tuple[NDArray, NDArray, "NDArray | None"]
Pass = Callable[[Callable[[Chunk], NDArray]], Iterable[NDArray]]

# Candidates that may be collected and sorted, all groups together: 2**18 are 6 MB.
COLLECT = 1 << 18
_SIGN = np.uint64(1 << 63)


def sortable(x: NDArray[np.float64], tier: NDArray | int = 1) -> NDArray[np.uint64]:
    """Unsigned integers in the order of (tier, x); the last bit of x makes room for the tier.

    Args:
        x: (N,) float64 without NaN; -inf and +inf are allowed.
        tier: 0 or 1; every example of tier 1 comes before all of tier 0.

    Returns:
        (N,) uint64.

    Example:
        >>> sortable(np.array([-1.0, 2.0, 9.0]), np.array([1, 1, 0])).argsort().tolist()
        [2, 0, 1]
    """
    # Adding 0.0 turns -0.0 into 0.0: they are equal and must tie.
    bits = (np.asarray(x, dtype=np.float64) + 0.0).view(np.uint64)
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> np.uint64(1)) | (np.asarray(tier, dtype=np.uint64) << np.uint64(63))


@dataclass
class Search:
    """What is known of each group's threshold: a prefix of 128 bits, and how many are to find.

    ``high`` and ``low`` are the two words (priority, ~id); ``depth`` bits of them are fixed.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    left: NDArray[np.int64]  # still to be taken among those that share the prefix
    depth: int = 0
    bits: int = field(default=16)

    def inside(self, chunk: Chunk) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """Candidates of a chunk: positions, words (priority, ~id) and groups."""
        priority, ids, group = chunk
        g = np.zeros(len(ids), dtype=np.int64) if group is None else group.astype(np.int64)
        low = ~ids
        if self.depth == 0:
            return np.arange(len(ids)), priority, low, g
        top = np.uint64(64 - min(self.depth, 64))
        same = (priority >> top) == (self.high[g] >> top)
        if self.depth > 64:
            rest = np.uint64(128 - self.depth)
            same &= (low >> rest) == (self.low[g] >> rest)
        where = np.flatnonzero(same)
        return where, priority[where], low[where], g[where]

    def count(self, chunk: Chunk) -> NDArray[np.int64]:
        """(groups, 2**bits) candidates by their next bits: the mergeable half of a pass."""
        _, high, low, g = self.inside(chunk)
        word, used = (high, self.depth) if self.depth < 64 else (low, self.depth - 64)
        digit = (word >> np.uint64(64 - used - self.bits)) & np.uint64((1 << self.bits) - 1)
        cells = len(self.left) << self.bits
        return np.bincount((g << self.bits) + digit.astype(np.int64), minlength=cells).reshape(
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
            self.high |= digit.astype(np.uint64) << np.uint64(64 - self.depth - self.bits)
        else:
            self.low |= digit.astype(np.uint64) << np.uint64(128 - self.depth - self.bits)
        self.depth += self.bits
        return int(counts[rows, digit][self.left > 0].sum())

    def collect(self, chunk: Chunk) -> NDArray[np.uint64]:
        """(3, n) group, priority and ~id of the candidates: the last, small, mergeable half."""
        _, high, low, g = self.inside(chunk)
        return np.stack([g.astype(np.uint64), high, low])

    def finish(self, candidates: NDArray[np.uint64]) -> None:
        """Fix the threshold exactly: the last candidate that is still taken, by group."""
        order = np.lexsort((candidates[2], candidates[1], candidates[0]))[::-1]
        g, high, low = candidates[:, order]
        for group in np.flatnonzero(self.left > 0):
            members = np.flatnonzero(g == np.uint64(group))
            last = members[min(int(self.left[group]), len(members)) - 1]
            self.high[group], self.low[group] = high[last], low[last]
        self.depth = 128

    def keep(self, chunk: Chunk) -> NDArray[np.bool_]:
        """Which examples of a chunk are selected."""
        priority, ids, group = chunk
        low = ~ids
        g = 0 if group is None else group
        high_t, low_t, some = self.high[g], self.low[g], self.quota[g] > 0
        return some & ((priority > high_t) | ((priority == high_t) & (low >= low_t)))

    def __post_init__(self) -> None:
        self.quota = self.left.copy()


def find_threshold(run: Pass, quotas: NDArray[np.int64], total: int) -> Search:
    """Threshold of each group such that exactly its quota lies at or above it.

    Args:
        run: applies a function to every chunk and gives the results, in any order.
        quotas: (groups,) how many to keep of each.
        total: number of examples in all chunks.

    Returns:
        The finished search; ``search.keep(chunk)`` tells what is selected.

    Example:
        >>> chunk = (np.array([5, 9, 7], np.uint64), np.arange(3, dtype=np.uint64), None)
        >>> search = find_threshold(lambda f: [f(chunk)], np.array([2]), 3)
        >>> search.keep(chunk).tolist()
        [False, True, True]
    """
    groups = len(quotas)
    # The table of counts stays at or below 2**20 cells (8 MB); 16 divides both words.
    bits = 16 if groups <= 16 else 8 if groups <= 4096 else 4
    search = Search(
        high=np.zeros(groups, dtype=np.uint64),
        low=np.zeros(groups, dtype=np.uint64),
        left=np.asarray(quotas, dtype=np.int64).copy(),
        bits=bits,
    )
    candidates = total
    while candidates > COLLECT and search.depth < 128:
        counts = np.zeros((groups, 1 << bits), dtype=np.int64)
        for part in run(search.count):
            counts += part
        candidates = search.descend(counts)
    if search.depth < 128:
        parts = list(run(search.collect))
        search.finish(np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.uint64))
    return search
