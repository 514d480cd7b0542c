"""A table and the data set that it is used on: rows by key, and the same labels on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from ..score.arrow import as_arrow, library_of, to_array
from ..score.columns import code_labels
from ..score.keys import are_positions, rows_of
from ..score.table import ScoreTable

NAMES = ("label", "labels", "targets")


def known_labels(data: Any) -> NDArray | None:
    """Return the label of every example, or None where a data set does not tell them.

    Known are a column "label" or "labels" of ``datasets`` or a data frame, an attribute
    ``targets`` or ``labels`` (torchvision), and a TensorDataset of examples and labels; each also
    inside a Subset or a ConcatDataset.

    Example:
        >>> import torch
        >>> known_labels(Subset(TensorDataset(torch.zeros(3, 2), torch.tensor([5, 6, 7])), [2, 0]))
        array([7, 5])
    """
    if isinstance(data, Subset):
        inner = known_labels(data.dataset)
        return None if inner is None else inner[np.asarray(data.indices, dtype=np.int64)]
    if isinstance(data, ConcatDataset):
        parts = [known_labels(part) for part in data.datasets]
        return None if any(p is None for p in parts) else np.concatenate(parts)  # type: ignore[arg-type]
    if isinstance(data, TensorDataset):
        return _as_labels(data.tensors[1], data) if len(data.tensors) == 2 else None
    columns = columns_of(data)
    for name in NAMES:
        if columns is not None and name in columns:
            return _as_labels(column_of(data, name), data)
        if columns is None and getattr(data, name, None) is not None:
            return _as_labels(getattr(data, name), data)
    return None


def _as_labels(values: Any, data: Any) -> NDArray | None:
    """Return one integer or name for each example, or None if the values are something else."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        labels = np.asarray(values)
    except ValueError:  # of unequal lengths
        return None
    if labels.shape != (len(data),):
        return None
    codes, names = code_labels(labels)
    if names is not None:
        return np.array([*names, None], dtype=object)[codes]
    return codes.astype(np.int64) if codes.dtype.kind in "iu" else None


def matched(
    table: ScoreTable, data: Any, keys: Any = None, check_labels: bool = True
) -> ScoreTable:
    """Return the table with its rows in the order of the data's.

    Args:
        table: The scores. Integer keys that are all the numbers of the rows say themselves which
            row is whose; strings and unsigned integers do with ``keys``; other integers are taken
            to be in the order of the data.
        data: What is to be pruned.
        keys: (N,) key of each example of the data, or the name of the column that holds it; the
            table may then know more examples.
        check_labels: Refuse labels that differ where both sides know them.

    Raises:
        TypeError: If keys are of another kind than the table's.
        ValueError: If lengths or labels differ, or a key is not in the table.
    """
    if keys is not None:
        keys = column_of(data, keys) if isinstance(keys, str) else keys
        if len(keys) != len(data):
            raise ValueError(f"keys must name {len(data)} examples, got {len(keys)}")
        table = table.take(rows_of(table.key, keys))
    if len(table) != len(data):
        raise ValueError(f"table scores {len(table)} examples, the data set has {len(data)}")
    if keys is None and table.key.dtype.kind in "UOu":
        raise ValueError(
            f"keys must say which example is whose: the table has keys of its own (the first: "
            f"{table.key[:1].tolist()[0]!r}), in the order in which they were seen"
        )
    if keys is None and not are_positions(table.key):
        order = np.argsort(table.key, kind="stable")
        table = table.take(order) if are_positions(table.key[order]) else table
    if check_labels:
        check_same_labels(table, data)
    return table


def column_of(data: Any, name: str) -> NDArray:
    """Return a column of a data frame or of ``datasets`` as an array.

    Raises:
        TypeError: If the data has no columns.
        ValueError: If it has none of this name.
    """
    library, names = library_of(data), columns_of(data)
    if names is None:
        raise TypeError(
            f"{name!r} is a column's name, and {type(data).__name__} has no columns: pass an array"
        )
    if name not in names:
        raise ValueError(f"the data has no column {name!r}; it has {names}")
    if library == "pandas":
        part = data[[name]]
    else:
        part = data.select_columns([name]) if library == "datasets" else data.select([name])
    return to_array(as_arrow(part).column(name))


def columns_of(data: Any) -> list[str] | None:
    """Return the names of the columns of a data frame or of ``datasets``; None for other data."""
    library = library_of(data)
    if library is None:
        return None
    return list(data.columns) if library in ("pandas", "polars") else data.column_names


def _named(labels: NDArray, data: Any) -> NDArray:
    """Return numbers as the names that ``datasets`` gives them (ClassLabel), if it does."""
    features = data.features if library_of(data) == "datasets" else {}
    kinds = (features.get(name) for name in NAMES)
    names = next((kind.names for kind in kinds if kind and hasattr(kind, "names")), None)
    return labels if names is None else np.array([*names, None], dtype=object)[labels]


def check_same_labels(table: ScoreTable, data: Any) -> None:
    """Refuse scores of examples whose labels are not those of the data.

    Raises:
        ValueError: If the lengths differ, or a label that both sides know.
    """
    if len(table) != len(data):
        raise ValueError(f"table scores {len(table)} examples, the data set has {len(data)}")
    labels, names = known_labels(data), table.meta.get("label_names")
    if labels is not None and labels.dtype.kind != "O" and names is not None:
        labels = _named(labels, data)
    if labels is None or (labels.dtype.kind == "O") != (names is not None):
        return  # names on one side and numbers on the other cannot be compared
    if names is None:
        mine, known = table.label, labels >= 0
    else:
        mine = np.array([*names, None], dtype=object)[table.label]
        known = np.array([label is not None for label in labels], dtype=bool)
    wrong = np.flatnonzero(known & (table.label >= 0) & (mine != labels))
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(table)} examples have another label in the data set than in the "
            f"table (the first: {i}, {labels[i]} and {mine[i]}): the scores belong to data "
            "in another order. If the loss was taken with other labels, pass check_labels=False"
        )
