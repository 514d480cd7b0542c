"""Where the updates of a step lie: matrices of one shape side by side, one batch.

A step treats parameters of one `Kind` alike. `chunks` bounds what exists at one time, `batches_of`
puts kinds together whose matrices have one shape, and `stack_updates` gives each batch its memory.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .routing import MatrixView, batch_shape
from .triton_kernels import orthogonalize
from .triton_kernels.kept_memory import KeptMemory
from .triton_kernels.together import orthogonalize_together

_KEPT = KeptMemory()  # the last step's updates
_LINE = 64  # bytes


class Kind(NamedTuple):
    """What parameters have in common that a step treats alike.

    Attributes:
        shape: The whole parameter's, of which a DTensor's rank has a piece.
        dtype: The momentum buffer's.
        device: The momentum buffer's.
        view: How it is seen as matrices.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    view: MatrixView

    @property
    def nbytes(self) -> int:
        """Bytes of a whole update in the buffer's dtype."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def matrix(self) -> tuple[int, int]:
        """(m, n) of its matrices, if they are not split."""
        return batch_shape(self.shape, self.view)[1:]


class Batch(NamedTuple):
    """Kinds of parameters whose matrices have one shape.

    Attributes:
        kinds: Positions of the parameters of each kind.
        dtype: Their updates'; None: the buffers' own.
    """

    kinds: dict[Kind, list[int]]
    dtype: torch.dtype | None


class Stack(NamedTuple):
    """A batch's updates, which share one piece of memory.

    Attributes:
        places: The updates, in the order of the batch's parameters: views of ``batch``.
        batch: (B, m, n): all their matrices; flat where they are not whole.
        result: As large as ``batch``, or the same: where their orthogonalization goes; None: new
            memory.
        results: Views of ``result`` like ``places``.
    """

    places: list[Tensor]
    batch: Tensor
    result: Tensor | None
    results: list[Tensor]


class _Last(threading.local):
    """The stacks that this thread used last, as long as their memory is kept."""

    key: object = None
    stacks: Sequence[Stack] = ()


_LAST = _Last()


def alike(
    params: Sequence[Tensor], buffers: Sequence[Tensor], views: Sequence[str | MatrixView]
) -> dict[Kind, list[int]]:
    """Positions of the parameters of each kind, in the order in which the kinds first appear.

    Args:
        params: The parameters.
        buffers: Their momentum buffers, of a DTensor this rank's piece.
        views: How each is seen as matrices.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for i, (p, b, view) in enumerate(zip(params, buffers, views, strict=True)):
        found.setdefault((p.shape, b.dtype, b.device, view), []).append(i)
    kinds: dict[Kind, list[int]] = {}
    for (shape, dtype, device, view), members in found.items():
        # Here, once a kind and not once a parameter; "auto" and MatrixView("auto") are the same.
        kind = Kind(shape, dtype, device, MatrixView.of(view))  # type: ignore[arg-type]
        kinds.setdefault(kind, []).extend(members)
    return kinds


