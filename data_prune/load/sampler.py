"""Epoch number -> who takes part in it: all while scoring, the kept or drawn part afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ..record.state import check_keys, check_same, check_version, check_whole
from ..record.tracker import DualTracker
from ..report.evaluate import Comparison, beats_random
from ..score.table import ScoreTable
from ..select.noise import epoch_seed
from ..select.planner import check_options, keep_count
from .dynamic import Draws, check_mode, full_epochs_of
from .labels import matched
from .loader import ScoredLoader
from .order import EpochOrder

STATE_VERSION = 2
STATE = (
    "version", "mode", "epoch", "yielded", "seed", "num_examples", "prune_ratio", "digest",
)  # fmt: skip
SCORE_EPOCHS, WINDOW = 30, 10


class DualScoreSampler(EpochOrder):
    """Yields every example for ``score_epochs`` epochs, then only the part worth keeping.

    In mode "dynamic" nothing is thrown away: each epoch leaves out a drawn share of what is well
    learned by then, and ``weight`` makes up for it (see ``data_prune.load.dynamic``).

    The order is a pure function of (seed, epoch, scores): the same on every rank, for any batch
    size, and without touching a global generator. Frameworks that shard a sampler (Accelerate,
    Lightning, the Hugging Face Trainer) can shard this one; a hand-written DDP loop passes
    ``num_replicas`` and ``rank``.

    The epoch advances by itself when an iteration has come to its end; ``set_epoch`` overrides
    it. ``len()`` belongs to the epoch that is going on, or between two to the next one.

    Args:
        data_source: The data set, or anything with its length.
        prune_ratio: Fraction REMOVED after the scoring epochs, in [0, 1); in mode "dynamic" of
            the well-learned examples, anew in each epoch.
        score_epochs: T, epochs in which everything is seen and recorded; None takes 30. In mode
            "dynamic" all ``epochs`` are recorded.
        window: J, epochs in a window, 2 <= J <= T; None takes 10, or all epochs where they are
            fewer in mode "dynamic".
        c_d: See ``ScoreTable.select``.
        seed: Of the draw and of the order.
        method: See ``ScoreTable.select``.
        preset: "paper" for the paper's rule; see ``ScoreTable.select``.
        shuffle: Whether each epoch has a new random order.
        table: Scores of an earlier run; then every epoch yields the kept part only. This is the
            paper's protocol: train from scratch on what an earlier run has chosen.
        redraw: Draw another subset with the same weights at every epoch. All kept sets together
            are larger than one: compare with random subsets redrawn as often.
        mode: "static" decides once, after the scoring epochs. "dynamic" decides at every epoch,
            and each example's loss must be multiplied by ``weight``.
        epochs: Passes of the whole training (mode "dynamic").
        full_epochs: How many of the last epochs see everything (mode "dynamic"); None takes an
            eighth, as the paper.
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
        Cho et al., ICML 2025; mode "dynamic": Qin et al., ICLR 2024.

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
        score_epochs: int | None = None,
        window: int | None = None,
        c_d: float | str | None = None,
        seed: int = 0,
        method: str | None = None,
        preset: str | None = None,
        shuffle: bool = True,
        table: ScoreTable | None = None,
        redraw: bool = False,
        mode: str = "static",
        epochs: int | None = None,
        full_epochs: int | None = None,
        num_replicas: int | str | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        select_options: dict[str, Any] | None = None,
        tracker_options: dict[str, Any] | None = None,
        keys: Any = None,
        check_labels: bool = True,
    ) -> None:
        if not hasattr(data_source, "__len__"):
            raise TypeError(
                f"data_source must have a length, got {type(data_source).__name__}; for streams "
                "see KeyedTracker"
            )
        if len(data_source) == 0:
            raise ValueError("data_source is empty")
        super().__init__(
            len(data_source),
            seed=seed,
            shuffle=shuffle,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=drop_last,
            alone=(tracker_options or {}).get("process_group") is False,
        )
        self.num_kept = keep_count(self.num_examples, prune_ratio)
        if (mode, epochs, full_epochs) != ("static", None, None):
            scores = None if table is None else f"{len(table)} scores"
            refused = {"score_epochs": score_epochs, "table": scores, "redraw": redraw or None}
            check_mode(mode, {"epochs": epochs, "full_epochs": full_epochs}, refused)
        self.mode, self.epochs, self.redraw = mode, epochs, redraw
        if epochs is not None:  # mode "dynamic"
            score_epochs, window = epochs, window or min(WINDOW, epochs)
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
        self.data_source, self.prune_ratio = data_source, float(prune_ratio)
        self.score_epochs = 0 if table is not None else score_epochs or SCORE_EPOCHS
        self.tracker: DualTracker | None = None
        if table is None:
            how: dict[str, Any] = {"epochs": self.score_epochs, "window": window or WINDOW}
            self.tracker = DualTracker(self.num_examples, **how, **(tracker_options or {}))
        self.select_options = {
            "method": method,
            "c_d": c_d,
            "preset": preset,
            **(select_options or {}),
        }
        peers: Iterable[str] = () if table is None else table.peers
        check_options(self.select_options, peers if self.tracker is None else self.tracker.peers)
        self._table = table
        self._kept: NDArray[np.int64] | None = None
        self._digest: str | None = None
        self._draws: Draws | None = None
        if self.tracker is not None and epochs is not None:
            last = epochs - full_epochs_of(epochs, full_epochs)
            self._draws = Draws(self.tracker, self.prune_ratio, self.seed, last)

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
            seed = epoch_seed(self.seed, self.epoch)
            return self.table.select(self.prune_ratio, seed=seed, **self.select_options)
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

    # -- who takes part ---------------------------------------------------------------------

    def members(self) -> NDArray[np.int64] | None:
        """Return the examples of the present epoch, ascending; None where all take part."""
        if self._draws is not None:
            return self._draws.of(self.epoch, self.epoch).members
        return None if self.epoch < self.score_epochs else self.kept

    def count(self, epoch: int) -> int:
        """Return how many examples take part in an epoch, over all ranks.

        Raises:
            RuntimeError: In mode "dynamic", for an epoch before the losses are known.
        """
        if self._draws is not None:
            members = self._draws.of(epoch, self.epoch).members
            return self.num_examples if members is None else len(members)
        return self.num_examples if epoch < self.score_epochs else self.num_kept

    def weight(self, index: Tensor) -> Tensor:
        """Return what each example's loss is multiplied by, (B,) float32 on the host.

        1 but in mode "dynamic", where the well-learned examples that stay weigh 1 / (1 - r).

        Args:
            index: (B,) positions, of the epoch that began last.
        """
        return torch.ones(len(index)) if self._draws is None else self._draws.weights(index)

    def begin(self) -> NDArray[np.int64] | None:
        """Close what is recorded of the epoch before, and return who takes part in this one."""
        if self.tracker is not None and self.epoch > self.tracker.epoch:
            # All batches of the last epoch are in: loaders ask for an epoch's indices only when
            # it begins, however far ahead they read within it.
            self.close_epoch()
        if self._draws is not None:
            self._draws.begin(self.epoch)
        return self.members()

    # -- resuming ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration is, and a digest of what it depends on.

        Small, so that a loader may take it at every batch. The scores are apart, in
        ``tracker.state_dict()`` or ``table``.
        """
        return {
            "version": STATE_VERSION,
            "mode": self.mode,
            "epoch": self.epoch,
            "yielded": self.yielded,
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
        for name in ("mode", "seed", "num_examples", "prune_ratio"):
            check_same(name, state_dict[name], getattr(self, name), "sampler")
        epoch = check_whole("epoch", state_dict["epoch"], 0)
        # In mode "dynamic" the length follows from recordings that may be loaded later.
        longest = self.length(0 if self.mode == "dynamic" else epoch)
        yielded = check_whole("yielded", state_dict["yielded"], 0, longest)
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
            self.go_on(epoch, yielded)
            if self._draws is not None:
                self._draws.forget()
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
