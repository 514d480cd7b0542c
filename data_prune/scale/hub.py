"""A ``datasets.Dataset`` or data frame and its scores -> the pruned one, and a record of how."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import replacing, write_text
from specgd_common.folders import making_folder
from specgd_common.optional import needed

from ..load.labels import matched
from ..score.arrow import as_arrow, library_of, without_views
from ..score.table import ScoreTable
from .streaming import check_record


def prune_dataset(
    dataset: Any,
    table: ScoreTable,
    prune_ratio: float,
    *,
    save_to: str | os.PathLike | None = None,
    contiguous: bool = True,
    keys: Any = None,
    check_labels: bool = True,
    **options: Any,
) -> Any:
    """Keep the rows of a data set that the table selects; all columns stay.

    Args:
        dataset: A ``datasets.Dataset``, or a table of pandas, polars or pyarrow.
        table: Its scores; row i is example i of the table, or see ``keys``.
        prune_ratio: Fraction REMOVED, in [0, 1).
        save_to: New folder for ``Dataset.save_to_disk``, or a new Parquet file for a data frame;
            the kept keys and all settings are written beside it, as ``<save_to>.json``.
        contiguous: Copy the kept rows together. Without it ``datasets`` keeps a mapping of
            indices, which makes every later read several times slower.
        keys: Key of each row, or the name of the column that holds it, for a table with keys of
            its own (a stream's) or of more examples.
        check_labels: Refuse a table whose labels are not those of the data, where both are known.
        **options: Further arguments of ``ScoreTable.select``; arrays have one value for each row
            of ``dataset``.

    Returns:
        The pruned data set, of the same kind, rows in ascending order.

    Raises:
        ImportError: If ``datasets`` is not installed.
        TypeError: If ``dataset`` is something else (a stream has no rows to select).
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
    if library_of(dataset) is None:
        needed("datasets", "data")
        raise TypeError(
            "dataset must be a datasets.Dataset or a table of pandas, polars or pyarrow, got "
            f"{type(dataset).__name__}; filter a stream by set(table.key[table.select(...)])"
        )
    table = matched(table, dataset, keys, check_labels)
    if save_to is None:
        return rows_at(dataset, table.select(prune_ratio, **options), contiguous)
    target, record = Path(save_to), Path(f"{save_to}.json")
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists and is not overwritten")
    check_record(record)
    with _saving(dataset, target) as save:
        kept = table.select(prune_ratio, **options)
        how = {k: v for k, v in options.items() if k != "ignore_nonfinite"}
        pruned = rows_at(dataset, kept, contiguous)
        save(pruned)
        content = {
            "settings": table.plan(prune_ratio, **how).settings,
            "scores": {"digest": table.digest(), **table.meta},
            "fingerprint": getattr(dataset, "_fingerprint", None),
            "kept": table.key[kept].tolist(),
        }
        # Before the data: what a killed run leaves must not stop the next one.
        write_text(record, json.dumps(content, indent=1))
    return pruned


@contextmanager
def _saving(dataset: Any, target: Path) -> Iterator[Callable[[Any], Any]]:
    """Give what saves a data set aside; it becomes the target if the block succeeds."""
    if library_of(dataset) == "datasets":
        with making_folder(target) as folder:
            yield lambda pruned: pruned.save_to_disk(str(folder))
        return
    pq = needed("pyarrow.parquet", "data")
    with replacing(target) as file:
        yield lambda pruned: pq.write_table(as_arrow(pruned), file, compression="zstd")


def rows_at(dataset: Any, kept: NDArray[np.int64], contiguous: bool = True) -> Any:
    """Return rows of a data set, of the same kind."""
    library = library_of(dataset)
    if library == "pandas":
        return dataset.iloc[kept]
    if library == "polars":
        return dataset[kept]
    if library == "arrow":
        return without_views(dataset).take(kept)
    pruned = dataset.select(kept)
    return pruned.flatten_indices() if contiguous else pruned
