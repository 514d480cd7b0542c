"""A ``datasets.Dataset`` and its score table -> the pruned data set, and a record of how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgd_common.optional import needed

from ..score.table import ScoreTable

if TYPE_CHECKING:
    from datasets import Dataset


def prune_dataset(
    dataset: Dataset,
    table: ScoreTable,
    prune_ratio: float,
    *,
    save_to: str | os.PathLike | None = None,
    contiguous: bool = True,
    **options: Any,
) -> Dataset:
    """Keep the rows of a Hugging Face data set that the table selects; all columns stay.

    Args:
        dataset: A ``datasets.Dataset``; row i is example i of the table.
        table: Its scores.
        prune_ratio: Fraction REMOVED, in [0, 1).
        save_to: Folder for ``Dataset.save_to_disk``; the kept keys and all settings are written
            beside it, as ``<save_to>.json``.
        contiguous: Copy the kept rows together. Without it ``datasets`` keeps a mapping of
            indices, which makes every later read several times slower.
        **options: Further arguments of ``ScoreTable.select``.

    Returns:
        The pruned data set, rows in ascending order.

    Raises:
        ImportError: If ``datasets`` is not installed.
        TypeError: If ``dataset`` is no ``datasets.Dataset`` (a stream has no rows to select).
        ValueError: If the lengths differ, or as ``ScoreTable.select``.
        FileExistsError: If ``save_to`` exists.

    Example:
        >>> import numpy as np
        >>> from datasets import Dataset
        >>> data = Dataset.from_dict({"text": ["a", "b", "c", "d"]})
        >>> table = ScoreTable(np.arange(4), np.zeros(4, int), np.array([0.1, 0.4, 0.2, 0.3]),
        ...     np.full(4, 0.5), np.full(4, 30))
        >>> prune_dataset(data, table, 0.5, method="top")["text"][:]
        ['b', 'd']
    """
    datasets = needed("datasets", "data")
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"dataset must be a datasets.Dataset, got {type(dataset).__name__}; filter a stream by "
            "set(table.key[table.select(...)])"
        )
    if len(dataset) != len(table):
        raise ValueError(f"the data set has {len(dataset)} rows, the table {len(table)}")
    target = None if save_to is None else Path(save_to)
    record = None if target is None else Path(f"{target}.json")
    for path in (target, record):
        if path is not None and path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten")
    kept = table.select(prune_ratio, **options)
    pruned = dataset.select(kept)
    if contiguous:
        pruned = pruned.flatten_indices()
    if target is not None and record is not None:
        settings = table.plan(
            prune_ratio,
            **{k: v for k, v in options.items() if k not in ("within", "ignore_nonfinite")},
        ).settings
        pruned.save_to_disk(str(target))
        content = {
            "settings": settings,
            "scores": {"digest": table.digest(), **table.meta},
            "fingerprint": dataset._fingerprint,
            "kept": table.key[kept].tolist(),
        }
        record.write_text(json.dumps(content, indent=1))
    return pruned
