"""A ``datasets.Dataset`` and its score table -> the pruned data set, and a record of how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import write_text
from specgd_common.folders import making_folder
from specgd_common.optional import needed

from ..load.labels import check_same_labels
from ..score.table import ScoreTable
from .streaming import check_record

if TYPE_CHECKING:
    from datasets import Dataset


def prune_dataset(
    dataset: Dataset,
    table: ScoreTable,
    prune_ratio: float,
    *,
    save_to: str | os.PathLike | None = None,
    contiguous: bool = True,
    check_labels: bool = True,
    **options: Any,
) -> Dataset:
    """Keep the rows of a Hugging Face data set that the table selects; all columns stay.

    Args:
        dataset: A ``datasets.Dataset``; row i is example i of the table.
        table: Its scores.
        prune_ratio: Fraction REMOVED, in [0, 1).
        save_to: New folder for ``Dataset.save_to_disk``; the kept keys and all settings are written
            beside it, as ``<save_to>.json``.
        contiguous: Copy the kept rows together. Without it ``datasets`` keeps a mapping of
            indices, which makes every later read several times slower.
        check_labels: Refuse a table whose labels are not those of the data, where both are known.
        **options: Further arguments of ``ScoreTable.select``.

    Returns:
        The pruned data set, rows in ascending order.

    Raises:
        ImportError: If ``datasets`` is not installed.
        TypeError: If ``dataset`` is no ``datasets.Dataset`` (a stream has no rows to select).
        ValueError: If lengths or labels differ, or as ``ScoreTable.select``.
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
    if check_labels:
        check_same_labels(table, dataset)
    if save_to is None:
        return _pruned(dataset, table.select(prune_ratio, **options), contiguous)
    target, record = Path(save_to), Path(f"{save_to}.json")
    check_record(record)
    with making_folder(target) as folder:
        kept = table.select(prune_ratio, **options)
        how = {k: v for k, v in options.items() if k not in ("within", "ignore_nonfinite")}
        pruned = _pruned(dataset, kept, contiguous)
        pruned.save_to_disk(str(folder))
        content = {
            "settings": table.plan(prune_ratio, **how).settings,
            "scores": {"digest": table.digest(), **table.meta},
            "fingerprint": dataset._fingerprint,
            "kept": table.key[kept].tolist(),
        }
        # Before the data: what a killed run leaves must not stop the next one.
        write_text(record, json.dumps(content, indent=1))
    return pruned


def _pruned(dataset: Dataset, kept: NDArray[np.int64], contiguous: bool) -> Dataset:
    pruned = dataset.select(kept)
    return pruned.flatten_indices() if contiguous else pruned
