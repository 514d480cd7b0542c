"""Who takes part in an epoch -> the order of the examples, each rank's share, index by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import length_hint

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ..select.noise import shuffled
from .division import check_divided, divided_by

# Indices turned into Python integers at once: a list of all of them takes 32 bytes each.
_CHUNK = 1 << 16


class EpochOrder(Sampler[int]):
    """The epochs of a data set: which one is going on, and its order on this rank.

    The order is a pure function of (seed, epoch, members). A subclass says who the ``members``
    of the present epoch are and their ``count`` in any epoch; here they are all examples.

    Args:
        num_examples: N.
        seed: Of the order.
        shuffle: Whether each epoch has a new random order.
        num_replicas: Number of ranks; "auto" asks torch.distributed when an epoch begins; None
            divides nothing.
        rank: This rank's number; with a number of ranks.
        drop_last: Drop the examples that do not fill a round over the ranks; otherwise the first
            ones are repeated.
        alone: Whether this process keeps to itself, however many there are.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | str | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        alone: bool = False,
    ) -> None:
        check_division(num_replicas, rank)
        self.num_examples, self.seed, self.shuffle = num_examples, int(seed), shuffle
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.alone = alone
        # True inside a ScoredLoader, which no framework divides among the ranks.
        self.wrapped = False
        self.epoch = 0
        self.resume = 0  # indices of this epoch that an earlier run has already handed out
        self._loaded: int | None = None  # epoch of a state, until the next set_epoch
        self._ahead = 0  # epochs by which this one is ahead of the number given to set_epoch
        self._handout: Handout | None = None

    def members(self) -> NDArray[np.int64] | None:
        """Return the examples of the present epoch, ascending; None where all take part."""
        return None

    def count(self, epoch: int) -> int:
        """Return how many examples take part in an epoch, over all ranks."""
        return self.num_examples

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be iterated.

        After a state has been loaded, a number below its epoch counts on from there: Accelerate
        and the Trainer begin again at 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if self._loaded is not None:
            self._ahead, self._loaded = max(0, self._loaded - epoch), None
        self.advance(epoch + self._ahead)

    def advance(self, epoch: int) -> None:
        """Go to an epoch; the position within it stays where it is the present one."""
        if epoch != self.epoch:
            self.rewind(epoch)

    def rewind(self, epoch: int) -> None:
        """Begin ``epoch`` anew, as if none of its indices had been handed out."""
        self.epoch, self.resume, self._handout = epoch, 0, None

    def go_on(self, epoch: int, yielded: int) -> None:
        """Continue within an epoch; numbers that begin again are counted from it."""
        self.epoch, self.resume, self._handout = epoch, yielded, None
        self._loaded, self._ahead = epoch, 0

    @property
    def yielded(self) -> int:
        """Return how many indices of the present epoch are out on this rank."""
        if self._handout is not None and self._handout.epoch == self.epoch:
            return self._handout.yielded
        return self.resume

    def length(self, epoch: int) -> int:
        """Return how many indices this rank yields in ``epoch``, known before the scores are."""
        total = self.count(epoch)
        ranks = None if self.num_replicas is None else divided_by(self.num_replicas, self.rank)
        return total if ranks is None else share_length(total, ranks[0], self.drop_last)

    def steps_per_epoch(self, epoch: int, batch_size: int, drop_last: bool = False) -> int:
        """Return the number of batches in ``epoch``: what a learning-rate schedule needs to know.

        Example:
            >>> from data_prune import DualScoreSampler
            >>> sampler = DualScoreSampler(range(100), 0.5, score_epochs=3, window=2)
            >>> [sampler.steps_per_epoch(e, batch_size=20) for e in range(5)]
            [5, 5, 5, 3, 3]
        """
        length = self.length(epoch)
        return length // batch_size if drop_last else -(-length // batch_size)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Return the number of batches in the first ``epochs`` epochs, for a schedule's length.

        Example:
            >>> from data_prune import DualScoreSampler
            >>> sampler = DualScoreSampler(range(100), 0.5, score_epochs=3, window=2)
            >>> sampler.total_steps(5, batch_size=20)
            21
        """
        return sum(self.steps_per_epoch(epoch, batch_size, drop_last) for epoch in range(epochs))

    def __len__(self) -> int:
        return self.length(self.epoch)

    def begin(self) -> NDArray[np.int64] | None:
        """Get ready for the present epoch, whose indices are asked for now: its ``members``."""
        return self.members()

    def __iter__(self) -> Iterator[int]:
        together = dist.is_available() and dist.is_initialized()
        if together and not self.alone:
            check_divided(wrapped=self.wrapped, here=self.num_replicas is not None)
        members = self.begin()
        indices = np.arange(self.num_examples, dtype=np.int64) if members is None else members
        if self.shuffle:
            indices = shuffled(indices, self.seed, self.epoch)
        ranks = None if self.num_replicas is None else divided_by(self.num_replicas, self.rank)
        if ranks is not None:
            indices = share(indices, *ranks, self.drop_last)
        self._handout = Handout(self, indices, self.epoch)
        return chain.from_iterable(self._handout.chunks())


def check_division(num_replicas: int | str | None, rank: int | None) -> None:
    """Refuse ranks that are incomplete or outside their range."""
    if num_replicas == "auto":
        num_replicas = None
    if (num_replicas is None) != (rank is None):
        raise ValueError(f"give both or neither: num_replicas {num_replicas}, rank {rank}")
    if num_replicas is None or rank is None:
        return
    if isinstance(num_replicas, str):
        raise ValueError(f"num_replicas must be a number, 'auto' or None, got {num_replicas!r}")
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank must be in [0, {num_replicas}), got {rank}")


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


@dataclass(eq=False)
class Handout:
    """One epoch's indices on their way out, and how many are out.

    Every ``iter`` has a fresh one, so that two never disturb each other.

    Args:
        order: Whose ``epoch`` advances when its latest handout has come to the end.
        indices: (n,) of the epoch, in order.
        epoch: Its number.
    """

    order: EpochOrder
    indices: NDArray[np.int64]
    epoch: int
    _end: int | None = None  # of the chunk that is being handed out; None before any
    _chunk: Iterator[int] = field(default_factory=lambda: iter(()))

    @property
    def yielded(self) -> int:
        """Return how many indices are out."""
        if self._end is None:
            return self.order.resume
        return self._end - length_hint(self._chunk)

    def chunks(self) -> Iterator[Iterator[int]]:
        """Yield the indices in pieces; the epoch is over when all are out."""
        # Asked for at the first index: some loaders make an iterator that they do not use.
        self._end, self.order.resume = self.order.resume, 0
        while self._end < len(self.indices):
            chunk = self.indices[self._end : self._end + _CHUNK].tolist()
            self._chunk = iter(chunk)
            self._end += len(chunk)
            yield self._chunk
        if self.order._handout is self and self.order.epoch == self.epoch:
            self.order.epoch, self.order.resume = self.epoch + 1, 0
