"""Examples known by a key instead of a position: streams, WebDataset, shards that come and go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..score.table import ScoreTable
from .state import check_keys, check_whole
from .store import Store
from .summary import score_table
from .tracker import STATE, DualTracker


class KeyedTracker(DualTracker):
    """``DualTracker`` for examples without positions; new keys may turn up at any time.

    Each example needs the same key in every epoch: a string (``__key__``, a URL, a file name) or
    an integer hash of 64 bits. Its table has these keys, and its draw depends on them only, so
    that any later stream can be filtered by ``set(table.key[table.select(0.5)])``.

    Args:
        capacity: Examples to make room for at first; doubled as often as needed.
        **options: epochs, window, task, peers, ignore_index, shift, loss_scale,
            process_group as for ``DualTracker``.

    Example:
        >>> tracker = KeyedTracker(epochs=2, window=2)
        >>> for p in (0.2, 0.6):
        ...     tracker.update_probability(["cat/1", "dog/7"], [p, 0.5])
        ...     tracker.end_epoch()
        >>> tracker.table().key.tolist(), tracker.table().score[1].item()
        (['cat/1', 'dog/7'], 0.0)
    """

    def __init__(self, capacity: int = 1 << 12, **options: Any) -> None:
        if options.get("storage") is not None:
            raise ValueError("storage needs positions: keyed examples are kept in memory")
        super().__init__(capacity, **options)
        self._position: dict[Any, int] = {}
        self._agreed = 0  # keys that all ranks have at the same positions

    num_examples = property(lambda self: len(self._position), doc="Number of keys seen.")

    def update(
        self, index: Any, logits: Tensor | None = None, target: Tensor | None = None, **values: Any
    ) -> None:
        """Credit one batch; ``index`` holds (B,) keys. See ``DualTracker.update``."""
        if not self.done:
            positions, new = self._positions(index)
            super().update(positions, logits, target, **values)
            self._position |= new

    def _positions(self, keys: Any) -> tuple[Tensor, dict[Any, int]]:
        """Return the keys' positions, with room for them, and those that are new."""
        if isinstance(keys, (Tensor, np.ndarray)):
            keys = keys.tolist()
        if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
            raise TypeError(f"keys must be a sequence with one key per example, got {keys!r}")
        keys = [key.item() if isinstance(key, np.generic) else key for key in keys]
        first = next(iter(self._position), keys[0] if keys else None)
        for key in keys:
            check_key(key, first)
        new: dict[Any, int] = {}
        for key in keys:
            if key not in self._position:
                new.setdefault(key, len(self._position) + len(new))
        self._make_room(len(self._position) + len(new))
        positions = [new[key] if key in new else self._position[key] for key in keys]
        return torch.tensor(positions, dtype=torch.int64), new

    def _make_room(self, needed: int) -> None:
        room = self._store.num_examples
        while room < needed:
            room *= 2
        if room > self._store.num_examples:
            self._store.grow(room)

    def end_epoch(self) -> None:
        """Close the open epoch; with several ranks, first give every key one position."""
        self._take_in(self._transfers.all())
        if not self.done and self._world_size() > 1:
            self._agree()
        super().end_epoch()

    def _agree(self) -> None:
        """Give keys that are new in this epoch their places in sorted order on all ranks."""
        group = self.process_group
        mine = list(self._position)[self._agreed :]
        gathered: list[list[Any]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(gathered, mine, group=group)
        union = sorted(set().union(*gathered))
        old = [self._position.pop(key) for key in mine]
        self._make_room(len(self._position) + len(union))
        for key in union:
            self._position[key] = len(self._position)
        new = np.array([self._position[key] for key in mine], dtype=np.int64)
        self._store.move(np.array(old, dtype=np.int64), new)
        self._agreed = len(self._position)

    def _piece(self, part: slice) -> ScoreTable:
        """Return the scores of a range of keys, in the order in which they were first seen."""
        table = score_table(self._store, part, self.task)
        keys = list(self._position)[part]
        # Strings as objects: one long key would make a fixed width a huge array.
        dtype = np.uint64 if keys and isinstance(keys[0], int) else object
        meta = {**table.meta, "examples": self.num_examples}
        return dataclasses.replace(table, key=np.array(keys, dtype=dtype), meta=meta)

    def coverage(self) -> dict[str, Any]:
        """See ``DualTracker.coverage``; counts the keys seen, not the room made for them."""
        spare = self._store.num_examples - self.num_examples
        report = super().coverage()
        report["examples"] = self.num_examples
        for name in ("never_seen", "unscored"):
            report[name] -= spare
        report["missing_per_epoch"] = []  # an example that will turn up later is not missing
        if self.epoch == 0:
            report["seen_in_every_epoch"] -= spare
        return report

    def state_dict(self) -> dict[str, Any]:
        """See ``DualTracker.state_dict``; holds the keys as well."""
        return {**super().state_dict(), "keys": list(self._position), "agreed": self._agreed}

    def _checked(
        self, state_dict: Any, names: tuple[str, ...] = (*STATE, "keys", "agreed")
    ) -> Callable[[], None]:
        take_rest = super()._checked(state_dict, names)
        keys = list(state_dict["keys"])
        agreed = check_whole("agreed", state_dict["agreed"], 0, len(keys))

        def take() -> None:
            take_rest()
            self._position = {key: i for i, key in enumerate(keys)}
            self._agreed = agreed

        return take

    def _store_for(self, state_dict: dict[str, Any]) -> Store:
        """Return a store with as much room as the state has, once its keys are checked."""
        keys, counters = state_dict["keys"], state_dict["counters"]
        if not isinstance(keys, list):
            raise TypeError(f"keys of the state must be a list, got {type(keys).__name__}")
        for key in keys:
            check_key(key, keys[0])
        if len(set(keys)) != len(keys):
            raise ValueError("keys of the state must differ from each other")
        store = self._store
        check_keys(counters, tuple(store.counters()), "the tracker's counters")
        room = check_whole("num_examples", counters["num_examples"], max(1, len(keys)))
        check_keys(state_dict["arrays"], tuple(state_dict["arrays"]), "the tracker's arrays")
        prob = state_dict["arrays"].get("row.prob")
        if not isinstance(prob, Tensor) or prob.shape != (room,):
            raise ValueError(f"row.prob of the state must be a tensor of num_examples = {room}")
        return Store(room, store.epochs, store.window, store.peers, None, store.task)


def check_key(key: Any, first: Any) -> None:
    """Refuse a key that is no string or 64-bit integer, or of another kind than the first one."""
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise TypeError(f"a key must be a string or an integer, got {key!r}")
    if isinstance(key, int) and not 0 <= key < 2**64:
        raise ValueError(f"an integer key must be in [0, 2**64), got {key}")
    if isinstance(first, str) != isinstance(key, str):
        raise TypeError(f"keys must be all strings or all integers, got {key!r}")
    if isinstance(key, str) and not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            raise ValueError(f"a key must be text that UTF-8 can hold, got {key!r}") from None
