"""A user's DataLoader -> the same loader with the index of every example inside its batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)


class Examples(NamedTuple):
    """A batch before it is collated: pairs would cost a tuple for every example."""

    indices: Sequence[int]
    examples: Any


@dataclass(eq=False)
class Positions:
    """The positions of a batch on their way to ``record``, a tensor only where one is asked for.

    No tensor, which would take a piece of shared memory of its own, and no sequence, whose items
    pinning would look at one by one.
    """

    indices: Sequence[int]


class IndexedDataset(Dataset):
    """Give (index, example) instead of the example; batched reads stay batched.

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

    def __getitems__(self, indices: list[int]) -> Examples:
        # The loader prefers this method, so it must exist and must not lose the data set's own.
        if callable(getattr(self.dataset, "__getitems__", None)):
            examples = self.dataset.__getitems__(indices)
        else:
            examples = [self.dataset[i] for i in indices]
        return Examples(indices, examples)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)


@dataclass(eq=False)
class _IndexedCollate:
    """Collate the examples as before and put the indices where ``place`` says; None: in front."""

    collate: Callable[[list[Any]], Any]
    place: str | None

    def __call__(self, pairs: Examples | Sequence[tuple[int, Any]]) -> Any:
        if not isinstance(pairs, Examples):
            pairs = Examples([i for i, _ in pairs], [example for _, example in pairs])
        batch = self.collate(pairs.examples)
        if self.place is None:
            return Positions(pairs.indices), batch
        index = torch.tensor(pairs.indices, dtype=torch.int64)
        if isinstance(batch, dict) or hasattr(batch, "keys"):
            batch[self.place] = index
            return batch
        if isinstance(batch, (tuple, list)):
            return (*batch, index)
        return batch, index


def index_batches(
    loader: DataLoader, sampler: Sampler[int] | None = None, *, name: str = "index"
) -> DataLoader:
    """Return an ordinary DataLoader whose batches carry the positions of their examples.

    For frameworks that take the loader into their own hands and read ahead (Accelerate,
    Lightning, the Hugging Face Trainer): the index goes wherever the batch goes, and
    ``sampler.update(index, logits, target)`` credits the right examples.

    Args:
        loader: A DataLoader over a map-style data set.
        sampler: A ``DualScoreSampler``; takes the place of the loader's own.
        name: Key of the indices in dict batches. A tuple or list batch gets them as its last
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
    return rebuild(loader, name, sampler=sampler)


def rebuild(
    loader: DataLoader,
    place: str | None,
    *,
    sampler: Sampler[int] | None = None,
    batch_sampler: Any = None,
) -> DataLoader:
    """Return the same loader over indexed examples, in the order of a sampler if one is given."""
    collate = loader.collate_fn if loader.collate_fn is not None else default_collate
    changed: dict[str, Any] = {
        "dataset": IndexedDataset(loader.dataset),
        "collate_fn": _IndexedCollate(collate, place),
    }
    if sampler is not None or (batch_sampler is None and loader.batch_size is not None):
        changed |= {
            "sampler": loader.sampler if sampler is None else sampler,
            "batch_size": loader.batch_size or _batch_size(loader.batch_sampler),
            "drop_last": loader.drop_last,
        }
        if loader.drop_last:
            check_kept(sampler, changed["batch_size"])
    else:
        changed["batch_sampler"] = batch_sampler or loader.batch_sampler
    if is_foreign(loader, "__init__"):
        return _copied(loader, changed)
    options: dict[str, Any] = {
        "num_workers": loader.num_workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "persistent_workers": loader.persistent_workers,
    }
    if loader.num_workers > 0:  # without workers it must not be passed at all
        options["prefetch_factor"] = loader.prefetch_factor
    for extra in ("snapshot_every_n_steps", "in_order"):
        if hasattr(loader, extra):
            options[extra] = getattr(loader, extra)
    return type(loader)(**changed, **options)


def is_foreign(loader: DataLoader, method: str) -> bool:
    """Say whether a class outside torch and torchdata defines this method of a loader."""
    owner = next(kind for kind in type(loader).__mro__ if method in vars(kind))
    return owner.__module__.partition(".")[0] not in ("torch", "torchdata")


def _copied(loader: DataLoader, changed: dict[str, Any]) -> DataLoader:
    """Return a copy of a loader with other parts, where its class has a constructor of its own.

    Such a constructor may take other arguments, or put a collate function of its own in the place
    of the one that it is given.
    """
    new = copy.copy(loader)
    changed["_iterator"] = None
    if "sampler" in changed:
        order = changed["sampler"], changed["batch_size"], changed["drop_last"]
        changed["batch_sampler"] = BatchSampler(*order)
    else:
        changed |= {"batch_size": None, "drop_last": False}
    vars(new).update(changed)  # the class lets nobody set these
    for name in [name for name in vars(new) if name.startswith("__pl_saved")]:
        del vars(new)[name]  # Lightning would build the loader again from what it was made of
    return new


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
    try:
        batches = len(loader)
    except TypeError as error:
        raise TypeError(f"the loader's sampler must have a length: {error}") from None
    if batches == 0:
        raise ValueError(
            f"the loader is empty: {len(loader.dataset)} examples, batch size "  # type: ignore[arg-type]
            f"{loader.batch_size}, drop_last={loader.drop_last}"
        )


def check_kept(sampler: Any, batch_size: int) -> None:
    """Refuse a ratio that leaves no full batch, where only full ones are handed out."""
    if getattr(sampler, "mode", None) == "static":
        share = sampler.length(sampler.score_epochs)
        if share < batch_size:
            raise ValueError(
                f"prune_ratio {sampler.prune_ratio} keeps {sampler.num_kept} examples, {share} on "
                f"each rank: fewer than one batch of {batch_size}, and drop_last=True drops it"
            )


def known_order(loader: DataLoader, options: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Say whether DualScoreSampler can take the loader's order over, and with which settings."""
    sampler = loader.sampler
    if loader.batch_size is None or type(loader.batch_sampler).__name__ != BatchSampler.__name__:
        return False, options
    if type(sampler) is DistributedSampler:  # a subclass has an order of its own
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
