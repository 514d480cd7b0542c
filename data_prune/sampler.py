"""Epoch number -> the order of examples: all of them while scoring, the kept part afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from data_prune.keys import uniform
from data_prune.loader import ScoredLoader
from data_prune.order import EpochIterator, check_ranks, share, share_length, shuffled
from data_prune.plan import METHODS
from data_prune.quotas import keep_count
from data_prune.table import ScoreTable
from data_prune.tracker import DualTracker

__all__ = ["DualScoreSampler"]

STATE_VERSION = 1


class DualScoreSampler(Sampler[int]):
    """Yields every example for ``score_epochs`` epochs, then only the part worth keeping.

    The order is a pure function of (seed, epoch, scores): the same on every rank, for any batch
    size, and without touching a global generator. Frameworks that shard a sampler (Accelerate,
    Lightning, the Hugging Face Trainer) can shard this one; a hand-written DDP loop passes
    ``num_replicas`` and ``rank``.

    The epoch advances by itself when an iteration has come to its end; ``set_epoch`` overrides
    it. ``len()`` belongs to the epoch that is going on, or between two to the next one.

    Args:
        data_source: the data set, or anything with its length.
        prune_ratio: fraction REMOVED after the scoring epochs, in [0, 1).
        score_epochs: T, epochs in which everything is seen and recorded.
        window: J, epochs in a window, 2 <= J <= T.
        c_d: see ``ScoreTable.select``.
        seed: of the draw and of the order.
        method: see ``ScoreTable.select``.
        shuffle: whether each epoch has a new random order.
        table: scores of an earlier run; then every epoch yields the kept part only. This is the
            paper's protocol: train from scratch on what an earlier run has chosen.
        redraw: draw another subset with the same weights at every epoch. All kept sets together
            are larger than one: compare with random subsets redrawn as often.
        num_replicas: number of ranks; None leaves sharding to others.
        rank: this rank's number.
        drop_last: with ``num_replicas``, drop the examples that do not fill a round; otherwise
            the first ones are repeated.
        select_options: further arguments of ``ScoreTable.select``.
        tracker_options: further arguments of ``DualTracker``.

    Raises:
        TypeError: if an argument has the wrong kind.
        ValueError: if an argument is outside its range, the data set is empty, or ``table``
            has another length.

    Source:
        Cho et al., ICML 2025.

    Example:
        >>> sampler = DualScoreSampler(range(10), 0.5, score_epochs=2, window=2)
        >>> len(sampler), sorted(sampler) == list(range(10))
        (10, True)
    """

    def __init__(
        self,
        data_source: Sized,
        prune_ratio: float,
        *,
        score_epochs: int = 30,
        window: int = 10,
        c_d: float | str = 4.0,
        seed: int = 0,
        method: str = "beta",
        shuffle: bool = True,
        table: ScoreTable | None = None,
        redraw: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        select_options: dict[str, Any] | None = None,
        tracker_options: dict[str, Any] | None = None,
    ) -> None:
        self.num_examples = _length(data_source)
        self.num_kept = keep_count(self.num_examples, prune_ratio)
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        check_ranks(num_replicas, rank)
        if table is not None and len(table) != self.num_examples:
            raise ValueError(
                f"table scores {len(table)} examples, the data set has {self.num_examples}"
            )
        if table is None and not shuffle:
            warnings.warn(
                "with shuffle=False the examples at the end of an epoch are always measured on a "
                "better model than those at its start, which biases their scores",
                stacklevel=2,
            )
        self.data_source, self.prune_ratio, self.seed = data_source, float(prune_ratio), int(seed)
        self.shuffle, self.redraw = shuffle, redraw
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.select_options = {"method": method, "c_d": c_d, **(select_options or {})}
        self.score_epochs = 0 if table is not None else score_epochs
        self.tracker = (
            DualTracker(
                self.num_examples, epochs=score_epochs, window=window, **(tracker_options or {})
            )
            if table is None
            else None
        )
        self.epoch = 0
        self._table = table
        self._kept: NDArray[np.int64] | None = None
        self._resume = 0  # indices of this epoch that an earlier run has already handed out
        self._iterator: EpochIterator | None = None

    # -- recording --------------------------------------------------------------------------

    @property
    def scoring(self) -> bool:
        """Whether the present epoch is one of the recorded ones."""
        return self.epoch < self.score_epochs

    def update(self, index: Any, logits: Tensor, target: Tensor) -> None:
        """Credit one batch; see ``DualTracker.update``. Does nothing once scoring is over."""
        if self.tracker is not None:
            self.tracker.update(index, logits, target)

    def close_epoch(self) -> None:
        """Close the tracker's open epoch if something was recorded in it.

        Called when the next epoch begins; needed by hand only after the very last one.
        """
        if self.tracker is not None and self.tracker.recording and not self.tracker.done:
            self.tracker.end_epoch()

    @property
    def table(self) -> ScoreTable:
        """The scores.

        Raises:
            RuntimeError: before all scoring epochs are recorded.
        """
        if self._table is None:
            assert self.tracker is not None
            if self.tracker.epoch == self.tracker.epochs - 1:
                self.close_epoch()
            if not self.tracker.done:
                raise RuntimeError(
                    f"{self.tracker.epoch} of {self.tracker.epochs} scoring epochs are recorded: "
                    "the scores are not known yet (is update() or record() called for every batch?)"
                )
            self._table = self.tracker.table()
        return self._table

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions of the examples that stay, ascending; of the present epoch with ``redraw``.

        Raises:
            RuntimeError: before all scoring epochs are recorded.
        """
        if self.redraw:
            draw = int(uniform(self.seed, np.array([self.epoch], np.uint64))[0] * 2**52)
            return self.table.select(self.prune_ratio, seed=draw, **self.select_options)
        if self._kept is None:
            self._kept = self.table.select(self.prune_ratio, seed=self.seed, **self.select_options)
        return self._kept

    # -- order ------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be iterated."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if epoch != self.epoch:
            self.epoch, self._resume = epoch, 0

    def order(self) -> NDArray[np.int64]:
        """The present epoch's indices in order, before they are divided among ranks."""
        everything = np.arange(self.num_examples, dtype=np.int64)
        indices = everything if self.scoring else self.kept
        return shuffled(indices, self.seed, self.epoch) if self.shuffle else indices

    def length(self, epoch: int) -> int:
        """Number of indices that this rank yields in ``epoch``, known before the scores are."""
        total = self.num_examples if epoch < self.score_epochs else self.num_kept
        return share_length(total, self.num_replicas, self.drop_last)

    def steps_per_epoch(self, epoch: int, batch_size: int, drop_last: bool = False) -> int:
        """Number of batches in ``epoch``: what a learning-rate schedule needs to know.

        Example:
            >>> sampler = DualScoreSampler(range(100), 0.5, score_epochs=3, window=2)
            >>> [sampler.steps_per_epoch(e, batch_size=20) for e in range(5)]
            [5, 5, 5, 3, 3]
        """
        length = self.length(epoch)
        return length // batch_size if drop_last else -(-length // batch_size)

    def __len__(self) -> int:
        return self.length(self.epoch)

    def __iter__(self) -> Iterator[int]:
        if self.tracker is not None and self.epoch > self.tracker.epoch:
            # All batches of the last epoch are in: loaders ask for an epoch's indices only when
            # it begins, however far ahead they read within it.
            self.close_epoch()
        start, self._resume = self._resume, 0
        mine = share(self.order(), self.num_replicas, self.rank, self.drop_last)
        self._iterator = EpochIterator(self, mine, start)
        return self._iterator

    # -- resuming ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration is, and a digest of what it depends on.

        Small, so that a loader may take it at every batch. The scores are apart, in
        ``tracker.state_dict()`` or ``table``.
        """
        yielded = self._resume
        if self._iterator is not None and self._iterator.epoch == self.epoch:
            yielded = self._iterator.yielded
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "yielded": yielded,
            "seed": self.seed,
            "num_examples": self.num_examples,
            "prune_ratio": self.prune_ratio,
            "digest": None if self._kept is None else self.table.digest(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the index at which ``state_dict`` was taken, once.

        Raises:
            ValueError: if it belongs to another seed, data set length, ratio or scores.
        """
        if state_dict["version"] != STATE_VERSION:
            raise ValueError(f"state has version {state_dict['version']}, known is {STATE_VERSION}")
        for name in ("seed", "num_examples", "prune_ratio"):
            if state_dict[name] != getattr(self, name):
                raise ValueError(
                    f"state has {name} = {state_dict[name]}, this sampler {getattr(self, name)}"
                )
        digest = state_dict["digest"]
        if digest is not None and self._table is not None and digest != self._table.digest():
            raise ValueError("state belongs to other scores than this sampler has")
        self.epoch, self._resume = state_dict["epoch"], state_dict["yielded"]
        self._iterator = None

    @classmethod
    def wrap(cls, loader: DataLoader, prune_ratio: float, **options: Any) -> ScoredLoader:
        """The same loader, scored and then pruned: three lines in your own loop.

        ``loader.record(logits, target)`` after each forward pass is all that is left to do.
        Batches look exactly as before: each example's index travels inside the batch and is
        taken off again. Order and length then follow this sampler; a sampler other than
        torch's sequential, random or distributed one keeps its order and is filtered.

        Args:
            loader: a DataLoader over a map-style data set.
            prune_ratio: fraction REMOVED after the scoring epochs, in [0, 1).
            **options: the other arguments of ``DualScoreSampler``.

        Returns:
            A loader that can be iterated again and again, with ``record``, ``table``,
            ``sampler`` and ``len()``.

        Raises:
            TypeError: for an iterable-style data set or something that is no DataLoader.
            ValueError: for an empty loader or one without batches.

        Example:
            >>> import torch
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
            >>> loader = DataLoader(data, batch_size=4, shuffle=True)
            >>> model = torch.nn.Linear(3, 2)
            >>> loader = DualScoreSampler.wrap(loader, prune_ratio=0.5, score_epochs=2, window=2)
            >>> for epoch in range(3):
            ...     for x, y in loader:
            ...         loader.record(model(x), y)
            >>> len(loader.table), len(loader)
            (8, 1)
        """
        return ScoredLoader(loader, cls, prune_ratio=prune_ratio, **options)


def _length(data_source: Sized) -> int:
    if not hasattr(data_source, "__len__"):
        raise TypeError(
            f"data_source must have a length, got {type(data_source).__name__}; for streams see "
            "KeyedTracker"
        )
    if len(data_source) == 0:
        raise ValueError("data_source is empty")
    return len(data_source)
