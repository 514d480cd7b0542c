"""Orthogonalizes parameters that are spread over ranks: every matrix whole, on one owner."""

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor

from ..groups.matrix_view import MatrixView
from .layout import Division, Layout

Compute = Callable[[list[Tensor], list[int]], list[Tensor]]
BUCKET_BYTES = 32 * 2**20


def orthogonalize_distributed(
    updates: Sequence[Tensor],
    layouts: Sequence[Layout],
    views: Sequence[str | MatrixView],
    compute: Compute,
    *,
    share_work: bool = False,
    bucket_bytes: int = BUCKET_BYTES,
) -> list[Tensor]:
    """Apply ``compute`` to whole matrices, of which each rank may hold pieces only.

    The pieces of each matrix travel to one owner, are put together and orthogonalized there in
    one batch with the owner's other matrices of that shape, and the result travels back: two
    all-to-all exchanges, where gathering would bring every matrix to every rank. Owners are
    balanced by cost. Pieces that consist of whole matrices (expert stacks sharded over the
    experts) stay where they are. While one bucket is computed the next one travels.

    Every rank of a mesh must pass the same parameters in the same order.

    Args:
        updates: This rank's piece of each update.
        layouts: How each update is spread.
        views: How each is seen as matrices.
        compute: Maps whole matrices, and their positions in ``updates``, to results of the same
            shapes and dtypes.
        share_work: Undivided tensors are the same on every rank of the default process group:
            each is computed by one rank, and the results are shared. Without a process group
            every rank computes its own.
        bucket_bytes: Bytes of matrices per owner that travel at one time.

    Returns:
        This rank's piece of each result, in the same order.
    """
    stages = [_stages(x, v, share_work) for x, v in zip(layouts, views, strict=True)]
    if not any(d.moves for stage in stages for d in stage):
        here = [i for i, x in enumerate(layouts) if x.here]
        done = dict(zip(here, compute([updates[i] for i in here], here), strict=True))
        return [done.get(i, x) for i, x in enumerate(updates)]
    # Here, because its decorator imports the compiler, which takes seconds.
    from .pipeline import exchange_and_compute

    shapes = [tuple(x.shape) for x in layouts]
    return exchange_and_compute(updates, shapes, views, stages, compute, bucket_bytes)


def _stages(layout: Layout, view: str | MatrixView, share_work: bool) -> list[Division]:
    """Return what divides a tensor; a replicated plain one is "divided" by the default group."""
    if layout.mesh is not None:
        return layout.divisions(view)
    if not (share_work and dist.is_available() and dist.is_initialized()):
        return []
    size, rank = dist.get_world_size(), dist.get_rank()
    return [Division(dist.group.WORLD, size, rank, None, moves=size > 1)]  # type: ignore[arg-type]
