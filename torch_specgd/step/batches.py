"""Matrices of one shape side by side: one batch of them is orthogonalized in one call.

`arrange` sorts the parameters into batches, `rounds` bounds what exists at one time, `Room` is the
memory of a round's updates. `orthogonalize_all` is for tensors that lie wherever they lie.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from ..groups.matrix_view import MatrixView, as_matrices, batch_shape, describe, matrix_shape
from ..triton_kernels import orthogonalize_together
from ..triton_kernels.iterate.kept_memory import KeptMemory
from ..triton_kernels.kernels.owned import Owned

# On a CPU the allocator gives large blocks back to the system, whose pages are then cleared and
# mapped anew in the next step; this much fits in what a thread keeps.
CPU_BYTES = 1 << 26
_LINE = 64  # bytes
_KEPT = KeptMemory()  # the last round's updates


class Batch(NamedTuple):
    """Parameters whose matrices have one shape.

    Attributes:
        members: Positions of the parameters of each shape, a DTensor's in whole.
        matrix: (m, n); of split parameters, their shape and the split.
        view: How each parameter is seen as matrices.
        dtype: Of the updates.
        device: Of the updates.
        logical: (outputs, inputs) of the matrices; of split parameters, of the whole.
    """

    members: dict[torch.Size, list[int]]
    matrix: tuple[Any, ...]
    view: MatrixView
    dtype: torch.dtype
    device: torch.device
    logical: tuple[int, int]


def positions(batches: Iterable[Batch]) -> list[int]:
    """Return the positions of the batches' parameters, in their order."""
    return [i for batch in batches for some in batch.members.values() for i in some]


def views_of(batches: Iterable[Batch]) -> list[MatrixView]:
    """Return how each of the batches' parameters is seen as matrices, in their order."""
    return [batch.view for batch in batches for some in batch.members.values() for _ in some]


def arrange(
    params: Sequence[Tensor],
    buffers: Sequence[Tensor],
    views: Sequence[str | MatrixView],
    update_dtype: Callable[[torch.Size, MatrixView, torch.dtype, torch.device], torch.dtype],
) -> list[Batch]:
    """Sort parameters into batches, by whole shapes: the order is the same on every rank.

    Args:
        params: The parameters; empty ones are left out.
        buffers: Their momentum buffers, of a DTensor this rank's piece.
        views: How each is seen as matrices.
        update_dtype: Says which dtype the updates have, by shape, view, the wider dtype of
            parameter and buffer, and device.

    Raises:
        RuntimeError: If a buffer does not have its parameter's shape.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (p, b, view) in enumerate(zip(params, buffers, views, strict=True)):
        shape = p.shape
        if b.shape != shape and not is_dtensor(p):
            raise RuntimeError(
                f"{describe(p)} has a momentum buffer of shape {tuple(b.shape)}; if its data were "
                f"replaced, delete the optimizer's state of it"
            )
        alike.setdefault((shape, p.dtype, b.dtype, b.device, view), []).append(i)
    batches: dict[tuple[Any, ...], Batch] = {}
    # The compiler traces what is cached, and warns.
    seen = _seen.__wrapped__ if torch.compiler.is_compiling() else _seen
    # What follows is done once a kind and not once a parameter.
    for (shape, own, kept, device, view), members in alike.items():
        if 0 not in shape:
            matrix, view, logical = seen(shape, view)
            dtype = update_dtype(shape, view, torch.promote_types(own, kept), device)
            key = (matrix, view, dtype, device, logical)
            batch = batches.setdefault(key, Batch({}, *key))
            batch.members.setdefault(shape, []).extend(members)
    return list(batches.values())


@lru_cache(maxsize=4096)
def _seen(
    shape: torch.Size, view: str | MatrixView
) -> tuple[tuple[Any, ...], MatrixView, tuple[int, int]]:
    """Return a batch's ``matrix``, ``view`` and ``logical`` for a parameter of this shape."""
    view = MatrixView.of(view)
    matrix = batch_shape(shape, view)[1:] if view.split is None else (shape, view.split)
    return matrix, view, matrix_shape(shape, view)


def rounds(batches: Sequence[Batch], max_bytes: int, multiple: int = 1) -> list[list[Batch]]:
    """Cut batches where ``max_bytes`` is passed; the order stays. A round has one device.

    Args:
        batches: From `arrange`.
        max_bytes: Of the updates, and on a CPU of their results and at most 64 MiB; a larger
            update has a round to itself.
        multiple: A batch is cut after a multiple of so many parameters, as far as ``max_bytes``
            lets.

    Example:
        >>> xs = [torch.zeros(2, 2)] * 3
        >>> batches = arrange(xs, xs, ["auto"] * 3, lambda shape, view, dtype, device: dtype)
        >>> [positions(some) for some in rounds(batches, max_bytes=64)]
        [[0, 1], [2]]
        >>> [positions(some) for some in rounds(batches, 95, multiple=2)]
        [[0, 1], [2]]
    """
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
                    result[-1].append(batch._replace(members={}))
                result[-1][-1].members.setdefault(shape, []).extend(some)
                room -= size * len(some)
                start += len(some)
    return result


