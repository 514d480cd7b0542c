"""A user's DataLoader -> the same loader with the index of every example inside its batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from data_prune.sampler import DualScoreSampler
from data_prune.table import ScoreTable

__all__ = ["IndexedDataset", "ScoredLoader", "index_batches"]


class IndexedDataset(Dataset):
    """Gives (index, example) instead of the example; batched reads stay batched.

    Example:
        >>> IndexedDataset(["a", "b"])[1]
        (1, 'b')
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        # The loader prefers this method, so it must exist and must not lose the data set's own.
        if callable(getattr(self.dataset, "__getitems__", None)):
            examples = self.dataset.__getitems__(indices)
        else:
            examples = [self.dataset[i] for i in indices]
        return list(zip(indices, examples, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)


class _IndexedCollate:
    """Collates the examples as before and puts the indices where ``place`` says."""

    def __init__(self, collate: Callable[[list[Any]], Any], place: str | None) -> None:
        self.collate, self.place = collate, place

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> Any:
        index = torch.tensor([i for i, _ in pairs], dtype=torch.int64)
        batch = self.collate([example for _, example in pairs])
        if self.place is None:
            return index, batch
        if isinstance(batch, dict) or hasattr(batch, "keys"):
            batch[self.place] = index
            return batch
        if isinstance(batch, (tuple, list)):
            return (*batch, index)
        return batch, index


def index_batches(
    loader: DataLoader, sampler: DualScoreSampler | None = None, *, name: str = "index"
) -> DataLoader:
    """An ordinary DataLoader whose batches carry the positions of their examples.

    For frameworks that take the loader into their own hands and read ahead (Accelerate,
    Lightning, the Hugging Face Trainer): the index goes wherever the batch goes, and
    ``sampler.update(index, logits, target)`` credits the right examples.

    Args:
        loader: a DataLoader over a map-style data set.
        sampler: takes the place of the loader's own.
        name: key of the indices in dict batches. A tuple or list batch gets them as its last
            entry; any other batch becomes ``(batch, index)``.

    Returns:
        A loader of the same class and settings.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.zeros(3, 1)), batch_size=3)
        >>> [batch[-1].tolist() for batch in index_batches(loader)]
        [[0, 1, 2]]
    """
    check_loader(loader)
    return rebuild(loader, sampler, name)


def rebuild(loader: DataLoader, sampler: Any, place: str | None) -> DataLoader:
    """The same loader over indexed examples, with ``sampler`` (or batch sampler) if given."""
    # Without workers these two must not be passed at all.
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "persistent_workers": loader.persistent_workers,
    }
    if loader.num_workers > 0:
        options["prefetch_factor"] = loader.prefetch_factor
    for extra in ("snapshot_every_n_steps", "in_order"):
        if hasattr(loader, extra):
            options[extra] = getattr(loader, extra)
    collate = loader.collate_fn if loader.collate_fn is not None else default_collate
    if isinstance(sampler, DualScoreSampler) or (sampler is None and _is_plain(loader)):
        options |= {
            "sampler": loader.sampler if sampler is None else sampler,
            "batch_size": loader.batch_size or _batch_size(loader.batch_sampler),
            "drop_last": loader.drop_last,
        }
    else:
        options["batch_sampler"] = loader.batch_sampler if sampler is None else sampler
    return type(loader)(
        IndexedDataset(loader.dataset), collate_fn=_IndexedCollate(collate, place), **options
    )


def _is_plain(loader: DataLoader) -> bool:
    """Whether batches are what torch makes of a sampler and a batch size."""
    return loader.batch_size is not None


def _batch_size(batch_sampler: Any) -> int:
    size = getattr(batch_sampler, "batch_size", None)
    if not isinstance(size, int):
        raise ValueError(f"{type(batch_sampler).__name__} has no integer batch_size")
    return size


