"""CPU memory that a thread uses again instead of giving it back to the system.

The first touch of fresh memory is a page fault every 4 KiB, which together cost more than a pass
over it, and the allocator returns blocks of some megabytes as soon as they are free.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_LIMIT = 1 << 26  # bytes; where more is needed, products take far longer than page faults


class KeptMemory(threading.local):
    """One piece of at most 64 MiB for each thread; whoever takes it has it alone.

    Example:
        >>> kept = KeptMemory()
        >>> room = kept.take(100)
        >>> kept.give(room)
        True
        >>> kept.take(50).data_ptr() == room.data_ptr()
        True
    """

    def __init__(self) -> None:
        # Kept as a storage: a tensor made in inference mode could not be written outside of it.
        self._room: torch.UntypedStorage | None = None

    def take(self, nbytes: int) -> Tensor:
        """Return at least so many bytes, uninitialized: the kept ones if they suffice.

        Args:
            nbytes: How many.
        """
        # The device is named because the caller's default may be another.
        memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        if type(memory) is not Tensor:
            # Under FakeTensorMode new tensors have no data; the kept memory stays for others.
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        room, self._room = self._room, None
        if room is None or room.nbytes() < nbytes:
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        return memory.set_(room)

    def give(self, memory: Tensor) -> bool:
        """Keep the whole storage of a tensor for the next taker, unless it is large.

        Args:
            memory: On a CPU; what still refers to it will be written over.

        Returns:
            Whether it is kept.
        """
        storage = memory.untyped_storage()
        # The storage of a fake tensor is on "meta", whatever device the tensor names.
        kept = storage.device.type == "cpu" and storage.nbytes() <= _LIMIT
        if kept:
            self._room = storage
        return kept