class Room(NamedTuple):
    """The memory of a round's updates, uninitialized at first.

    Attributes:
        batches: What it is for, all of whole matrices.
        stacks: (B, m, n): the updates of each batch.
        results: Where their polar factors go: memory of the same size, or the same.
        memory: Under all of them; on a CPU a piece that this thread keeps.
    """

    batches: Sequence[Batch]
    stacks: list[Tensor]
    results: list[Tensor]
    memory: Tensor

    @staticmethod
    def of(batches: Sequence[Batch], owned: Owned) -> "Room":
        """Take memory for whole updates: that of the last step, if it suffices.

        Args:
            batches: Of one device.
            owned: Whose memory it is on a GPU.
        """
        counts = [sum(s.numel() * len(some) for s, some in b.members.items()) for b in batches]
        sized = list(zip(counts, batches, strict=True))
        device = batches[0].device
        # On a GPU, and in the direct form of bfloat16 on a CPU, the result may lie over the
        # updates; the Gram form of small matrices in float32 on a CPU reads them last.
        over = device.type != "cpu"
        copies = [1 if over or b.dtype == torch.bfloat16 else 2 for b in batches]
        spans = [-(-n * b.dtype.itemsize // _LINE) * _LINE for n, b in sized]
        lengths = [span for span, c in zip(spans, copies, strict=True) for _ in range(c)]
        nbytes = sum(lengths)
        memory = owned.room(nbytes, device) if over else _KEPT.take(nbytes)
        pieces = iter(memory.narrow(0, 0, nbytes).split(lengths))
        stacks, results = [], []
        for (n, b), c in zip(sized, copies, strict=True):
            places = [
                next(pieces).view(b.dtype).narrow(0, 0, n).view(-1, *b.matrix) for _ in range(c)
            ]
            stacks.append(places[0])
            results.append(places[-1])
        return Room(batches, stacks, results, memory)

    @property
    def updates(self) -> list[Tensor]:
        """The update of each parameter: views of the stacks."""
        return _cut(self.stacks, self.batches)

    def orthogonalize(self, **options: Any) -> list[Tensor]:
        """Return the polar factor of each update, which may lie in the updates' own memory.

        Args:
            **options: Of the engine's ``orthogonalize``.
        """
        orthogonalize_together(self.stacks, self.results, **options)
        return _cut(self.results, self.batches)

    def give_back(self) -> None:
        """Let this thread's next step write over all of it, if it is a CPU's and not large."""
        if self.batches[0].device.type == "cpu":
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


def orthogonalize_all(
    updates: Sequence[Tensor],
    views: Sequence[str | MatrixView],
    orthogonalize: Callable[[Tensor], Tensor],
    scale: Callable[[int, int], float] | None = None,
) -> list[Tensor]:
    """Orthogonalize tensors of any shapes, all matrices of one shape in one batch.

    Args:
        updates: Tensors of two or more dimensions.
        views: How each is seen as matrices (see ``MatrixView``).
        orthogonalize: Maps (B, m, n) to (B, m, n).
        scale: Factor by (outputs, inputs) of a matrix, applied to the pieces of split tensors
            only: their pieces differ in shape, where whole tensors have one factor each.

    Returns:
        A tensor of each update's shape and dtype, in the same order.
    """
    pieces = [MatrixView.of(v).pieces(u) for u, v in zip(updates, views, strict=True)]
    matrices = [as_matrices(x, v) for xs, v in zip(pieces, views, strict=True) for x in xs]
    done = iter(_by_shape(matrices, orthogonalize))
    result = []
    for xs, v in zip(pieces, views, strict=True):
        outputs = [next(done).reshape(x.shape) for x in xs]
        view = MatrixView.of(v)
        if view.split is not None and scale is not None:
            factors = [scale(*matrix_shape(x.shape, v)) for x in xs]
            outputs = [o * factor for o, factor in zip(outputs, factors, strict=True)]
        result.append(view.joined(outputs))
    return result


def _by_shape(
    matrices: Sequence[Tensor], orthogonalize: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return the result of each (B, m, n), in their order; those of one (m, n) in one call."""
    batches: dict[tuple[Any, ...], list[int]] = {}
    for i, x in enumerate(matrices):
        batches.setdefault((x.shape[-2:], x.dtype, x.device), []).append(i)
    result = list(matrices)
    for members in batches.values():
        parts = [matrices[i] for i in members]
        # Tall results come transposed: one pass over all beats strided reads later.
        done = orthogonalize(torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous()
        for i, o in zip(members, done.split([len(x) for x in parts]), strict=True):
            result[i] = o
    return result
