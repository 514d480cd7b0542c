"""Where the pieces of a parameter lie: read from the tensor, never from ranks or environment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specgd_common.tensors import is_dtensor, local

from ..groups.matrix_view import MatrixView, batch_dims, describe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def local_like(x: Tensor, p: Tensor) -> Tensor:
    """Return this rank's piece of x, once x lies as p does.

    Gradients may lie elsewhere than their parameter: those of replicated weights under sequence
    parallelism arrive as partial sums, which the redistribution adds up.

    Args:
        x: Gradient or update of p.
        p: Parameter, a DTensor or not.

    Raises:
        RuntimeError: If only one of the two is a DTensor.
    """
    if is_dtensor(x) != is_dtensor(p):
        raise RuntimeError(
            f"{describe(p)} is {_kind(p)}, but its gradient is {_kind(x)}; "
            f"either both are DTensors or none is"
        )
    return local(placed_like(x, p))


def placed_like(x: Tensor, p: Tensor) -> Tensor:
    """Return x, divided among the ranks as p is; plain tensors stay what they are."""
    if is_dtensor(x) and is_dtensor(p) and tuple(x.placements) != tuple(p.placements):
        return x.redistribute(p.device_mesh, p.placements)
    return x


def _kind(x: Tensor) -> str:
    return "a DTensor" if is_dtensor(x) else "a plain tensor"


def rewrapped(x: Tensor, p: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Return the DTensor that lies as p does and has x as this rank's piece; x for a plain p.

    Args:
        x: The piece.
        p: The parameter.
        shape: Of the whole, default p's.
    """
    if not is_dtensor(p):
        return x
    from torch.distributed.tensor import DTensor

    stride = p.stride() if shape is None else torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        x,
        p.device_mesh,
        p.placements,
        run_check=False,
        shape=p.shape if shape is None else shape,
        stride=stride,
    )


def least_divided(params: Iterable[Tensor]) -> tuple[int, int]:
    """Return into how many pieces the least divided tensor is cut, and how many ranks share work.

    Both are the same on every rank. A rank holds one piece of each, so that as many times more of
    them fit into its memory.
    """
    kinds = {(p.device_mesh, tuple(p.placements)) if is_dtensor(p) else None for p in params}
    cuts, ranks = [], 1
    for kind in kinds:
        if kind is None:
            return 1, 1
        mesh, placements = kind
        sizes = [mesh.size(i) for i in range(mesh.ndim)]
        divided = zip(sizes, placements, strict=True)
        cuts.append(prod(n for n, place in divided if not place.is_replicate()))
        ranks = max(ranks, prod(sizes))
    return min(cuts, default=1), ranks


def without_partial_sums(x: Tensor) -> Tensor:
    """Return the same tensor with its pending sums done, as a reduction over shards leaves some."""
    if not is_dtensor(x) or not any(place.is_partial() for place in x.placements):
        return x
    from torch.distributed.tensor import Replicate

    done = [Replicate() if place.is_partial() else place for place in x.placements]
    return x.redistribute(x.device_mesh, done)


@dataclass(frozen=True)
class Division:
    """How one mesh dimension divides a tensor among the ranks of its group.

    Attributes:
        group: The ranks that differ in this coordinate only.
        size: How many they are.
        index: This rank's coordinate.
        dim: Tensor dimension that is divided, or None: every rank of the group holds the same.
        split_factor: Above 1: the dimension is cut into so many segments first, and each of them
            is divided (tensor parallelism inside, FSDP outside).
        moves: Whether pieces travel. False where a piece consists of whole matrices.
    """

    group: "ProcessGroup"
    size: int
    index: int
    dim: int | None
    split_factor: int = 1
    moves: bool = True

    def lengths(self, n: int) -> list[int]:
        """Return the lengths of the pieces of a dimension of length n; trailing ones may be 0."""
        if self.split_factor == 1:
            return _chunks(n, self.size)
        segments = [_chunks(s, self.size) for s in _chunks(n, self.split_factor)]
        return [sum(column) for column in zip(*segments, strict=True)]

    def order(self, n: int) -> list[int] | None:
        """Return each concatenated row's position in the whole; None: as they are."""
        if self.split_factor == 1:
            return None
        pieces: list[list[int]] = [[] for _ in range(self.size)]
        start = 0
        for segment in _chunks(n, self.split_factor):
            for piece, length in zip(pieces, _chunks(segment, self.size), strict=True):
                piece.extend(range(start, start + length))
                start += length
        return [i for piece in pieces for i in piece]


