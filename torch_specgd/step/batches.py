"""Matrices of one shape side by side: one batch of them is orthogonalized in one call.

`arrange` sorts the parameters into batches and bounds what exists at one time; `Room` is the memory
of a round's updates.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from ..groups.matrix_view import MatrixView, batch_shape, describe, matrix_shape, piece_shapes
from ..triton_kernels import plan
from ..triton_kernels.iterate.run import KeptMemory
from ..triton_kernels.kernels.owned import Owned
from ..triton_kernels.schedule.named import is_triple

# On a CPU the allocator gives large blocks back to the system, whose pages are then cleared and
# mapped anew in the next step; this much fits in what a thread keeps.
CPU_BYTES = 1 << 26
_LINE = 64  # bytes
_KEPT = KeptMemory()  # the last round's updates

Kind = tuple[torch.Size, torch.dtype, torch.dtype, torch.device, str | MatrixView]
"""Of a parameter: shape, own dtype, that of the buffer, device, view."""
Arithmetic = tuple[Any, torch.dtype | None]
"""Of the engine: the schedule (None: its own), and the dtype of the iteration (None: its rule)."""


class Seen(NamedTuple):
    """How a tensor of some shape is seen as matrices.

    Attributes:
        batch: (B, m, n); of split tensors, that of the whole.
        view: The view, with its split.
        logical: (outputs, inputs) of the matrices; of split tensors, of the whole.
    """

    batch: tuple[int, int, int]
    view: MatrixView
    logical: tuple[int, int]


@lru_cache(maxsize=4096)
def seen(shape: torch.Size, view: str | MatrixView) -> Seen:
    """Return how a tensor of this shape is seen as matrices."""
    return Seen(batch_shape(shape, view), MatrixView.of(view), matrix_shape(shape, view))


class Batch(NamedTuple):
    """Parameters whose matrices have one shape.

    Attributes:
        members: Positions of the parameters of each shape, a DTensor's in whole.
        matrix: (m, n); of split parameters, their shape and the split.
        view: How each parameter is seen as matrices.
        dtype: Of the updates.
        device: Of the updates.
        logical: See `Seen`.
    """

    members: dict[torch.Size, list[int]]
    matrix: tuple[Any, ...]
    view: MatrixView
    dtype: torch.dtype
    device: torch.device
    logical: tuple[int, int]


class Round(NamedTuple):
    """Batches of one device, whose updates exist at one time.

    Attributes:
        batches: The batches.
        members: Positions of their parameters, in their order, likewise below.
        views: How each is seen as matrices.
        dtypes: Of each update.
        logical: (outputs, inputs) of each; None of split ones, whose pieces differ.
    """

    batches: list[Batch]
    members: list[int]
    views: list[MatrixView]
    dtypes: list[torch.dtype]
    logical: list[tuple[int, int] | None]


def arrange(
    params: Sequence[Tensor],
    buffers: Sequence[Tensor],
    views: Sequence[str | MatrixView],
    arithmetic: Arithmetic,
    max_bytes: int,
    multiple: int = 1,
) -> Sequence[Round]:
    """Sort parameters into batches, by whole shapes, and batches into rounds.

    The order is the same on every rank. It depends on shapes, dtypes and devices alone, and is made
    once for them.

    Args:
        params: The parameters; empty ones are left out.
        buffers: Their momentum buffers, of a DTensor this rank's piece.
        views: How each is seen as matrices.
        arithmetic: Of the engine, see `update_dtype`.
        max_bytes: Of a round's updates, and on a CPU of their results and at most 64 MiB; a larger
            update has a round to itself.
        multiple: A batch is cut after a multiple of so many parameters, as far as ``max_bytes``
            lets.

    Raises:
        RuntimeError: If a buffer does not have its parameter's shape.

    Example:
        >>> xs = [torch.zeros(2, 2)] * 3
        >>> own = None, None
        >>> [some.members for some in arrange(xs, xs, ["auto"] * 3, own, max_bytes=64)]
        [[0, 1], [2]]
        >>> [some.members for some in arrange(xs, xs, ["auto"] * 3, own, 95, multiple=2)]
        [[0, 1], [2]]
    """
    kinds: list[Kind] = []
    for p, b, view in zip(params, buffers, views, strict=True):
        shape = p.shape
        if b.shape != shape and not is_dtensor(p):
            raise RuntimeError(
                f"{describe(p)} has a momentum buffer of shape {tuple(b.shape)}; if its data were "
                f"replaced, delete the optimizer's state of it"
            )
        kinds.append((shape, p.dtype, b.dtype, b.device, view))
    # The compiler traces what is cached, and warns.
    arranged = _arranged.__wrapped__ if torch.compiler.is_compiling() else _arranged
    return arranged(tuple(kinds), arithmetic, max_bytes, multiple)


@lru_cache(maxsize=64)
def _arranged(
    kinds: tuple[Kind, ...], arithmetic: Arithmetic, max_bytes: int, multiple: int
) -> list[Round]:
    alike: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(i)
    batches: dict[tuple[Any, ...], Batch] = {}
    for (shape, own, kept, device, view), members in alike.items():
        if 0 not in shape:
            (_, *matrix), view, logical = seen.__wrapped__(shape, view)
            dtype = update_dtype(*arithmetic, shape, view, torch.promote_types(own, kept), device)
            whole = tuple(matrix) if view.split is None else (shape, view.split)
            key = (whole, view, dtype, device, logical)
            batch = batches.setdefault(key, Batch({}, *key))
            batch.members.setdefault(shape, []).extend(members)
    result = []
    for some in _cut_at(list(batches.values()), max_bytes, multiple):
        of = [b for b in some for positions in b.members.values() for _ in positions]
        members = [i for b in some for positions in b.members.values() for i in positions]
        sides = [b.logical if b.view.split is None else None for b in of]
        result.append(Round(some, members, [b.view for b in of], [b.dtype for b in of], sides))
    return result


def update_dtype(
    schedule: Any,
    compute_dtype: torch.dtype | None,
    shape: torch.Size,
    view: MatrixView,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.dtype:
    """Return bfloat16 for float32 updates that the engine would round to it first; else their own.

    The results are the same bits, and two passes over the memory less. A GPU's engine divides by
    the norm before it rounds, so there the updates stay as they are, as they do under the compiler.

    Args:
        schedule: Of the engine, or None: its own.
        compute_dtype: Of the iteration, or None: the engine's rule.
        shape: Of the whole parameter.
        view: How it is seen as matrices.
        dtype: The wider one of parameter and buffer.
        device: Of the updates.
    """
    if device.type != "cpu" or dtype != torch.float32 or torch.compiler.is_compiling():
        return dtype
    if compute_dtype is None and is_triple(schedule):
        compute_dtype = torch.bfloat16
    if compute_dtype is not None:
        return torch.bfloat16 if compute_dtype == torch.bfloat16 else dtype
    options: dict[str, Any] = {} if schedule is None else {"schedule": schedule, "form": "direct"}
    pieces = [piece for piece in piece_shapes(shape, view) if 0 not in piece]
    taken = {plan(piece, 1, dtype, device, **options).dtype for piece in pieces}
    return torch.bfloat16 if taken == {torch.bfloat16} else dtype


def _cut_at(batches: Sequence[Batch], max_bytes: int, multiple: int) -> list[list[Batch]]:
    """Cut batches where ``max_bytes`` is passed; the order stays. A round has one device."""
    result: list[list[Batch]] = []
    room = 0
    for batch in batches:
        on_cpu = batch.device.type == "cpu"
        copies, limit = (2, min(max_bytes, CPU_BYTES)) if on_cpu else (1, max_bytes)
        for shape, members in batch.members.items():
            size = copies * shape.numel() * batch.dtype.itemsize
            start = 0
            while start < len(members):
                unit = min(max(1, min(multiple, limit // size)), len(members) - start)
                if not result or size * unit > room or result[-1][0].device != batch.device:
                    result.append([])
                    room = max(limit, size * unit)
                some = members[start : start + room // (size * unit) * unit]
                if not result[-1] or result[-1][-1][1:] != batch[1:]:
                    result[-1].append(Batch({}, *batch[1:]))  # torch 2.9 compiles no _replace
                result[-1][-1].members.setdefault(shape, []).extend(some)
                room -= size * len(some)
                start += len(some)
    return result


class Room(NamedTuple):
    """The memory of a round's updates, uninitialized at first.

    Attributes:
        updates: The update of each parameter.
        stacks: (B, m, n): the updates of each batch, of which the former are views.
        results: Where their polar factors go: memory of the same size, or the same.
        factors: The polar factor of each parameter: views of ``results``.
        memory: Under all of them; on a CPU a piece that this thread keeps.
    """

    updates: list[Tensor]
    stacks: Sequence[Tensor] = ()
    results: Sequence[Tensor] = ()
    factors: Sequence[Tensor] = ()
    memory: Tensor | None = None

    @staticmethod
    def scattered(some: Round, buffers: Sequence[Tensor]) -> "Room":
        """Make room for updates that are no batches: of ranks' pieces, split ones, compiled.

        Args:
            some: The round.
            buffers: The momentum buffers, of a DTensor this rank's piece.
        """
        pairs = zip(buffers, some.dtypes, strict=True)
        return Room([torch.empty(b.shape, dtype=dtype, device=b.device) for b, dtype in pairs])

    @staticmethod
    def of(some: Round, owned: Owned | None = None) -> "Room":
        """Take memory for whole updates: that of the last step, if it suffices.

        Args:
            some: The round.
            owned: Whose memory it is on a GPU.
        """
        batches = some.batches
        counts = [sum(s.numel() * len(some) for s, some in b.members.items()) for b in batches]
        sized = list(zip(counts, batches, strict=True))
        # On a GPU, and in the direct form of bfloat16 on a CPU, the result may lie over the
        # updates; the Gram form of small matrices in float32 on a CPU reads them last.
        copies = [1 if owned or b.dtype == torch.bfloat16 else 2 for b in batches]
        spans = [-(-n * b.dtype.itemsize // _LINE) * _LINE for n, b in sized]
        lengths = [span for span, c in zip(spans, copies, strict=True) for _ in range(c)]
        nbytes = sum(lengths)
        memory = owned.room(nbytes, batches[0].device) if owned else _KEPT.take(nbytes)
        pieces = iter(memory.narrow(0, 0, nbytes).split(lengths))
        stacks, results = [], []
        for (n, b), c in zip(sized, copies, strict=True):
            places = [
                next(pieces).view(b.dtype).narrow(0, 0, n).view(-1, *b.matrix) for _ in range(c)
            ]
            stacks.append(places[0])
            results.append(places[-1])
        return Room(_cut(stacks, batches), stacks, results, _cut(results, batches), memory)

    def give_back(self) -> None:
        """Let this thread's next step write over all of it, if it is a CPU's and not large."""
        if self.memory is not None and self.memory.device.type == "cpu":
            _KEPT.give(self.memory)


def _cut(stacks: Sequence[Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    """Return a view for each parameter of the batches, of its shape."""
    pieces: list[Tensor] = []
    for stack, batch in zip(stacks, batches, strict=True):
        runs = [(shape, len(some)) for shape, some in batch.members.items()]
        parts = stack.view(-1).split([shape.numel() * count for shape, count in runs])
        for part, (shape, count) in zip(parts, runs, strict=True):
            pieces += part.view(count, *shape).unbind()
    return pieces
