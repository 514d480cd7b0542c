"""Where the updates of a step lie: matrices of one shape side by side, one batch.

A step treats parameters of one `Kind` alike. `chunks` bounds what exists at one time, `batches_of`
puts kinds together whose matrices have one shape, and `stack_updates` gives each batch its memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
        result: As large as ``batch``: where their orthogonalization may go; None: new memory.
    """

    places: list[Tensor]
    batch: Tensor
    result: Tensor | None


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
    # Once a kind and not once a parameter.
    return {
        Kind(shape, dtype, device, MatrixView.of(view)): members  # type: ignore[arg-type]
        for (shape, dtype, device, view), members in found.items()
    }


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
        count = max(1, min(together, max_bytes // max(kind.nbytes, 1)))
        for start in range(0, len(members), count):
            piece = members[start : start + count]
            if kind.nbytes * len(piece) > room:
                result.append({})
                room = max_bytes
            result[-1].setdefault(kind, []).extend(piece)
            room -= kind.nbytes * len(piece)
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
        shape = (kind.shape, split) if split else batch_shape(kind.shape, kind.view)[1:]
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
    """
    left = iter(buffers)
    shapes = [[next(left).shape for some in b.kinds.values() for _ in some] for b in batches]
    devices = [next(iter(b.kinds)).device for b in batches]
    dtypes = [b.dtype or next(iter(b.kinds)).dtype for b in batches]
    sizes = [sum(shape.numel() for shape in some) for some in shapes]
    stacks = []
    memory = _memory(list(zip(sizes, dtypes, devices, strict=True)))
    for batch, some, (place, result) in zip(batches, shapes, memory, strict=True):
        places = _cut(place, some)
        if whole:
            kind = next(iter(batch.kinds))
            m, n = batch_shape(kind.shape, kind.view)[1:]
            place = place.view(-1, m, n)
            result = None if result is None else result.view(-1, m, n)
        stacks.append(Stack(places, place, result if whole else None))
    return stacks


def _memory(
    sizes: Sequence[tuple[int, torch.dtype, torch.device]],
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Flat uninitialized tensors for updates and results, on a CPU in what the last step left."""
    if not all(device.type == "cpu" for _, _, device in sizes):
        for n, dtype, device in sizes:
            yield torch.empty(n, dtype=dtype, device=device), None
        return
    # bfloat16 is iterated in the direct form, whose result may lie over the updates; the Gram
    # form of small matrices in float32 reads them last.
    kinds = [(n, dtype, 1 if dtype == torch.bfloat16 else 2) for n, dtype, _ in sizes]
    spans = [-(-n * dtype.itemsize // _LINE) * _LINE for n, dtype, _ in kinds]
    room = _KEPT.take(sum(span * count for span, (*_, count) in zip(spans, kinds, strict=True)))
    for span, (n, dtype, count) in zip(spans, kinds, strict=True):
        places = [room[i * span :][: n * dtype.itemsize].view(dtype) for i in range(count)]
        room = room[count * span :]
        yield places[0], places[-1]


def keep_memory(stacks: Sequence[Stack]) -> None:
    """Lets this thread's next step write over these updates, if they are a CPU's and not large."""
    if stacks and stacks[0].batch.device.type == "cpu":
        _KEPT.give(stacks[0].batch)


def _cut(memory: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of the given shapes, one after the other."""
    if all(shape == shapes[0] for shape in shapes):
        return list(memory.view(len(shapes), *shapes[0]).unbind())
    parts = memory.split([shape.numel() for shape in shapes])
    return [x.view(shape) for x, shape in zip(parts, shapes, strict=True)]


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
    outs = [s.batch if s.batch.dtype == torch.bfloat16 else s.result for s in placed]
    orthogonalize_together([s.batch for s in placed], outs, **options)
    done = iter(outs)
    results: list[Tensor] = []
    for places, batch, place in stacks:
        # A GPU leaves tall results transposed: one pass over all beats strided reads later.
        out = orthogonalize(batch, **options).contiguous() if place is None else next(done)
        results += places if out is batch else _cut(out.view(-1), [x.shape for x in places])
    return results
