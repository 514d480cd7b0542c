"""Indices of an epoch -> their order, each rank's share of it, and the iteration over that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prune.keys import uniform

__all__ = ["EpochIterator", "check_ranks", "share", "share_length", "shuffled"]

# Indices turned into Python integers at once: a list of all of them takes 32 bytes each.
_CHUNK = 1 << 16


def shuffled(indices: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation that depends on (seed, epoch) only; global generators are left alone.

    Example:
        >>> sorted(shuffled(np.arange(4), seed=0, epoch=2).tolist())
        [0, 1, 2, 3]
    """
    draw = uniform(seed ^ 0x5EED, np.array([epoch], np.uint64))[0]
    generator = torch.Generator().manual_seed(int(draw * 2**52))
    return indices[torch.randperm(len(indices), generator=generator).numpy()]


def share_length(total: int, num_replicas: int | None, drop_last: bool) -> int:
    """Indices of each rank: the same number for all; ``None`` ranks share nothing."""
    if num_replicas is None:
        return total
    whole, rest = divmod(total, num_replicas)
    return whole if drop_last or not rest else whole + 1


def share(
    indices: NDArray[np.int64], num_replicas: int | None, rank: int | None, drop_last: bool
) -> NDArray[np.int64]:
    """A rank's part of the indices, as ``DistributedSampler`` deals them out.

    Example:
        >>> share(np.arange(5), num_replicas=2, rank=1, drop_last=False).tolist()
        [1, 3, 0]
    """
    if num_replicas is None:
        return indices
    count = share_length(len(indices), num_replicas, drop_last) * num_replicas
    return np.resize(indices, count)[rank::num_replicas]


def check_ranks(num_replicas: int | None, rank: int | None) -> None:
    """Both or neither, and the rank in its range."""
    if (num_replicas is None) != (rank is None):
        raise ValueError(f"give both or neither: num_replicas {num_replicas}, rank {rank}")
    if num_replicas is not None and rank is not None and not 0 <= rank < num_replicas:
        raise ValueError(f"rank must be in [0, {num_replicas}), got {rank}")


class EpochIterator(Iterator[int]):
    """One epoch's indices; a fresh one for every ``iter``, so that two never disturb each other.

    Args:
        sampler: whose ``epoch`` advances when its latest iterator has come to the end.
        indices: (n,) of the epoch, in order.
        start: how many of them an earlier run has already handed out.
    """

    def __init__(self, sampler: Any, indices: NDArray[np.int64], start: int) -> None:
        self.sampler, self.indices, self.yielded = sampler, indices, start
        self.epoch = sampler.epoch
        self._chunk: list[int] = []
        self._at = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._at == len(self._chunk):
            self._chunk = self.indices[self.yielded : self.yielded + _CHUNK].tolist()
            self._at = 0
            if not self._chunk:
                if self.sampler._iterator is self and self.sampler.epoch == self.epoch:
                    self.sampler.set_epoch(self.epoch + 1)
                raise StopIteration
        self._at += 1
        self.yielded += 1
        return self._chunk[self._at - 1]
