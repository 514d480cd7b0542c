"""Which rank orthogonalizes which matrix, and which matrices travel together."""

import heapq
from collections.abc import Sequence
from math import prod

from ..groups.matrix_view import MatrixView, batch_dims


def cost(shape: Sequence[int], view: str | MatrixView) -> int:
    """Count the multiplications of one Newton-Schulz product: n^2 m, n the short side.

    Example:
        >>> cost((4, 2, 3), "auto")
        48
    """
    view = MatrixView.of(view)
    if view.split is not None:
        return sum(cost(part, view.kind) for part in view.part_shapes(shape))
    m, *n = shape[batch_dims(len(shape), view) :]
    return prod(shape) * min(m, prod(n))


def balanced_owners(costs: Sequence[int], loads: list[int]) -> list[int]:
    """Give each matrix to the least loaded owner, costly ones first.

    The same on every rank: it depends on shapes alone, and ties go to the lower number.

    Args:
        costs: Cost of each matrix.
        loads: Load of each owner so far, brought up to date in place.

    Returns:
        The owner of each matrix. The largest load is at most 4/3 of the best possible one where
        all loads begin at 0 (Graham 1969).

    Example:
        >>> balanced_owners([3, 5, 2], [0, 0])
        [1, 0, 1]
    """
    heap = [(load, owner) for owner, load in enumerate(loads)]
    heapq.heapify(heap)
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, owners[i] = heap[0]
        heapq.heapreplace(heap, (load + costs[i], owners[i]))
    for load, owner in heap:
        loads[owner] = load
    return owners


def buckets(
    shapes: Sequence[tuple[int, ...]],
    costs: Sequence[int],
    sizes: Sequence[int],
    owners: int,
    max_bytes: int,
) -> list[list[int]]:
    """Cut matrices into the buckets that travel together.

    Costly ones come first and like shapes lie together, so that an owner has a batch of one
    shape. A bucket ends at a multiple of the number of owners, so that each has its share.

    Args:
        shapes: Full shapes.
        costs: Cost of each matrix.
        sizes: Bytes of each matrix.
        owners: Number of owners.
        max_bytes: Bytes per owner at which a bucket is closed.

    Returns:
        Positions in each bucket.

    Example:
        >>> buckets([(2, 2), (3, 3), (2, 2)], [8, 27, 8], [16, 36, 16], owners=1, max_bytes=30)
        [[1], [0, 2]]
    """
    order = sorted(range(len(shapes)), key=lambda i: (-costs[i], shapes[i], i))
    result: list[list[int]] = [[]]
    full = 0
    for i in order:
        if full >= max_bytes * owners and len(result[-1]) % owners == 0:
            result.append([])
            full = 0
        result[-1].append(i)
        full += sizes[i]
    return result