def chunks(
    kinds: Mapping[Kind, Sequence[int]], max_bytes: int, together: int = 1
) -> list[dict[Kind, list[int]]]:
    """The same parameters, cut where ``max_bytes`` is passed.

    Args:
        kinds: Positions of the parameters of each kind.
        max_bytes: Of the updates in a chunk; a larger one has a chunk to itself.
        together: A kind is cut after a multiple of so many, as far as ``max_bytes`` lets.

    Example:
        >>> kind = Kind(torch.Size((2, 2)), torch.float32, torch.device("cpu"), MatrixView())
        >>> [list(chunk.values()) for chunk in chunks({kind: [0, 1, 2]}, max_bytes=32)]
        [[[0, 1]], [[2]]]
        >>> [list(chunk.values()) for chunk in chunks({kind: [0, 1, 2]}, 47, together=2)]
        [[[0, 1]], [[2]]]
    """
    result: list[dict[Kind, list[int]]] = []
    room = -1
    for kind, members in kinds.items():
        size = max(kind.nbytes, 1)  # empty ones are no reason to divide by zero
        count = max(1, min(together, max_bytes // size))
        start = 0
        while start < len(members):
            unit = min(count, len(members) - start)
            if size * unit > room:
                result.append({})
                room = max(max_bytes, size * unit)
            fit = room // (size * unit) * unit
            piece = members[start : start + fit]
            result[-1].setdefault(kind, []).extend(piece)
            room -= size * len(piece)
            start += fit
    return result


def batches_of(
    chunk: Mapping[Kind, list[int]], dtype_of: Callable[[Kind], torch.dtype]
) -> list[Batch]:
    """Puts the kinds together whose matrices have one shape.

    By whole shapes: the order of the parameters is then the same on every rank.

    Args:
        chunk: Positions of the parameters of each kind.
        dtype_of: The updates' dtype.
    """
    found: dict[tuple[object, ...], Batch] = {}
    for kind, members in chunk.items():
        dtype, split = dtype_of(kind), kind.view.split
        shape = (kind.shape, split) if split else kind.matrix
        batch = found.setdefault((shape, dtype, kind.device), Batch({}, dtype))
        batch.kinds[kind] = members
    return list(found.values())


def stack_updates(buffers: Sequence[Tensor], batches: Sequence[Batch], whole: bool) -> list[Stack]:
    """Makes room for one update of each buffer's shape, uninitialized.

    Args:
        buffers: Momentum buffers in the order of the batches' parameters, of a DTensor this
            rank's piece.
        batches: What they belong to.
        whole: Whether they hold all of their parameters, none of them split.

    Returns:
        A stack for each batch. Those of whole matrices on a CPU stay valid until this thread calls
        again after `keep_memory`.
    """
    if whole and all(kind.device.type == "cpu" for batch in batches for kind in batch.kinds):
        return _stacks_in_kept_memory(batches)
    left, stacks = iter(buffers), []
    for kinds, dtype in batches:
        shapes = [next(left).shape for some in kinds.values() for _ in some]
        runs = [(shape, len(list(same))) for shape, same in groupby(shapes)]
        first = next(iter(kinds))
        size = sum(shape.numel() for shape in shapes)
        memory = torch.empty(size, dtype=dtype or first.dtype, device=first.device)
        batch = memory.view(-1, *first.matrix) if whole else memory
        stacks.append(Stack(_cut(memory, runs), batch, None, []))
    return stacks


class _Room(NamedTuple):
    """What the updates of a batch take of the kept memory."""

    runs: list[tuple[torch.Size, int]]
    matrix: tuple[int, int]
    dtype: torch.dtype

    @staticmethod
    def of(batch: Batch) -> "_Room":
        first = next(iter(batch.kinds))
        runs = [(kind.shape, len(members)) for kind, members in batch.kinds.items()]
        return _Room(runs, first.matrix, batch.dtype or first.dtype)

    @property
    def copies(self) -> int:
        # bfloat16 is iterated in the direct form, whose result may lie over the updates; the Gram
        # form of small matrices in float32 reads them last.
        return 1 if self.dtype == torch.bfloat16 else 2

    def sizes(self) -> tuple[int, int]:
        """Bytes of a copy, and how far one is from the next."""
        nbytes = self.dtype.itemsize * sum(shape.numel() * count for shape, count in self.runs)
        return nbytes, -(-nbytes // _LINE) * _LINE


def _stacks_in_kept_memory(batches: Sequence[Batch]) -> list[Stack]:
    rooms = [_Room.of(batch) for batch in batches]
    memory = _KEPT.take(sum(room.copies * room.sizes()[1] for room in rooms))
    key: object = None
    if type(memory) is Tensor:  # and has an address
        # Hundreds of views take as long as the arithmetic of small matrices: they stay as well.
        key = (memory.data_ptr(), torch.is_inference_mode_enabled(), rooms)
        if key == _LAST.key:
            return list(_LAST.stacks)
    stacks = []
    for room in rooms:
        nbytes, span = room.sizes()
        pieces = [memory[i * span :][:nbytes].view(room.dtype) for i in range(room.copies)]
        memory = memory[room.copies * span :]
        places = [_cut(x, room.runs) for x in pieces]
        batch = [x.view(-1, *room.matrix) for x in pieces]
        stacks.append(Stack(places[0], batch[0], batch[-1], places[-1]))
    _LAST.key, _LAST.stacks = key, stacks
    return stacks


def keep_memory(stacks: Sequence[Stack]) -> None:
    """Lets this thread's next step write over these updates, if they are a CPU's and not large."""
    if not (stacks and stacks[0].result is not None and _KEPT.give(stacks[0].batch)):
        _LAST.key, _LAST.stacks = None, ()


def _cut(memory: Tensor, runs: Sequence[tuple[torch.Size, int]]) -> list[Tensor]:
    """Views of the given shapes, each so many times, one after the other."""
    pieces = memory.split([shape.numel() * count for shape, count in runs])
    return [
        place
        for piece, (shape, count) in zip(pieces, runs, strict=True)
        for place in piece.view(count, *shape).unbind()
    ]


def orthogonalize_stacks(stacks: Sequence[Stack], **options: Any) -> list[Tensor]:
    """Orthogonalizes the batch of every stack of whole updates.

    Args:
        stacks: From `stack_updates`.
        **options: Of the engine's ``orthogonalize``.

    Returns:
        The results in the order of the places, row-major, of the places' shapes and dtypes; they
        may lie in the stacks' own memory.
    """
    placed = [s for s in stacks if s.result is not None]
    outs = [s.result for s in placed if s.result is not None]
    orthogonalize_together([s.batch for s in placed], outs, **options)
    results: list[Tensor] = []
    for places, batch, result, done in stacks:
        if result is None:
            # A GPU leaves tall results transposed: one pass over all beats strided reads later.
            new = orthogonalize(batch, **options).contiguous()
            done = _cut(new.view(-1), [(x.shape, 1) for x in places])
        results += done
    return results
