"""A score table -> the labels that are likely wrong, the likeliest first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import replacing

from ..score.keys import write_csv, write_keys
from ..score.table import ScoreTable
from ..select.survey import Survey, class_index, floors, merely_hard, movement, prob_bins


@dataclass(frozen=True)
class WrongLabels:
    """Hold labels that are likely wrong, the likeliest first; arrays of one length.

    Attributes:
        rows: Positions in the table.
        key: Their keys.
        label: The labels in doubt, by name where the table has names.
        probability: What the model gave to the label, mean over the epochs.
        typical: Median of that probability over the class.
        merely_hard: Whether improbable labels still move while they are recorded, so that they
            are rather hard than wrong; then ``wrong_labels`` lists none without a count.
    """

    rows: NDArray[np.int64]
    key: NDArray
    label: NDArray
    probability: NDArray
    typical: NDArray
    merely_hard: bool

    def __len__(self) -> int:
        return len(self.rows)

    def write(self, path: str | os.PathLike) -> None:
        """Write the list: all columns to a .csv file, the keys alone to .txt or .npy.

        Raises:
            ValueError: For another suffix.
        """
        if Path(path).suffix.lower() != ".csv":
            write_keys(path, self.key)
            return
        with replacing(path) as file:
            columns = [self.key, self.label, self.probability.round(6), self.typical.round(6)]
            write_csv(file, ["key", "label", "probability", "class_median"], columns)


def wrong_labels(table: ScoreTable, count: int | None = None) -> WrongLabels:
    r"""Return the labels that their class hardly believes, ranked.

    The rank is the mean probability of the label, measured by what is usual in its class:

    .. math:: \bar p_i / \operatorname{median}\{\bar p_j : y_j = y_i\}

    Args:
        table: The scores; examples without a label or a probability are not judged.
        count: How many to list. None lists those that the default selection sets aside: see
            ``ScoreTable.select``.

    Raises:
        ValueError: If ``count`` is negative, or the table has no labels.

    Source:
        Ours. With one median for all classes it is the ranking by self-confidence of Northcutt
        et al. 2021.

    Example:
        >>> p = np.array([0.9, 0.8, 0.1, 0.7, 0.9, 0.8])
        >>> table = ScoreTable(np.arange(6), np.zeros(6, int), np.full(6, 0.01), p, np.full(6, 9))
        >>> wrong_labels(table).key.tolist()
        [2]
    """
    if count is not None and count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    judged = np.flatnonzero((table.label >= 0) & ~np.isnan(table.mean_prob))
    if not (table.label >= 0).any():
        raise ValueError("wrong labels need labels, and this table has none")
    columns = table.columns(judged)
    found = Survey.of(columns, 1, True)
    group = class_index(found.classes, columns["label"])
    lowest = floors(found.counts[:, 1:])[0]
    believed = prob_bins(columns["mean_prob"]) >= lowest[group]
    hard = merely_hard(movement(columns, believed)[0])
    p = columns["mean_prob"].astype(np.float64)
    median = np.array([np.median(p[group == g]) for g in range(len(found.classes))])
    typical = median[group]
    order = np.lexsort((columns["id"], p / np.maximum(typical, 1e-12)))
    if count is None:
        order = order[:0] if hard else order[~believed[order]]
    order = order[:count]
    rows, names = judged[order], table.meta.get("label_names")
    label = table.label[rows]
    return WrongLabels(
        rows,
        table.key[rows],
        label if names is None else np.array(names, dtype=object)[label],
        p[order],
        typical[order],
        hard,
    )
