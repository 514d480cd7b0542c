"""The order of an epoch, from `sampler.py` -> each rank's share of it, index by index."""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Indices turned into Python integers at once: a list of all of them takes 32 bytes each.
_CHUNK = 1 << 16


def share_length(total: int, num_replicas: int, drop_last: bool) -> int:
    """Return how many indices each rank has: the same number for all."""
    whole, rest = divmod(total, num_replicas)
    return whole if drop_last or not rest else whole + 1


def share(
    indices: NDArray[np.int64], num_replicas: int, rank: int, drop_last: bool
) -> NDArray[np.int64]:
    """Return a rank's part of the indices, as ``DistributedSampler`` deals them out.

    Example:
        >>> share(np.arange(5), num_replicas=2, rank=1, drop_last=False).tolist()
        [1, 3, 0]
    """
    count = share_length(len(indices), num_replicas, drop_last) * num_replicas
    return np.resize(indices, count)[rank::num_replicas]


class Handout:
    """One epoch's indices on their way out, and how many are out.

    Every ``iter`` has a fresh one, so that two never disturb each other.

    Args:
        sampler: Whose ``epoch`` advances when its latest handout has come to the end.
        indices: (n,) of the epoch, in order.
    """

    def __init__(self, sampler: Any, indices: NDArray[np.int64]) -> None:
        self.sampler, self.indices, self.epoch = sampler, indices, sampler.epoch
        self._end: int | None = None  # of the chunk that is being handed out; None before any
        self._chunk: Iterator[int] = iter(())

    @property
    def yielded(self) -> int:
        """Return how many indices are out."""
        if self._end is None:
            return self.sampler.resume
        return self._end - length_hint(self._chunk)

    def chunks(self) -> Iterator[Iterator[int]]:
        """Yield the indices in pieces; the sampler's epoch is over when all are out."""
        # Asked for at the first index: some loaders make an iterator that they do not use.
        self._end, self.sampler.resume = self.sampler.resume, 0
        while self._end < len(self.indices):
            chunk = self.indices[self._end : self._end + _CHUNK].tolist()
            self._chunk = iter(chunk)
            self._end += len(chunk)
            yield self._chunk
        if self.sampler._handout is self and self.sampler.epoch == self.epoch:
            self.sampler.epoch, self.sampler.resume = self.epoch + 1, 0
