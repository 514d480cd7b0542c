"""Where the updates of a step lie: matrices of one shape side by side, one batch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .routing import MatrixView, batch_shape
from .triton_kernels.kept_memory import KeptMemory

# dtype of the updates of a parameter by (full shape, buffer's dtype, device, view).
UpdateDtype = Callable[[torch.Size, torch.dtype, torch.device, MatrixView], torch.dtype]


_KEPT = KeptMemory()  # the last step's updates
_LINE = 64  # bytes


class Stack(NamedTuple):
    """Updates that share one piece of memory.

    Attributes:
        members: Their positions among all updates.
        places: The updates, in the order of ``members``: views of ``batch``.
        batch: (B, m, n): all their matrices; a flat tensor if they are split.
        result: As large as ``batch``: where their orthogonalization may go; None: new memory.
    """

    members: list[int]
    places: list[Tensor]
    batch: Tensor
    result: Tensor | None


def stack_updates(
    buffers: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    views: Sequence[MatrixView],
    dtype_of: UpdateDtype,
) -> list[Stack]:
    """Makes room for one update of each buffer's shape, uninitialized.

    Args:
        buffers: Momentum buffers, of a DTensor this rank's piece.
        shapes: Full shapes of the parameters.
        views: How each is seen as matrices.
        dtype_of: The updates' dtype.

    Returns:
        Stacks that contain every position once.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for i, (b, shape, view) in enumerate(zip(buffers, shapes, views, strict=True)):
        alike.setdefault((b.shape, shape, b.dtype, b.device, view), []).append(i)
    together: dict[tuple[object, torch.dtype, torch.device], list[int]] = {}
    for members in alike.values():
        i = members[0]
        b, view = buffers[i], views[i]
        kind = batch_shape(b.shape, view)[1:] if view.split is None else (b.shape, view.split)
        dtype = dtype_of(shapes[i], b.dtype, b.device, view)
        together.setdefault((kind, dtype, b.device), []).extend(members)
    sizes = [
        (sum(buffers[i].numel() for i in members), dtype, device)
        for (_, dtype, device), members in together.items()
    ]
    return [
        _stack(members, [buffers[i].shape for i in members], views[members[0]], *memory)
        for members, memory in zip(together.values(), _memory(sizes), strict=True)
    ]


def _memory(
    sizes: Sequence[tuple[int, torch.dtype, torch.device]],
) -> list[tuple[Tensor, Tensor | None]]:
    """Flat uninitialized tensors for updates and results, on a CPU in what the last step left."""
    if not all(device.type == "cpu" for _, _, device in sizes):
        return [(torch.empty(n, dtype=dtype, device=device), None) for n, dtype, device in sizes]
    # bfloat16 is iterated in the direct form, whose result may lie over the updates; the Gram
    # form of small matrices in float32 reads them last.
    kinds = [(n, dtype, 1 if dtype == torch.bfloat16 else 2) for n, dtype, _ in sizes]
    spans = [-(-n * dtype.itemsize // _LINE) * _LINE for n, dtype, _ in kinds]
    total = sum(span * count for span, (*_, count) in zip(spans, kinds, strict=True))
    room = _KEPT.take(total)
    found: list[tuple[Tensor, Tensor | None]] = []
    for span, (n, dtype, count) in zip(spans, kinds, strict=True):
        places = [room[i * span :][: n * dtype.itemsize].view(dtype) for i in range(count)]
        room = room[count * span :]
        found.append((places[0], places[-1]))
    return found


def keep_memory(stacks: Sequence[Stack]) -> None:
    """Lets this thread's next step write over these updates, if they are a CPU's and not large."""
    if stacks and stacks[0].batch.device.type == "cpu":
        _KEPT.give(stacks[0].batch)


def _stack(
    members: list[int],
    shapes: list[torch.Size],
    view: MatrixView,
    memory: Tensor,
    result: Tensor | None,
) -> Stack:
    places = _cut(memory, shapes)
    if view.split is not None or not len(memory):
        return Stack(members, places, memory, None)
    m, n = batch_shape(shapes[0], view)[1:]
    batch = memory.view(-1, m, n)
    return Stack(members, places, batch, None if result is None else result.view(-1, m, n))


def _cut(memory: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of the given shapes, one after the other."""
    if all(shape == shapes[0] for shape in shapes):
        return list(memory.view(len(shapes), *shapes[0]).unbind())
    parts = memory.split([shape.numel() for shape in shapes])
    return [x.view(shape) for x, shape in zip(parts, shapes, strict=True)]


def in_order(stacks: Sequence[Stack]) -> list[Tensor]:
    """All places by position."""
    found = {i: x for s in stacks for i, x in zip(s.members, s.places, strict=True)}
    return [found[i] for i in range(len(found))]


def orthogonalize_stacks(
    stacks: Sequence[Stack], orthogonalize: Callable[..., Tensor]
) -> list[Tensor]:
    """Orthogonalizes the batch of every stack, none of them split.

    Returns:
        The results by position, row-major, of the places' shapes and dtypes; they may lie
        in the stacks' own memory.
    """
    result: dict[int, Tensor] = {}
    for members, places, batch, place in stacks:
        if place is not None:
            done = orthogonalize(batch, out=batch if batch.dtype == torch.bfloat16 else place)
        else:
            # A GPU leaves tall results transposed: one pass over all beats strided reads later.
            done = orthogonalize(batch).contiguous()
        result.update(zip(members, _cut(done.view(-1), [x.shape for x in places]), strict=True))
    return [result[i] for i in range(len(result))]
