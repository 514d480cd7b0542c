"""What several ranks must agree on; every function is a no-op on one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specgd_common.tensors import is_dtensor


def rank_groups(model: nn.Module, process_group: Any = None) -> list[Any]:
    """Return the process groups whose ranks work on one model together; empty on one process.

    DistributedDataParallel brings its group, distributed tensors the groups of their mesh.
    """
    if process_group is not None:
        return [process_group]
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return [model.process_group]
    return mesh_groups(model.parameters())


def mesh_groups(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the process groups over which the first distributed tensor is spread."""
    mesh = next((x.device_mesh for x in tensors if is_dtensor(x)), None)
    return [] if mesh is None else [mesh.get_group(i) for i in range(mesh.ndim)]


def averages_itself(model: nn.Module) -> bool:
    """Say whether gradients arrive averaged over ranks (sharded models do that in backward)."""
    return any(is_dtensor(p) for p in model.parameters())


def lowest(values: Tensor, groups: Sequence[Any]) -> Tensor:
    """Return the elementwise minimum over ranks; ``values`` on one process."""
    for group in groups:
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MIN, group=group)
    return values


def all_agree(ok: bool, groups: Sequence[Any], device: torch.device) -> bool:
    """Say whether every rank says yes."""
    if not groups:
        return ok
    return bool(lowest(torch.tensor([float(ok)], device=device), groups))


def agreed(items: Iterable[Any], groups: Sequence[Any], device: torch.device) -> Iterator[Any]:
    """Yield the items as long as every rank has a next one; a failure on one rank ends all.

    Raises:
        RuntimeError: If fetching failed on another rank.
        ValueError: If some ranks are at the end and others are not.
    """
    if not groups:
        yield from items
        return
    end = object()
    iterator = iter(items)
    while True:
        failed, finished, more = 0.0, 1.0, 2.0
        status, item = failed, end
        try:
            item = next(iterator, end)
            status = finished if item is end else more
        finally:
            both = torch.tensor([status, -status], device=device)
            low, high = lowest(both, groups).tolist()
        if low == failed:
            raise RuntimeError("another rank failed to fetch its next batch; no weight was changed")
        if low != -high:
            raise ValueError("ranks have different numbers of batches; use a DistributedSampler")
        if item is end:
            return
        yield item


def mean_over_ranks(x: Tensor, groups: Sequence[Any]) -> None:
    """Replace ``x`` by its mean over ranks."""
    for group in groups:
        torch.distributed.all_reduce(x, group=group)
        x.div_(torch.distributed.get_world_size(group))


def is_fully_sharded(model: nn.Module) -> bool:
    """Say whether ``fully_shard`` (FSDP2) was applied anywhere in the model."""
    return any(c.__name__ == "FSDPModule" for m in model.modules() for c in type(m).__mro__)
