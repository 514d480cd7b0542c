"""Each rank's rows -> the same rows on every rank, by sums and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from .store import Store

_CHUNK = 1 << 22


def _device(group: Any) -> torch.device:
    """Return where the ranks exchange: NCCL moves only CUDA tensors, Gloo only CPU tensors."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _reduce(values: NDArray, op: dist.ReduceOp.RedOpType, group: Any) -> NDArray:
    tensor = torch.tensor(values, device=_device(group))  # a copy: all_reduce works in place
    dist.all_reduce(tensor, op=op, group=group)
    return tensor.cpu().numpy()


def merge_rows(rows: dict[str, NDArray], count: NDArray, group: Any = None) -> None:
    """Replace every rank's rows by the mean over all sightings of all ranks, in place.

    Sums travel as float64 and counts as int64, apart from each other: an index or a count
    packed beside a float would be rounded above 2**24.

    Args:
        rows: name -> (N,) this rank's mean per example, NaN where it saw none.
        count: (N,) this rank's sightings; becomes the total.
        group: Process group; None is the default one.
    """
    for start in range(0, len(count), _CHUNK):
        part = slice(start, start + _CHUNK)
        mine = count[part].astype(np.int64)
        total = _reduce(mine, dist.ReduceOp.SUM, group)
        for row in rows.values():
            weighted = np.where(mine > 0, row[part].astype(np.float64) * mine, 0.0)
            merged = _reduce(weighted, dist.ReduceOp.SUM, group)
            row[part] = np.where(total > 0, merged / np.maximum(total, 1), np.nan)
        count[part] = total


def merge_labels(label: NDArray, group: Any = None) -> None:
    """Tell every rank the labels that any rank knows, in place; -1 is unknown."""
    for start in range(0, len(label), _CHUNK):
        part = slice(start, start + _CHUNK)
        label[part] = _reduce(label[part].astype(np.int64), dist.ReduceOp.MAX, group)


def merge_counts(counts: list[int], op: str, group: Any = None) -> list[int]:
    """Return the element-wise "sum" or "max" of a few integers over the ranks."""
    kind = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
    return [int(x) for x in _reduce(np.array(counts, dtype=np.int64), kind, group)]


def merge_start(store: Store, group: Any = None) -> int:
    """Tell all ranks, before their rows merge, the classes and whether anyone saw a batch.

    Returns:
        The largest number of batches that a rank has recorded.

    Raises:
        RuntimeError: If something is recorded that cannot be merged.
    """
    if "tdds" in store.peers:
        raise RuntimeError(
            "tdds compares whole predictions with the same rank's last epoch and cannot "
            "be recorded on several ranks: leave it out of peers"
        )
    recorded, classes = merge_counts([store.updates, store.num_classes or 0], "max", group)
    if recorded > 0:
        store.set_classes(classes if classes > 0 else -1)
    return recorded


def merge_counters(store: Store, count: NDArray, group: Any = None) -> None:
    """Give all ranks the same totals of duplicate, non-finite and unlabelled sightings.

    Args:
        store: Of this rank; of its counters only this epoch's part is still apart.
        count: (N,) sightings in this epoch, of all ranks.
        group: Process group.
    """
    before = store.merged
    mine = [store.nonfinite - before[1], store.unlabelled - before[2]]
    nonfinite, unlabelled = merge_counts(mine, "sum", group)
    store.duplicates = before[0] + int(np.maximum(count.astype(np.int64) - 1, 0).sum())
    store.nonfinite, store.unlabelled = before[1] + nonfinite, before[2] + unlabelled
    store.merged = (store.duplicates, store.nonfinite, store.unlabelled)
