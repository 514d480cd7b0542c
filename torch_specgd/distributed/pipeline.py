"""Moves buckets of matrices to their owners, through the computation, and back."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..groups.matrix_view import MatrixView
from .exchange import Pieces, Shape, from_owners, to_owners
from .layout import Division, shapes_before
from .owners import balanced_owners, buckets, cost

Job = Generator[None, None, None]
Compute = Callable[[list[Tensor], list[int]], list[Tensor]]


# A compiled step is cut here, and only here: torch.compile cannot follow waiting generators.
@torch.compiler.disable
def exchange_and_compute(
    updates: Sequence[Tensor],
    shapes: Sequence[Shape],
    views: Sequence[str | MatrixView],
    stages: Sequence[Sequence[Division]],
    compute: Compute,
    bucket_bytes: int,
) -> list[Tensor]:
    """Apply ``compute`` to whole matrices, each on its owner; see `orthogonalize_distributed`.

    Args:
        updates: This rank's pieces.
        shapes: Their full shapes.
        views: How each is seen as matrices.
        stages: What divides each, outermost first.
        compute: Maps whole matrices and their positions to results.
        bucket_bytes: Bytes of matrices per owner that travel at one time.

    Returns:
        This rank's pieces of the results.
    """
    result = list(updates)
    together: dict[Any, list[int]] = {}
    for i, x in enumerate(updates):
        together.setdefault((tuple(stages[i]), x.dtype, x.device), []).append(i)
    exchanged: list[Job] = []
    local: list[Job] = []
    for (divisions, _, _), members in together.items():
        if not any(d.moves for d in divisions):
            local.append(_compute_here(result, members, compute))
            continue
        costs = [cost(shapes[i], views[i]) for i in members]
        sizes = [prod(shapes[i]) * updates[i].element_size() for i in members]
        count = prod(d.size for d in divisions if d.moves)
        loads = [0] * count
        for bucket in buckets([shapes[i] for i in members], costs, sizes, count, bucket_bytes):
            owners = balanced_owners([costs[k] for k in bucket], loads)
            ids = [members[k] for k in bucket]
            whole = {i: shapes[i] for i in ids}
            owner = dict(zip(ids, owners, strict=True))
            exchanged.append(_job(result, divisions, whole, owner, compute))
    # Last, so that the last bucket's way back is covered too.
    _run([*exchanged, *local])
    return result


def _coordinates(owner: int, divisions: Sequence[Division]) -> list[int]:
    """Return the owner's coordinate in every division, or this rank's own where nothing moves."""
    result = []
    for d in reversed(divisions):
        result.append(owner % d.size if d.moves else d.index)
        owner //= d.size if d.moves else 1
    return result[::-1]


def _job(
    result: list[Tensor],
    divisions: Sequence[Division],
    whole: dict[int, Shape],
    owner: dict[int, int],
    compute: Compute,
) -> Job:
    """Take one bucket to the owners, through ``compute``, and back."""
    like = result[next(iter(whole))]
    coordinates = {i: _coordinates(o, divisions) for i, o in owner.items()}
    shapes = {i: shapes_before(s, divisions) for i, s in whole.items()}
    # Replicas choose their share first, so that only this share is exchanged. Nested divisions
    # are undone from the inside.
    moving = [k for k, d in enumerate(divisions) if d.moves]
    inward = [k for k in moving if divisions[k].dim is None]
    inward += [k for k in reversed(moving) if divisions[k].dim is not None]
    pieces: Pieces = {i: result[i] for i in whole}
    held: list[list[int]] = []
    for k in inward:
        held.append(list(pieces))
        before, to = _at(pieces, shapes, coordinates, k, divisions[k].dim is None)
        pieces = yield from to_owners(pieces, divisions[k], before, to, like)
    if pieces:
        done = compute(list(pieces.values()), list(pieces))
        pieces = dict(zip(pieces, done, strict=True))
    for k, ids in zip(reversed(inward), reversed(held), strict=True):
        before, to = _at(ids, shapes, coordinates, k, divisions[k].dim is None)
        pieces = yield from from_owners(pieces, divisions[k], before, to, like)
    for i, x in pieces.items():
        result[i] = x


def _at(
    ids: Iterable[int],
    shapes: dict[int, list[Shape]],
    coordinates: dict[int, list[int]],
    k: int,
    replicated: bool,
) -> tuple[dict[int, Shape], dict[int, int]]:
    """Return each matrix's shape and owner at one division; replicas exchange finished pieces."""
    ids = list(ids)
    before = -1 if replicated else k
    return {i: shapes[i][before] for i in ids}, {i: coordinates[i][k] for i in ids}


def _compute_here(result: list[Tensor], members: list[int], compute: Compute) -> Job:
    yield
    done = compute([result[i] for i in members], members)
    for i, x in zip(members, done, strict=True):
        result[i] = x


def _run(jobs: Iterable[Job]) -> None:
    """Move every job by one exchange at a time, the newest first.

    So the next bucket's exchange is launched before this bucket is computed, and at most as many
    buckets are under way as one has exchanges. The order is the same on every rank.
    """
    waiting = deque(jobs)
    running: list[Job] = []
    while waiting or running:
        if waiting:
            running.insert(0, waiting.popleft())
        running = [job for job in running if not _ended(job)]


def _ended(job: Job) -> bool:
    try:
        next(job)
    except StopIteration:
        return True
    return False
