"""Batches with their indices, and a sampler -> batches as before, ``record``, and pruning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ..record.state import check_keys, check_whole
from ..report.evaluate import Comparison
from ..score.table import ScoreTable
from .indexed import check_loader, is_foreign, known_order, rebuild
from .own_order import FilteredBatches


class ScoredLoader:
    """What ``DualScoreSampler.wrap`` returns: iterate, ``record``, and it prunes itself.

    A pass over the loader in which nothing was recorded does not count as a scoring epoch.
    Between two passes ``len()`` is the number of batches of the next one.

    Args:
        loader: The user's own.
        make_sampler: Makes the ``DualScoreSampler`` from the data set and ``options``.
        **options: Of the sampler; those that the loader's own sampler implies are added.

    Attributes:
        sampler: The ``DualScoreSampler`` behind it.
        loader: The DataLoader that carries the indices.
    """

    def __init__(
        self,
        loader: DataLoader,
        make_sampler: Callable[..., Any],
        **options: Any,
    ) -> None:
        check_loader(loader)
        if is_foreign(loader, "__iter__"):
            raise TypeError(
                f"{type(loader).__name__} has an __iter__ of its own, which would get batches with "
                "indices: wrap a plain DataLoader (before accelerator.prepare), or give "
                "index_batches(loader, sampler) and call sampler.update(index, logits, target)"
            )
        own, options = known_order(loader, options)
        self.sampler = make_sampler(loader.dataset, **options)
        self.sampler.wrapped = True
        self._batches = None if own else FilteredBatches(loader.batch_sampler, self.sampler)
        order: dict[str, Any] = (
            {"sampler": self.sampler} if own else {"batch_sampler": self._batches}
        )
        self.loader = rebuild(loader, None, **order)
        self._indices: Sequence[int] | None = None  # of the batch that was handed out last
        self._done: set[int] = set()  # places in that batch that are recorded
        self._recorded = 0  # batches credited in this pass
        self._pass: object | None = None  # the iteration that is going on
        self._pass_epoch = self._pass_length = self._pass_examples = self._pass_batches = 0
        self._warned = False

    def __len__(self) -> int:
        if self._pass is not None:
            # Workers read ahead, so that the sampler may already be an epoch further.
            return self._pass_length
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self._settle()
        if self._batches is not None:
            self._batches.set_epoch(self.sampler.epoch)
        mine = object()
        self._pass_examples = self.sampler.resume
        self._pass_epoch, self._pass_length, self._pass = self.sampler.epoch, len(self.loader), mine
        self._pass_batches = self._pass_examples // (self.loader.batch_size or 1)
        for positions, batch in self.loader:
            self._indices, self._done = positions.indices, set()
            self._pass_examples += len(positions.indices)
            self._pass_batches += 1
            yield batch
            if self._pass is not mine:
                raise RuntimeError(
                    "the loader was iterated anew: this iteration has ended. For a look at a batch "
                    "within a pass iterate a loader of its own"
                )
        self._settle(complete=True)

    def _settle(self, complete: bool = False) -> None:
        """End the pass that is going on; one left early (break, a limit on batches) counts too."""
        if self._pass is None:
            return
        self._pass = self._indices = None
        recorded, self._recorded = self._recorded, 0
        if self._pass_epoch < self.sampler.score_epochs and not recorded:
            self.sampler.rewind(self._pass_epoch)
            if complete and not self._warned:
                self._warned = True
                warnings.warn(
                    "a pass over the loader ended without one record(logits, target): it does not "
                    "count as a scoring epoch, and nothing will be pruned before "
                    f"{self.sampler.score_epochs} passes are recorded",
                    stacklevel=3,
                )
            return
        self.sampler.advance(self._pass_epoch + 1)
        self.sampler.close_epoch()

    def record(
        self,
        logits: Tensor | None = None,
        target: Tensor | None = None,
        *,
        part: slice | None = None,
        **values: Any,
    ) -> None:
        """Credit the batch that was handed out last; see ``DualTracker.update``.

        Once scoring is over this returns at once.

        Args:
            logits: (B, C) what the model said to the batch.
            target: (B,) the labels used in the loss.
            part: Which examples of the batch these are, where a batch is recorded in pieces
                (micro-batches, gradient accumulation); each once.
            **values: Instead of both ``loss=`` (B,), one loss for each example, or ``prob=``
                (B,), with ``label=`` (B,) where there are labels.

        Raises:
            RuntimeError: If no batch is waiting: none was handed out, or it was recorded before.
            ValueError: If the batch has another size, a label is out of range, and so on.
        """
        tracker = self.sampler.tracker
        if tracker is None or tracker.done:
            return
        indices = () if self._indices is None else self._indices
        places = range(len(indices))[slice(None) if part is None else part]
        if not places or not self._done.isdisjoint(places):
            raise RuntimeError(
                "record() has no batch to credit: it was recorded before, or none was handed out"
            )
        given = next((v for v in (logits, *values.values()) if v is not None), None)
        if isinstance(given, Tensor) and given.ndim and len(given) != len(places):
            whose = "batch handed out last" if part is None else f"part {part} of the batch"
            raise ValueError(
                f"record() got {len(given)} examples, the {whose} has {len(places)}"
                + ": name the micro-batch by part=slice(...)" * (part is None)
            )
        index = torch.tensor([indices[i] for i in places], dtype=torch.int64)
        tracker.update(index, logits, target, **values)
        self._done.update(places)
        self._recorded += 1

    @property
    def index(self) -> Tensor:
        """Return the positions of the batch that was handed out last and not recorded yet."""
        if self._indices is None or len(self._done) == len(self._indices):
            raise RuntimeError("no batch is waiting to be recorded")
        return torch.tensor(self._indices, dtype=torch.int64)

    @property
    def weight(self) -> Tensor:
        """Return what the loss of each example of this batch is multiplied by, (B,) float32.

        1 but in mode "dynamic", where the well-learned examples that stay weigh 1 / (1 - r):
        ``(loss * loader.weight.to(loss.device)).mean()`` with one loss for each example.
        """
        if self._indices is None:
            raise RuntimeError("weight belongs to a batch, and none has been handed out")
        return self.sampler.weight(torch.tensor(self._indices, dtype=torch.int64))

    @property
    def progress(self) -> float:
        """Return the part of the training that is over, in [0, 1], for a schedule (mode "dynamic").

        1 when the last batch of the last pass has been handed out.

        Raises:
            RuntimeError: In mode "static", whose ``total_steps`` are known.
        """
        epochs = self.sampler.epochs
        if epochs is None:
            raise RuntimeError("progress needs the number of epochs (mode 'dynamic'): total_steps")
        done = float(self.sampler.epoch)
        if self._pass is not None:
            done = self._pass_epoch + self._pass_batches / self._pass_length
        return min(1.0, done / epochs)

    @property
    def table(self) -> ScoreTable:
        """Return the scores, once all scoring epochs are recorded."""
        self._settle()
        return self.sampler.table

    @property
    def kept(self) -> NDArray[np.int64]:
        """Return the positions of the examples that stay, once the scores are known."""
        self._settle()
        return self.sampler.kept

    def beats_random(self, train_and_score: Callable[..., float], **options: Any) -> Comparison:
        """Compare what will be kept with random subsets; see ``DualScoreSampler.beats_random``."""
        self._settle()
        return self.sampler.beats_random(train_and_score, **options)

    @property
    def scoring(self) -> bool:
        """Say whether the present pass, or between two the next one, is recorded."""
        return self.sampler.scoring

    def coverage(self) -> dict[str, Any]:
        """See ``DualTracker.coverage``."""
        if self.sampler.tracker is None:
            raise RuntimeError("this loader was given a table: nothing is recorded")
        return self.sampler.tracker.coverage()

    def total_steps(self, epochs: int) -> int:
        """Return the number of batches in the first ``epochs`` passes, for a schedule's length.

        Raises:
            RuntimeError: If the order belongs to a sampler of your own, whose batches nobody can
                count before it has drawn them.
        """
        if self._batches is not None:
            raise RuntimeError("the batches of a custom sampler cannot be counted ahead")
        size, drop_last = self.loader.batch_size, self.loader.drop_last
        return self.sampler.total_steps(epochs, size, drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next pass; see ``DualScoreSampler.set_epoch``."""
        self._settle()
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a killed run needs: position in the pass, recordings, scores.

        Raises:
            RuntimeError: In the middle of a pass whose order belongs to a custom sampler.
        """
        sampler = self.sampler.state_dict()
        if self._pass is not None:
            if self._batches is not None:
                raise RuntimeError(
                    "the order of a custom sampler cannot be resumed within a pass: "
                    "take the state between two passes"
                )
            sampler |= {"epoch": self._pass_epoch, "yielded": self._pass_examples}
        tracker = self.sampler.tracker
        return {
            "sampler": sampler,
            "tracker": None if tracker is None else tracker.state_dict(),
            "recorded": self._recorded,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken, after the batch handed out last.

        Raises:
            TypeError: If an entry has the wrong kind.
            ValueError: If an entry is missing, unknown or outside its range, or it belongs to
                another data set length, seed, ratio or other settings. Nothing has been changed.
        """
        check_keys(state_dict, ("sampler", "tracker", "recorded"), "the loader")
        tracker = self.sampler.tracker
        if (tracker is None) != (state_dict["tracker"] is None):
            raise ValueError("one of state and loader records scores, the other was given a table")
        recorded = check_whole("recorded", state_dict["recorded"], 0)
        takes = [self.sampler._checked(state_dict["sampler"], scores_follow=tracker is not None)]
        if tracker is not None:
            takes.append(tracker._checked(state_dict["tracker"]))
        for take in takes:
            take()
        self._pass = self._indices = None
        self._recorded = recorded

    def __getattr__(self, name: str) -> Any:
        # batch_size, dataset, num_workers, ...: as on the loader that was wrapped.
        if name in ("loader", "sampler"):
            raise AttributeError(name)
        holder: Any = self.loader.dataset if name == "dataset" else self.loader
        return getattr(holder, name)