def _chunks(n: int, parts: int) -> list[int]:
    size = -(-n // parts)
    return [max(0, min(size, n - size * j)) for j in range(parts)]


@dataclass(frozen=True)
class Layout:
    """Full shape of a tensor, and what each mesh dimension does to it, outermost first."""

    shape: torch.Size
    mesh: Any = None
    placements: tuple[Any, ...] = ()

    @staticmethod
    def of(x: Tensor) -> "Layout":
        """Read the layout of a parameter."""
        if is_dtensor(x):
            return Layout(x.shape, x.device_mesh, tuple(x.placements))
        return Layout(x.shape)

    @property
    def here(self) -> bool:
        """Whether this rank belongs to the mesh; others hold nothing of the tensor."""
        return self.mesh is None or self.mesh.get_coordinate() is not None

    def as_matrix(self) -> "Layout":
        """Return the layout of a vector as a matrix of one column, of any other tensor itself."""
        if len(self.shape) >= 2:
            return self
        return Layout(torch.Size((self.shape.numel(), 1)), self.mesh, self.placements)

    def divisions(self, view: str | MatrixView = "auto") -> list[Division]:
        """Return what each mesh dimension does, those that leave matrices whole first."""
        if self.mesh is None or not self.here:
            return []
        whole = batch_dims(len(self.shape), view)
        result = []
        for i, (placement, index) in enumerate(
            zip(self.placements, self.mesh.get_coordinate(), strict=True)
        ):
            dim = None if placement.is_replicate() else placement.dim % len(self.shape)
            size = self.mesh.size(i)
            moves = size > 1 and (dim is None or dim >= whole)
            factor = getattr(placement, "split_factor", 1)
            result.append(Division(self.mesh.get_group(i), size, index, dim, factor, moves))
        # They commute with the others, and stay as they are while the others are undone.
        return sorted(result, key=lambda d: d.moves)


def shapes_before(shape: Sequence[int], divisions: Sequence[Division]) -> list[tuple[int, ...]]:
    """Return the shape of this rank's piece before each division, and after the last one."""
    shapes = [tuple(shape)]
    for d in divisions:
        piece = list(shapes[-1])
        if d.dim is not None:
            piece[d.dim] = d.lengths(piece[d.dim])[d.index]
        shapes.append(tuple(piece))
    return shapes


def check_layout(p: Tensor, name: str | None = None) -> None:
    """Raise unless every placement of a parameter can be undone and done again.

    Args:
        p: The parameter.
        name: Its name, for the error message.

    Raises:
        ValueError: If p is a DTensor with a partial placement, with one of a kind that is not
            known here, on a mesh whose ranks do not ascend, or with a piece of unexpected shape.
    """
    if not is_dtensor(p):
        return
    for placement in p.placements:
        if placement.is_partial() or not (
            placement.is_replicate() or isinstance(getattr(placement, "dim", None), int)
        ):
            raise ValueError(
                f"{describe(p, name)} has placement {placement}; supported are Replicate() and "
                f"Shard(dim): redistribute the parameter before it is given to the optimizer"
            )
    ranks = p.device_mesh.mesh
    if any(bool((ranks.diff(dim=i) <= 0).any()) for i in range(ranks.ndim)):
        raise ValueError(
            f"{describe(p, name)} lies on the mesh {ranks.tolist()}; supported are meshes whose "
            f"ranks ascend along every dimension, because process groups are ordered by rank"
        )
    layout = Layout.of(p)
    expected = shapes_before(layout.shape, layout.divisions())[-1]
    if layout.here and tuple(p.to_local().shape) != expected:
        raise ValueError(
            f"{describe(p, name)} with placements {layout.placements} has a local piece of shape "
            f"{tuple(p.to_local().shape)} where {expected} was expected: uneven sharding of one "
            f"dimension by two mesh dimensions is not supported"
        )
