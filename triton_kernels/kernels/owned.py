"""Device memory that belongs to whoever steps: updates, and tables of addresses."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# Rows of one owner's tables, of about a hundred bytes each: gradients that move make new ones in
# every step. A matrix takes two, and models of experts have tens of thousands.
_ROWS = 1 << 17
_LINE = 16  # bytes that a thread loads at once, and elements that fill whole ones

Row = tuple[int, ...]


def capturing(device: torch.device) -> bool:
    """Say whether operations on a device are being recorded for a CUDA graph.

    Args:
        device: Of the tensors.
    """
    # The compiler breaks its graph at the question; what it traces is captured later, if at all.
    if device.type != "cuda" or torch.compiler.is_compiling():
        return False
    try:
        return torch.cuda.is_current_stream_capturing()
    except RuntimeError:  # torch without CUDA
        return False


class Table(NamedTuple):
    """Where the tensors of one launch lie.

    Attributes:
        memory: (tensors, columns) int64 on the device: the first chunk, how many elements, and how
            many in a row; address and two strides in each list; and the bits of a float32.
        tensors: How many there are.
        chunks: Of all of them.
        lines: Whether threads can load whole lines.
    """

    memory: Tensor
    tensors: int
    chunks: int
    lines: bool


Tables = tuple[Table, ...]


class Owned:
    """What the launches of one optimizer read and write beside its tensors.

    A captured CUDA graph uses both again whenever it is replayed. So they stay where they are as
    long as their owner lives, and so does a table that a capture has used.
    """

    _BY_OWNER: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __init__(self) -> None:
        self._rooms: dict[torch.device, Tensor] = {}
        self._tables: OrderedDict[tuple, Tables] = OrderedDict()
        self._captured: dict[tuple, Tables] = {}
        self._outgrown: list[Tensor] = []
        self._rows = 0
        self.copies = 0

    @classmethod
    def by(cls, owner: object) -> Owned:
        """Return what belongs to an object, such as an optimizer or its first parameter."""
        if owner not in cls._BY_OWNER:
            cls._BY_OWNER[owner] = cls()
        return cls._BY_OWNER[owner]

    def room(self, nbytes: int, device: torch.device) -> Tensor:
        """Return at least so many bytes, uninitialized: every call gets the same ones.

        Args:
            nbytes: How many.
            device: Where.
        """
        known = self._rooms.get(device)
        if known is None or known.numel() < nbytes:
            if known is not None and self._captured:
                self._outgrown.append(known)
            with torch.inference_mode(False):  # or nobody could write to it outside of that mode
                known = torch.empty(nbytes, dtype=torch.uint8, device=device)
            self._rooms[device] = known
        return known

    def tables(
        self, lists: Sequence[Sequence[Tensor]], block: int, numbers: Sequence[float] = ()
    ) -> Tables:
        """Return the tables of corresponding tensors, uploaded unless they are known.

        One is of the tensors that are contiguous and aligned, and have as many elements as fill
        whole lines, so that no other takes these off their faster way.

        Args:
            lists: Of one length; tensors of one position have one shape, and are matrices or
                contiguous.
            block: Elements of a chunk.
            numbers: One for each tensor of a list.

        Raises:
            RuntimeError: If a table is missing while a CUDA graph is captured.
        """
        flat = [t for tensors in lists for t in tensors]
        # Lists, where a generator would take half as long again for hundreds of tensors.
        plain = all([t.is_contiguous() for t in flat])
        layout = None if plain else tuple([(t.shape, t.stride()) for t in flat])
        key = (
            tuple([t.data_ptr() for t in flat]), tuple([t.numel() for t in lists[0]]), layout,
            block, tuple(numbers), flat[0].device,
        )  # fmt: skip
        recorded = capturing(flat[0].device)
        found = self._captured.get(key) or self._tables.get(key)
        if found is None and recorded:
            raise RuntimeError(
                "tensors must be where they were in a step before the capture of a CUDA graph, "
                "got others: run one step first, and keep gradients in place "
                "(zero_grad(set_to_none=False))"
            )
        if found is None:
            found = _uploaded(lists, block, numbers)
            self.copies += 1
            self._tables[key] = found
            self._rows += len(lists[0])
            while self._rows > _ROWS and len(self._tables) > 1:
                known, _ = self._tables.popitem(last=False)
                self._rows -= len(known[1])
        elif key in self._tables:
            self._tables.move_to_end(key)
        if recorded:
            self._captured[key] = found
        return found


def _uploaded(lists: Sequence[Sequence[Tensor]], block: int, numbers: Sequence[float]) -> Tables:
    bits = struct.unpack(f"{len(numbers)}i", struct.pack(f"{len(numbers)}f", *numbers))
    rows: dict[bool, list[Row]] = {True: [], False: []}
    chunks = {True: 0, False: 0}
    for i, tensors in enumerate(zip(*lists, strict=True)):
        size = tensors[0].numel()
        if size == 0:
            continue  # a rank's piece of a sharded tensor may have no elements
        lines = size % _LINE == 0 and all(
            t.is_contiguous() and t.data_ptr() % _LINE == 0 for t in tensors
        )
        matrix = tensors[0].ndim == 2
        row = [chunks[lines], size, tensors[0].shape[1] if matrix else size]
        for t in tensors:
            row += [t.data_ptr(), *(t.stride() if matrix else (size, 1))]
        rows[lines].append((*row, *bits[i : i + 1]))
        chunks[lines] += -(-size // block)
    device = lists[0][0].device
    return tuple(
        Table(_on_device(some, device), len(some), chunks[lines], lines)
        for lines, some in rows.items()
        if some
    )


def _on_device(rows: Sequence[Row], device: torch.device) -> Tensor:
    # From pinned memory, so that nobody waits for the copy.
    pinned = device.type == "cuda" and torch.cuda.is_available()
    values = torch.tensor(rows, dtype=torch.int64, device="cpu", pin_memory=pinned)
    with torch.inference_mode(False):
        return values.to(device, non_blocking=True)
