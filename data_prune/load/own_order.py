"""An order that belongs to the user -> the same order without what is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .division import world_size


class FilteredBatches:
    """Give a batch sampler's own order without the pruned examples, in as large batches."""

    def __init__(self, batches: Any, sampler: Any) -> None:
        self.batches, self.sampler = batches, sampler
        self._plan: tuple[int, list[list[int]]] | None = None

    def _kept_batches(self) -> list[list[int]]:
        """Return one epoch's batches, drawn once and handed out once, so that ``len`` is exact."""
        if self._plan is None or self._plan[0] != self.sampler.epoch:
            members = self.sampler.members()
            mask = np.zeros(self.sampler.num_examples, dtype=bool)
            mask[members] = True
            original = [list(batch) for batch in self.batches]
            size = max(len(batch) for batch in original)
            stream = [i for batch in original for i in batch if mask[i]]
            if world_size() > 1:
                # As many batches on every rank: each has as many of its own before pruning.
                share = len(members) / self.sampler.num_examples
                total = size * max(1, round(len(original) * share))
                stream = np.resize(stream or members, total).tolist()
            drop = bool(getattr(self.batches, "drop_last", False))
            drop = drop and len(stream) >= size  # else nothing at all would be left
            end = len(stream) - len(stream) % size if drop else len(stream)
            chunks = [stream[i : i + size] for i in range(0, end, size)]
            self._plan = (self.sampler.epoch, chunks)
        return self._plan[1]

    def __len__(self) -> int:
        whole = self.sampler.members() is None
        return len(self.batches) if whole else len(self._kept_batches())

    def __iter__(self) -> Iterator[list[int]]:
        if self.sampler.begin() is None:
            for batch in self.batches:
                yield list(batch)
        else:
            yield from self._kept_batches()
        self.sampler.advance(self.sampler.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Hand the number on to whatever wants it."""
        parts: tuple[Any, ...] = (self.batches, getattr(self.batches, "sampler", None))
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
