"""Epoch number -> the order of examples: all of them while scoring, the kept part afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sized
from itertools import chain
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..record.state import check_keys, check_same, check_version, check_whole
from ..record.tracker import DualTracker
from ..report.evaluate import Comparison, beats_random
from ..score.table import ScoreTable
from ..select.noise import shuffled, uniform
from ..select.planner import keep_count, resolve_method
from .division import check_divided, check_division, divided_by
from .labels import matched
from .loader import ScoredLoader
from .order import Handout, share, share_length

STATE_VERSION = 1
STATE = ("version", "epoch", "yielded", "seed", "num_examples", "prune_ratio", "digest")


class DualScoreSampler(Sampler[int]):
    """Yields every example for ``score_epochs`` epochs, then only the part worth keeping.

    The order is a pure function of (seed, epoch, scores): the same on every rank, for any batch
    size, and without touching a global generator. Frameworks that shard a sampler (Accelerate,
    Lightning, the Hugging Face Trainer) can shard this one; a hand-written DDP loop passes
    ``num_replicas`` and ``rank``.

    The epoch advances by itself when an iteration has come to its end; ``set_epoch`` overrides
    it. ``len()`` belongs to the epoch that is going on, or between two to the next one.

    Args:
        data_source: The data set, or anything with its length.
        prune_ratio: Fraction REMOVED after the scoring epochs, in [0, 1).
        score_epochs: T, epochs in which everything is seen and recorded.
        window: J, epochs in a window, 2 <= J <= T.
        c_d: See ``ScoreTable.select``.
        seed: Of the draw and of the order.
        method: See ``ScoreTable.select``.
        preset: "paper" for the paper's rule; see ``ScoreTable.select``.
        shuffle: Whether each epoch has a new random order.
        table: Scores of an earlier run; then every epoch yields the kept part only. This is the
            paper's protocol: train from scratch on what an earlier run has chosen.
        redraw: Draw another subset with the same weights at every epoch. All kept sets together
            are larger than one: compare with random subsets redrawn as often.
        num_replicas: Number of ranks; "auto" asks torch.distributed when an epoch begins; None
            leaves the division to Accelerate or the Trainer.
        rank: This rank's number; with a number of ranks.
        drop_last: With ``num_replicas``, drop the examples that do not fill a round; otherwise
            the first ones are repeated.
        select_options: Further arguments of ``ScoreTable.select``.
        tracker_options: Further arguments of ``DualTracker``.
        keys: Key of each example, or the name of the column that holds it, for a ``table`` with
            keys of its own (a stream's) or of more examples; without them rows are positions.
        check_labels: Refuse a ``table`` whose labels are not those of the data, where both are
            known.

    Raises:
        TypeError: If an argument has the wrong kind.
        ValueError: If an argument is outside its range, the data set is empty, or ``table``
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
        c_d: float | str | None = None,
        seed: int = 0,
        method: str | None = None,
        preset: str | None = None,
        shuffle: bool = True,
        table: ScoreTable | None = None,
        redraw: bool = False,
        num_replicas: int | str | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        select_options: dict[str, Any] | None = None,
        tracker_options: dict[str, Any] | None = None,
        keys: Any = None,
        check_labels: bool = True,
    ) -> None:
        self.num_examples = _length(data_source)
        self.num_kept = keep_count(self.num_examples, prune_ratio)
        resolve_method(method, preset, c_d)
        check_division(num_replicas, rank)
        if table is not None:
            table = matched(table, data_source, keys, check_labels)
        elif keys is not None:
            raise ValueError("keys say which row of a table is whose, and there is no table")
        if table is None and not shuffle:
            warnings.warn(
                "with shuffle=False the examples at the end of an epoch are always measured on a "
                "better model than those at its start, which biases their scores",
                stacklevel=2,
            )
        self.data_source, self.prune_ratio, self.seed = data_source, float(prune_ratio), int(seed)
        self.shuffle, self.redraw = shuffle, redraw
        self.num_replicas, self.rank, self.drop_last = num_replicas, rank, drop_last
        self.select_options = {
            "method": method,
            "c_d": c_d,
            "preset": preset,
            **(select_options or {}),
        }
        self.score_epochs = 0 if table is not None else score_epochs
        self.tracker = (
            DualTracker(
                self.num_examples, epochs=score_epochs, window=window, **(tracker_options or {})
            )
            if table is None
            else None
        )
        # One process is told by process_group=False to keep to itself.
        self._alone = (tracker_options or {}).get("process_group") is False
        self._wrapped = False  # in a ScoredLoader, which no framework divides
        self._loaded: int | None = None  # epoch of a state, until the next set_epoch
        self._ahead = 0  # of the numbers that set_epoch is given
        self.epoch = 0
        self._table = table
        self._kept: NDArray[np.int64] | None = None
        self._digest: str | None = None
        self.resume = 0  # indices of this epoch that an earlier run has already handed out
        self._handout: Handout | None = None

    # -- recording --------------------------------------------------------------------------

    @property
    def scoring(self) -> bool:
        """Say whether the present epoch is one of the recorded ones."""
        return self.epoch < self.score_epochs

    def update(
        self, index: Any, logits: Tensor | None = None, target: Tensor | None = None, **values: Any
    ) -> None:
        """Credit one batch; see ``DualTracker.update``. Does nothing once scoring is over."""
        if self.tracker is not None:
            self.tracker.update(index, logits, target, **values)

    def close_epoch(self) -> None:
        """Close the tracker's open epoch if something was recorded in it.

        Called when the next epoch begins; needed by hand only after the very last one.
        """
        if self.tracker is not None and self.tracker.recording and not self.tracker.done:
            self.tracker.end_epoch()

    @property
    def table(self) -> ScoreTable:
        """Return the scores.

        Raises:
            RuntimeError: Before all scoring epochs are recorded.
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
        """Return the positions that stay, ascending; with ``redraw`` those of the present epoch.

        Raises:
            RuntimeError: Before all scoring epochs are recorded.
        """
        if self.redraw:
            draw = int(uniform(self.seed, np.array([self.epoch], np.uint64))[0] * 2**52)
            return self.table.select(self.prune_ratio, seed=draw, **self.select_options)
        if self._kept is None:
            self._kept = self.table.select(self.prune_ratio, seed=self.seed, **self.select_options)
        return self._kept

    def beats_random(
        self,
        train_and_score: Callable[[NDArray[np.int64], NDArray[np.int64], int], float],
        **options: Any,
    ) -> Comparison:
        """Compare this sampler's selection with random ones, before anything is thrown away.

        Args:
            train_and_score: See ``data_prune.beats_random``.
            **options: ``repeats``, ``holdout`` and ``confidence``, as there.

        Raises:
            RuntimeError: Before all scoring epochs are recorded.
        """
        options = {"seed": self.seed, **self.select_options, **options}
        return beats_random(train_and_score, self.table, self.prune_ratio, **options)

    # -- order ------------------------------------------------------------------------------

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

    def order(self) -> NDArray[np.int64]:
        """Return the present epoch's indices in order, before they are divided among ranks."""
        everything = np.arange(self.num_examples, dtype=np.int64)
        indices = everything if self.epoch < self.score_epochs else self.kept
        return shuffled(indices, self.seed, self.epoch) if self.shuffle else indices

    def length(self, epoch: int) -> int:
        """Return how many indices this rank yields in ``epoch``, known before the scores are."""
        total = self.num_examples if epoch < self.score_epochs else self.num_kept
        ranks = None if self.num_replicas is None else divided_by(self.num_replicas, self.rank)
        return total if ranks is None else share_length(total, ranks[0], self.drop_last)

    def steps_per_epoch(self, epoch: int, batch_size: int, drop_last: bool = False) -> int:
        """Return the number of batches in ``epoch``: what a learning-rate schedule needs to know.

        Example:
            >>> sampler = DualScoreSampler(range(100), 0.5, score_epochs=3, window=2)
            >>> [sampler.steps_per_epoch(e, batch_size=20) for e in range(5)]
            [5, 5, 5, 3, 3]
        """
        length = self.length(epoch)
        return length // batch_size if drop_last else -(-length // batch_size)

    def total_steps(self, epochs: int, batch_size: int, drop_last: bool = False) -> int:
        """Return the number of batches in the first ``epochs`` epochs, for a schedule's length.

        Example:
            >>> sampler = DualScoreSampler(range(100), 0.5, score_epochs=3, window=2)
            >>> sampler.total_steps(5, batch_size=20)
            21
        """
        return sum(self.steps_per_epoch(epoch, batch_size, drop_last) for epoch in range(epochs))

    def __len__(self) -> int:
        return self.length(self.epoch)

    def __iter__(self) -> Iterator[int]:
        together = dist.is_available() and dist.is_initialized()
        if together and self.num_replicas is None and not self._alone:
            check_divided(wrapped=self._wrapped)
        if self.tracker is not None and self.epoch > self.tracker.epoch:
            # All batches of the last epoch are in: loaders ask for an epoch's indices only when
            # it begins, however far ahead they read within it.
            self.close_epoch()
        indices = self.order()
        ranks = None if self.num_replicas is None else divided_by(self.num_replicas, self.rank)
        if ranks is not None:
            indices = share(indices, *ranks, self.drop_last)
        self._handout = Handout(self, indices)
        return chain.from_iterable(self._handout.chunks())

    # -- resuming ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration is, and a digest of what it depends on.

        Small, so that a loader may take it at every batch. The scores are apart, in
        ``tracker.state_dict()`` or ``table``.
        """
        yielded = self.resume
        if self._handout is not None and self._handout.epoch == self.epoch:
            yielded = self._handout.yielded
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "yielded": yielded,
            "seed": self.seed,
            "num_examples": self.num_examples,
            "prune_ratio": self.prune_ratio,
            "digest": None if self._kept is None else self._table_digest(),
        }

    def _table_digest(self) -> str:
        """Return the digest of the scores, taken once: a loader may ask at every batch."""
        if self._digest is None:
            self._digest = self.table.digest()
        return self._digest

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the index at which ``state_dict`` was taken, once.

        Raises:
            TypeError: If an entry has the wrong kind.
            ValueError: If an entry is missing, unknown or outside its range, or it belongs to
                another seed, data set length, ratio or scores. Nothing has been changed then.
        """
        self._checked(state_dict)()

    def _checked(self, state_dict: Any, *, scores_follow: bool = False) -> Callable[[], None]:
        """Check a whole state, and return what takes it over.

        Args:
            state_dict: What ``state_dict`` gave.
            scores_follow: The tracker's state is loaded as well, with other scores than now.
        """
        check_keys(state_dict, STATE, "the sampler")
        check_version(state_dict["version"], STATE_VERSION)
        for name in ("seed", "num_examples", "prune_ratio"):
            check_same(name, state_dict[name], getattr(self, name), "sampler")
        epoch = check_whole("epoch", state_dict["epoch"], 0)
        yielded = check_whole("yielded", state_dict["yielded"], 0, self.length(epoch))
        digest = state_dict["digest"]
        if not (digest is None or isinstance(digest, str)):
            raise TypeError(f"digest of the state must be text or None, got {digest!r}")
        if (
            None not in (digest, self._table)
            and not scores_follow
            and digest != self._table_digest()
        ):
            raise ValueError("state belongs to other scores than this sampler has")

        def take() -> None:
            self.epoch, self.resume, self._handout = epoch, yielded, None
            self._loaded, self._ahead = epoch, 0
            if scores_follow:
                self._table = self._kept = self._digest = None

        return take

    @classmethod
    def wrap(cls, loader: DataLoader, prune_ratio: float, **options: Any) -> ScoredLoader:
        """Return the same loader, scored and then pruned: three lines in your own loop.

        ``loader.record(logits, target)`` after each forward pass is all that is left to do.
        Batches look exactly as before: each example's index travels inside the batch and is
        taken off again. Order and length then follow this sampler; a sampler other than
        torch's sequential, random or distributed one keeps its order and is filtered.

        Args:
            loader: A DataLoader over a map-style data set.
            prune_ratio: Fraction REMOVED after the scoring epochs, in [0, 1).
            **options: The other arguments of ``DualScoreSampler``.

        Returns:
            A loader that can be iterated again and again, with ``record``, ``table``,
            ``sampler`` and ``len()``.

        Raises:
            TypeError: For an iterable-style data set or something that is no DataLoader.
            ValueError: For an empty loader or one without batches.

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
