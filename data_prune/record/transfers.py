"""Values on an accelerator -> the same on the host, one copy a batch, without waiting for it.

No accelerator was at hand when this was written: its tests use a stand-in for the device's event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, dict[str, Tensor], "Tensor | None"]  # index, values by name, label


def pack(values: dict[str, Tensor], label: Tensor | None) -> Tensor:
    """Return the bits of all values and labels as one int32 tensor: one copy moves them.

    Args:
        values: name -> (B, ...) float32.
        label: (B,) int64, or None; what 32 bits cannot hold stays as far out of range as they can.
    """
    parts = [v.contiguous().view(torch.int32).flatten() for v in values.values()]
    if label is not None:
        parts.append(label.clamp(-(2**31), 2**31 - 1).to(torch.int32))
    return torch.cat(parts)


def unpack(
    packed: Tensor, shapes: dict[str, torch.Size], labelled: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return what ``pack`` was given.

    Example:
        >>> packed = pack({"prob": torch.tensor([0.5, 0.25])}, torch.tensor([3, 7]))
        >>> values, label = unpack(packed, {"prob": torch.Size([2])}, labelled=True)
        >>> values["prob"].tolist(), label.tolist()
        ([0.5, 0.25], [3, 7])
    """
    values, at = {}, 0
    for name, shape in shapes.items():
        part = packed[at : at + shape.numel()]
        values[name] = part.view(torch.float32).view(shape)
        at += shape.numel()
    return values, packed[at:].to(torch.int64) if labelled else None


class Transfers(deque[tuple[Any, Callable[[], Batch]]]):
    """Batches whose values are still on their way from the device, oldest first."""

    def send(self, index: Tensor, values: dict[str, Tensor], label: Tensor | None) -> None:
        """Start the copy of one batch; the host goes on at once.

        Args:
            index: (B,) on the host already.
            values: name -> (B, ...) float32 on the device.
            label: (B,) on the device, or None.
        """
        packed = pack(values, label)
        arriving = packed.to("cpu", non_blocking=True)
        shapes, labelled = {name: v.shape for name, v in values.items()}, label is not None

        def batch() -> Batch:
            return (index, *unpack(arriving, shapes, labelled))

        event = torch.Event(packed.device.type)
        event.record()
        self.append((event, batch))

    def ready(self) -> Iterator[Batch]:
        """Yield the batches that have arrived, without waiting for the others."""
        while self and self[0][0].query():
            yield self.popleft()[1]()

    def all(self) -> Iterator[Batch]:
        """Yield all batches, waiting for each."""
        while self:
            event, batch = self.popleft()
            event.synchronize()
            yield batch()
