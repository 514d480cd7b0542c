"""Examples known by a key instead of a position: streams, WebDataset, shards that come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from data_prune import distributed
from data_prune.summary import score_table
from data_prune.table import ScoreTable
from data_prune.tracker import DualTracker

__all__ = ["KeyedTracker"]


class KeyedTracker(DualTracker):
    """``DualTracker`` for examples without positions; new keys may turn up at any time.

    Each example needs the same key in every epoch: a string (``__key__``, a URL, a file name) or
    an integer hash of 64 bits. Its table has these keys, and its draw depends on them only, so
    that any later stream can be filtered by ``set(table.key[table.select(0.5)])``.

    Args:
        capacity: examples to make room for at first; doubled as often as needed.
        **options: epochs, window, task, peers, process_group as for ``DualTracker``.

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

    def update(self, index: Any, logits: Tensor, target: Tensor) -> None:
        """Credit one batch; ``index`` holds (B,) keys. See ``DualTracker.update``."""
        if not self.done:
            super().update(self._positions(index), logits, target)

    def update_probability(self, index: Any, prob: Any, label: Any = None) -> None:
        """Credit probabilities; ``index`` holds (B,) keys."""
        if not self.done:
            super().update_probability(self._positions(index), prob, label)

    def _positions(self, keys: Iterable[Any]) -> Tensor:
        if isinstance(keys, (Tensor, np.ndarray)):
            keys = keys.tolist()
        if isinstance(keys, (str, bytes)):
            raise TypeError(f"keys must be a sequence with one key per example, got {keys!r}")
        keys = list(keys)
        known = next(iter(self._position), None)
        for key in keys:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise TypeError(f"a key must be a string or an integer, got {key!r}")
            if isinstance(key, int) and not 0 <= key < 2**64:
                raise ValueError(f"an integer key must be in [0, 2**64), got {key}")
            if isinstance(known if known is not None else keys[0], str) != isinstance(key, str):
                raise TypeError(f"keys must be all strings or all integers, got {key!r}")
        new = [key for key in dict.fromkeys(keys) if key not in self._position]
        self._append(new)
        return torch.tensor([self._position[key] for key in keys], dtype=torch.int64)

    def _append(self, keys: list[Any]) -> None:
        needed, room = len(self._position) + len(keys), self.num_examples
        while room < needed:
            room *= 2
        if room > self.num_examples:
            self._store.grow(room)
        for key in keys:
            self._position[key] = len(self._position)

    def end_epoch(self) -> None:
        """Close the open epoch; with several ranks, first give every key one position."""
        self._take_in(self._arrivals.all())
        if not self.done and distributed.world_size(self.process_group) > 1:
            self._agree()
        super().end_epoch()

    def _agree(self) -> None:
        """Keys that are new in this epoch get their places in sorted order on all ranks."""
        group = None if self.process_group is False else self.process_group
        mine = list(self._position)[self._agreed :]
        gathered: list[list[Any]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(gathered, mine, group=group)
        union = sorted(set().union(*gathered))
        old = [self._position.pop(key) for key in mine]
        self._append(union)
        new = np.array([self._position[key] for key in mine], dtype=np.int64)
        self._store.move(np.array(old, dtype=np.int64), new)
        self._agreed = len(self._position)

    def table(self, *, min_epochs: int | None = None) -> ScoreTable:
        """The scores of all keys seen; see ``DualTracker.table``."""
        self._check_epochs(min_epochs)
        part = score_table(self._store, slice(0, len(self._position)), self.task)
        meta = {**part.meta, "examples": len(part)}
        return ScoreTable(
            key=self._key_array(),
            label=part.label,
            score=part.score,
            mean_prob=part.mean_prob,
            observed=part.observed,
            peers=part.peers,
            meta=meta,
        )

    def _key_array(self) -> NDArray:
        keys = list(self._position)
        if keys and isinstance(keys[0], int):
            return np.array(keys, dtype=np.uint64)
        return np.array(keys)

    def coverage(self) -> dict[str, Any]:
        """See ``DualTracker.coverage``; counts the keys seen, not the room made for them."""
        used, spare = len(self._position), self.num_examples - len(self._position)
        report = super().coverage()
        report["examples"] = used
        for name in ("never_seen", "unscored"):
            report[name] -= spare
        report["missing_per_epoch"] = []  # an example that will turn up later is not missing
        if self.epoch == 0:
            report["seen_in_every_epoch"] -= spare
        return report

    def state_dict(self) -> dict[str, Any]:
        """See ``DualTracker.state_dict``; holds the keys as well."""
        return {**super().state_dict(), "keys": list(self._position), "agreed": self._agreed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``DualTracker.load_state_dict``."""
        room = state_dict["counters"]["num_examples"]
        if room > self.num_examples:
            self._store.grow(room)
        counters = {**state_dict["counters"], "num_examples": self.num_examples}
        super().load_state_dict({**state_dict, "counters": counters})
        self._position = {key: i for i, key in enumerate(state_dict["keys"])}
        self._agreed = state_dict["agreed"]