def check_loader(loader: Any) -> None:
    """Refuse what cannot be indexed, and say what can be done instead."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"loader must be a torch DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} is an iterable-style data set: its examples have no "
            "positions. Give them keys and record with KeyedTracker(epochs=..., window=...)"
        )
    if isinstance(loader.dataset, IndexedDataset):
        raise TypeError("this loader already carries indices: wrap the original one")
    if loader.batch_sampler is None:
        raise ValueError(
            "a loader with batch_size=None gives no batches of its own: the data set must be "
            "indexed by example"
        )
    if len(loader.dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the loader is empty: its data set has no examples")
    if len(loader) == 0:
        raise ValueError(
            f"the loader is empty: {len(loader.dataset)} examples, batch size "  # type: ignore[arg-type]
            f"{loader.batch_size}, drop_last={loader.drop_last}"
        )


class _FilteredBatches:
    """A batch sampler's own order without the pruned examples, in batches as large as before."""

    def __init__(self, batches: Any, sampler: DualScoreSampler) -> None:
        self.batches, self.sampler = batches, sampler
        self._plan: tuple[int, list[list[int]]] | None = None

    def _kept_batches(self) -> list[list[int]]:
        """One epoch's batches, drawn once and handed out once, so that ``len`` is exact."""
        if self._plan is None or self._plan[0] != self.sampler.epoch:
            mask = np.zeros(self.sampler.num_examples, dtype=bool)
            mask[self.sampler.kept] = True
            original = [list(batch) for batch in self.batches]
            size = max(len(batch) for batch in original)
            stream = [i for batch in original for i in batch if mask[i]]
            drop = bool(getattr(self.batches, "drop_last", False))
            end = len(stream) - len(stream) % size if drop else len(stream)
            chunks = [stream[i : i + size] for i in range(0, end, size)]
            self._plan = (self.sampler.epoch, chunks)
        return self._plan[1]

    def __len__(self) -> int:
        return len(self.batches) if self.sampler.scoring else len(self._kept_batches())

    def __iter__(self) -> Iterator[list[int]]:
        if self.sampler.scoring:
            for batch in self.batches:
                yield list(batch)
        else:
            yield from self._kept_batches()
        self.sampler.set_epoch(self.sampler.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        parts: tuple[Any, ...] = (self.batches, getattr(self.batches, "sampler", None))
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)


