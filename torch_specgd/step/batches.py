"""Which parameters a step treats alike, in an order that every rank and every limit shares.

`alike` sorts them into kinds, `chunks` bounds what exists at one time, and `batches_of` puts the
kinds together whose matrices have one shape.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor

from ..groups.matrix_view import MatrixView, batch_shape, describe


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
