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

from .distributed.layout import is_dtensor
from .routing import MatrixView, batch_shape, describe
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
    def matrices(self) -> tuple[Any, ...]:
        """(m, n) of its matrices; of a split kind, the shape and the split."""
        if self.view.split is not None:
            return self.shape, self.view.split
        return batch_shape(self.shape, self.view)[1:]


class Batch(NamedTuple):
    """Kinds of parameters whose matrices have one shape.

    Attributes:
        kinds: Positions of the parameters of each kind.
        dtype: Their updates'.
    """

    kinds: dict[Kind, list[int]]
    dtype: torch.dtype

    @property
    def first(self) -> Kind:
        """One of the kinds."""
        return next(iter(self.kinds))


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


def alike(
    params: Sequence[Tensor], buffers: Sequence[Tensor], views: Sequence[str | MatrixView]
) -> dict[Kind, list[int]]:
    """Positions of the parameters of each kind; kinds that make one batch follow each other.

    By whole shapes: the order is the same on every rank.

    Args:
        params: The parameters; empty ones are left out.
        buffers: Their momentum buffers, of a DTensor this rank's piece.
        views: How each is seen as matrices.

    Raises:
        RuntimeError: If a buffer does not have its parameter's shape.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, (p, b, view) in enumerate(zip(params, buffers, views, strict=True)):
        shape = p.shape
        if b.shape != shape and not is_dtensor(p):
            raise RuntimeError(
                f"{describe(p)} has a momentum buffer of shape {tuple(b.shape)}; if its data were "
                f"replaced, delete the optimizer's state of it"
            )
        found.setdefault((shape, b.dtype, b.device, view), []).append(i)
    together: dict[tuple[object, ...], dict[Kind, list[int]]] = {}
    # What follows is done once a kind and not once a parameter.
    for (shape, dtype, device, view), members in found.items():
        if 0 not in shape:
            kind = Kind(shape, dtype, device, MatrixView.of(view))
            kinds = together.setdefault((kind.matrices, dtype, device), {})
            kinds.setdefault(kind, []).extend(members)  # "auto" and MatrixView("auto") are one
    return {kind: sorted(some) for kinds in together.values() for kind, some in kinds.items()}


def chunks(
    kinds: Mapping[Kind, Sequence[int]],
    max_bytes: int,
    together: int = 1,
    nbytes: Callable[[Kind], int] = lambda kind: kind.nbytes,
) -> list[dict[Kind, list[int]]]:
    """The same parameters in the same order, cut where ``max_bytes`` is passed.

    Args:
        kinds: Positions of the parameters of each kind.
        max_bytes: Of the updates in a chunk; a larger one has a chunk to itself.
        together: A kind is cut after a multiple of so many, as far as ``max_bytes`` lets.
        nbytes: How many an update of a kind counts, default its own in the buffer's dtype.

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
        size = nbytes(kind)
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


def batches_of(chunk: Mapping[Kind, list[int]], dtypes: Mapping[Kind, torch.dtype]) -> list[Batch]:
    """Puts the kinds together whose matrices have one shape; the order stays.

    Args:
        chunk: Positions of the parameters of each kind.
        dtypes: Their updates'.
    """
    found: dict[tuple[object, ...], Batch] = {}
    for kind, members in chunk.items():
        dtype = dtypes[kind]
        key = (kind.matrices, kind.dtype, dtype, kind.device)
        found.setdefault(key, Batch({}, dtype)).kinds[kind] = members
    return list(found.values())


class _Need(NamedTuple):
    """What the whole updates of a batch take of the kept memory."""

    runs: list[tuple[torch.Size, int]]
    matrix: tuple[Any, ...]
    dtype: torch.dtype

    @staticmethod
    def of(batch: Batch) -> "_Need":
        runs = [(kind.shape, len(members)) for kind, members in batch.kinds.items()]
        return _Need(runs, batch.first.matrices, batch.dtype)

    @property
    def copies(self) -> int:
        # bfloat16 is iterated in the direct form, whose result may lie over the updates; the Gram
        # form of small matrices in float32 reads them last.
        return 1 if self.dtype == torch.bfloat16 else 2

    def sizes(self) -> tuple[int, int]:
        """Bytes of a copy, and how far one is from the next."""
        nbytes = self.dtype.itemsize * sum(shape.numel() * count for shape, count in self.runs)
        return nbytes, -(-nbytes // _LINE) * _LINE


class Stacks(NamedTuple):
    """The stacks of a chunk, and to what need of kept memory they answer; None: to none."""

    stacks: list[Stack]
    key: object = None


class _Last(threading.local):
    """The stacks that this thread gave back last, views of the memory that `_KEPT` has."""

    def __init__(self) -> None:
        self._stacks = Stacks([])

    def take(self, key: object) -> list[Stack] | None:
        """Returns those of a key, or None; in any case they are not kept any more."""
        (stacks, known), self._stacks = self._stacks, Stacks([])
        return stacks if known == key else None

    def give(self, stacks: Stacks) -> None:
        self._stacks = stacks


_LAST = _Last()


def stack_updates(buffers: Sequence[Tensor], batches: Sequence[Batch], whole: bool) -> Stacks:
    """Makes room for one update of each buffer's shape, uninitialized.

    Args:
        buffers: Momentum buffers in the order of the batches' parameters, of a DTensor this
            rank's piece.
        batches: What they belong to.
        whole: Whether the buffers have the full shapes, none of them split.

    Returns:
        A stack for each batch: of whole matrices on a CPU in kept memory, else in new memory.
    """
    if whole and all(batch.first.device.type == "cpu" for batch in batches):
        return _stacks_in_kept_memory(batches)
    left, stacks = iter(buffers), []
    for batch in batches:
        shapes = [next(left).shape for some in batch.kinds.values() for _ in some]
        runs = [(shape, len(list(same))) for shape, same in groupby(shapes)]
        size = sum(shape.numel() for shape in shapes)
        memory = torch.empty(size, dtype=batch.dtype, device=batch.first.device)
        matrices = memory.view(-1, *batch.first.matrices) if whole else memory
        stacks.append(Stack(_cut(memory, runs), matrices, None, []))
    return Stacks(stacks)


def _stacks_in_kept_memory(batches: Sequence[Batch]) -> Stacks:
    needs = [_Need.of(batch) for batch in batches]
    key = (torch.is_inference_mode_enabled(), needs)
    # Hundreds of views take as long as the arithmetic of small matrices: they are kept as well.
    known = _LAST.take(key)
    memory = _KEPT.take(sum(need.copies * need.sizes()[1] for need in needs))
    # A tensor without data, of a mode that is on by now, has no address.
    if known and type(memory) is Tensor and known[0].batch.data_ptr() == memory.data_ptr():
        return Stacks(known, key)
    stacks = []
    for need in needs:
        nbytes, span = need.sizes()
        pieces = [memory[i * span :][:nbytes].view(need.dtype) for i in range(need.copies)]
        memory = memory[need.copies * span :]
        places = [_cut(x, need.runs) for x in pieces]
        batch = [x.view(-1, *need.matrix) for x in pieces]
        stacks.append(Stack(places[0], batch[0], batch[-1], places[-1]))
    return Stacks(stacks, key)


def keep_memory(made: Stacks) -> None:
    """Lets this thread's next step write over these updates, if they are a CPU's and not large."""
    if made.key is None or not made.stacks:
        return
    if _KEPT.give(made.stacks[0].batch):
        _LAST.give(made)


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