class ScoredLoader:
    """What ``DualScoreSampler.wrap`` returns: iterate, ``record``, and it prunes itself.

    A pass over the loader in which nothing was recorded does not count as a scoring epoch.
    Between two passes ``len()`` is the number of batches of the next one.

    Attributes:
        sampler: the ``DualScoreSampler`` behind it.
        loader: the DataLoader that carries the indices.
    """

    def __init__(
        self,
        loader: DataLoader,
        prune_ratio: float,
        *,
        sampler_class: type[DualScoreSampler] = DualScoreSampler,
        **options: Any,
    ) -> None:
        check_loader(loader)
        own, options = _own_sampler(loader, options)
        self.sampler = sampler_class(loader.dataset, prune_ratio, **options)  # type: ignore[arg-type]
        self._batches = None if own else _FilteredBatches(loader.batch_sampler, self.sampler)
        self.loader = rebuild(loader, self._batches or self.sampler, None)
        self._handed_out: Tensor | None = None
        self._recorded = 0  # batches credited in this pass
        self._pass: object | None = None  # the iteration that is going on
        self._pass_epoch = self._pass_length = self._pass_examples = 0
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
        self._pass_examples = self.sampler.state_dict()["yielded"]
        self._pass_epoch, self._pass_length, self._pass = self.sampler.epoch, len(self.loader), mine
        for index, batch in self.loader:
            self._handed_out = index
            self._pass_examples += len(index)
            yield batch
            if self._pass is not mine:
                raise RuntimeError("the loader was iterated anew: this iteration has ended")
        self._settle(complete=True)

    def _settle(self, complete: bool = False) -> None:
        """End the pass that is going on; one left early (break, a limit on batches) counts too."""
        if self._pass is None:
            return
        self._pass = self._handed_out = None
        recorded, self._recorded = self._recorded, 0
        if self._pass_epoch < self.sampler.score_epochs and not recorded:
            self.sampler.set_epoch(self._pass_epoch)
            if complete and not self._warned:
                self._warned = True
                warnings.warn(
                    "a pass over the loader ended without one record(logits, target): it does not "
                    "count as a scoring epoch, and nothing will be pruned before "
                    f"{self.sampler.score_epochs} passes are recorded",
                    stacklevel=3,
                )
            return
        self.sampler.set_epoch(self._pass_epoch + 1)
        self.sampler.close_epoch()

    def record(self, logits: Tensor, target: Tensor) -> None:
        """Credit the batch that was handed out last; see ``DualTracker.update``.

        Once scoring is over this returns at once.

        Args:
            logits: (B, C) what the model said to the batch.
            target: (B,) the labels used in the loss.

        Raises:
            RuntimeError: if no batch is waiting: none was handed out, or it was recorded before.
            ValueError: if the batch has another size, a label is out of range, and so on.
        """
        tracker = self.sampler.tracker
        if tracker is None or tracker.done:
            return
        if self._handed_out is None:
            raise RuntimeError(
                "record() has no batch to credit: it was recorded before, or none was handed out"
            )
        if isinstance(logits, Tensor) and len(logits) != len(self._handed_out):
            raise ValueError(
                f"record() got {len(logits)} examples, the batch handed out last has "
                f"{len(self._handed_out)}"
            )
        tracker.update(self._handed_out, logits, target)
        self._handed_out = None
        self._recorded += 1

    @property
    def index(self) -> Tensor:
        """Positions of the examples in the batch that was handed out last and not recorded yet."""
        if self._handed_out is None:
            raise RuntimeError("no batch is waiting to be recorded")
        return self._handed_out

    @property
    def table(self) -> ScoreTable:
        """The scores, once all scoring epochs are recorded."""
        self._settle()
        return self.sampler.table

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions of the examples that stay, once the scores are known."""
        self._settle()
        return self.sampler.kept

    @property
    def scoring(self) -> bool:
        """Whether the present pass, or between two the next one, is recorded."""
        return self.sampler.scoring

    def coverage(self) -> dict[str, Any]:
        """See ``DualTracker.coverage``."""
        if self.sampler.tracker is None:
            raise RuntimeError("this loader was given a table: nothing is recorded")
        return self.sampler.tracker.coverage()

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next pass."""
        self._settle()
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a killed run needs: position in the pass, recordings, scores.

        Raises:
            RuntimeError: in the middle of a pass whose order belongs to a custom sampler.
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
            ValueError: if it belongs to another data set length, seed, ratio or other settings.
        """
        tracker = self.sampler.tracker
        if (tracker is None) != (state_dict["tracker"] is None):
            raise ValueError("one of state and loader records scores, the other was given a table")
        if tracker is not None:
            tracker.load_state_dict(state_dict["tracker"])
        self.sampler.load_state_dict(state_dict["sampler"])
        self._pass = self._handed_out = None
        self._recorded = state_dict["recorded"]

    def __getattr__(self, name: str) -> Any:
        # batch_size, dataset, num_workers, ...: as on the loader that was wrapped.
        if name in ("loader", "sampler"):
            raise AttributeError(name)
        holder: Any = self.loader.dataset if name == "dataset" else self.loader
        return getattr(holder, name)


def _own_sampler(loader: DataLoader, options: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether DualScoreSampler can take the loader's order over, and with which settings."""
    sampler = loader.sampler
    if loader.batch_size is None or type(loader.batch_sampler).__name__ != BatchSampler.__name__:
        return False, options
    if isinstance(sampler, DistributedSampler):
        ranks = {
            "num_replicas": sampler.num_replicas,
            "rank": sampler.rank,
            "drop_last": sampler.drop_last,
            "shuffle": sampler.shuffle,
        }
        return True, {**ranks, **options}
    if type(sampler).__name__ == SequentialSampler.__name__:
        return True, {"shuffle": False, **options}
    if type(sampler).__name__ == RandomSampler.__name__:
        plain = not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[attr-defined,arg-type]
        return plain, options
    return False, options
