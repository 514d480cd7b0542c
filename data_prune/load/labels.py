"""Labels that a data set knows without reading its examples, and whether a table has the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from ..score.table import ScoreTable

NAMES = ("label", "labels", "targets")


def known_labels(data: Any) -> NDArray[np.int64] | None:
    """Return the label of every example, or None where a data set does not tell them.

    Known are a column "label" or "labels" of ``datasets``, an attribute ``targets`` or ``labels``
    (torchvision), and a TensorDataset of examples and labels; each also inside a Subset or a
    ConcatDataset.

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
    columns = getattr(data, "column_names", None)
    for name in NAMES:
        if isinstance(columns, list) and name in columns:
            return _as_labels(data.with_format("numpy")[name][:], data)
        if not isinstance(columns, list) and getattr(data, name, None) is not None:
            return _as_labels(getattr(data, name), data)
    return None


def _as_labels(values: Any, data: Any) -> NDArray[np.int64] | None:
    """Return one integer for each example, or None if the values are something else."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        labels = np.asarray(values)
    except ValueError:  # of unequal lengths
        return None
    if labels.dtype.kind not in "iu" or labels.shape != (len(data),):
        return None
    return labels.astype(np.int64)


def check_same_labels(table: ScoreTable, data: Any) -> None:
    """Refuse scores of examples whose labels are not those of the data.

    Raises:
        ValueError: If the lengths differ, or a label that both sides know.
    """
    if len(table) != len(data):
        raise ValueError(f"table scores {len(table)} examples, the data set has {len(data)}")
    labels = known_labels(data)
    if labels is None:
        return
    wrong = np.flatnonzero((table.label >= 0) & (labels >= 0) & (table.label != labels))
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(table)} examples have another label in the data set than in the "
            f"table (the first: {i}, {labels[i]} and {table.label[i]}): the scores belong to data "
            "in another order. If the loss was taken with other labels, pass check_labels=False"
        )
