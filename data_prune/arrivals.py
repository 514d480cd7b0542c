"""Values on an accelerator -> the same on the host, one copy a batch, without waiting for it.

No accelerator was at hand when this was written: its tests use a stand-in for the device's event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arrivals", "Batch"]

Batch = tuple[Tensor, dict[str, Tensor], "Tensor | None"]  # index, values by name, label


class Arrivals:
    """Batches whose values are still on their way from the device, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Batch]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, index: Tensor, values: dict[str, Tensor], label: Tensor | None) -> None:
        """Start the copies of one batch; the host goes on at once.

        Args:
            index: (B,) on the host already.
            values: name -> (B, ...) on the device.
            label: (B,) on the device, or None.
        """
        arriving = {name: v.to("cpu", non_blocking=True) for name, v in values.items()}
        labels = None if label is None else label.to("cpu", non_blocking=True)
        event = torch.Event(next(iter(values.values())).device.type)
        event.record()
        self._waiting.append((event, (index, arriving, labels)))

    def ready(self) -> Iterator[Batch]:
        """The batches that have arrived, without waiting for the others."""
        while self._waiting and self._waiting[0][0].query():
            yield self._waiting.popleft()[1]

    def all(self) -> Iterator[Batch]:
        """All batches, waiting for each."""
        while self._waiting:
            event, batch = self._waiting.popleft()
            event.synchronize()
            yield batch
