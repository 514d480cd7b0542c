"""The few numbers that a method takes from the whole table -> a priority for every row.

A row's priority depends on nothing but the row, the seed and these numbers, so that a table in
memory, a folder of Parquet files and a cluster rank the same examples the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prune.beta import log_beta_density
from data_prune.keys import gumbel
from data_prune.quotas import class_index
from data_prune.topk import Chunk, Search, sortable

__all__ = ["METHODS", "Columns", "Plan", "hardness", "importance"]

METHODS = ("beta", "weighted", "top", "ccs", "random")
# Scores of which a LOW value means a difficult example.
LOW_IS_HARD = ("aum", "mean_prob")
Columns = dict[str, NDArray]  # id, label, score, mean_prob and the peers, each (n,)


def ranking_column(method: str, by: str | None) -> str:
    """The column that ranks or weighs the examples unless the user has named one."""
    return by or ("aum" if method == "ccs" else "score")


def check_column(by: str, known: Iterable[str]) -> None:
    """Refuse a ranking column that the table does not have."""
    if by not in known:
        names = sorted(set(known) - {"id", "key", "label", "observed"})
        raise ValueError(f"the table has no column {by!r}; it has {names}. Record it: peers=")


def importance(columns: Columns, by: str) -> NDArray[np.float64]:
    """The column that ranks the examples, turned so that larger is harder or more important."""
    value = columns[by].astype(np.float64)
    return -value if by in LOW_IS_HARD else value


def hardness(columns: Columns, by: str) -> Chunk:
    """Rows in the order of their difficulty, those without a score last."""
    value = importance(columns, by)
    known = ~np.isnan(value)
    return sortable(np.where(known, value, 0.0), known.astype(np.uint64)), columns["id"], None


@dataclass(frozen=True)
class Plan:
    """A selection before it is carried out: the method and the numbers it takes from the table.

    Attributes:
        method: one of ``METHODS``.
        by: column that ranks the examples.
        seed: of the draw.
        quotas: (groups,) examples to keep of each group.
        alpha, beta: parameters of the Beta distribution, one for each group or one for all.
        settings: everything a report needs to say how the selection was made.
        classes: (groups,) label of each group where groups are classes.
        edges: lowest value, width and number of the strata, and the cut (method "ccs").
    """

    method: str
    by: str
    seed: int
    total: int
    quotas: NDArray[np.int64]
    alpha: float = 1.0
    beta: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    classes: NDArray | None = None
    edges: tuple[float, float, int, int] | None = None
    cut: Search | None = None

    def chunk(self, columns: Columns) -> Chunk:
        """Priority, id and group of each row."""
        ids = columns["id"]
        value = importance(columns, self.by)
        tier: NDArray | int = (~np.isnan(value)).astype(np.uint64)
        if self.method == "top":
            priority = np.where(np.isnan(value), gumbel(self.seed, ids), value)
        elif self.method == "beta":
            priority, tier = self._beta_priority(columns, value)
        elif self.method == "weighted":
            tier = tier * (value > 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                priority = np.where(value > 0, np.log(value), 0.0) + gumbel(self.seed, ids)
        else:
            priority = gumbel(self.seed, ids)
        return sortable(priority, tier), ids, self.groups(columns)

    def _beta_priority(self, columns: Columns, value: NDArray) -> tuple[NDArray, NDArray]:
        """log(density * score) + Gumbel noise; rows without weight go by the density alone."""
        density = log_beta_density(columns["mean_prob"], self.alpha, self.beta)
        noise = gumbel(self.seed, columns["id"])
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = np.where(value > 0, np.log(value), 0.0)
        priority = np.where(np.isnan(density), 0.0, density) + weight + noise
        return priority, (value > 0).astype(np.uint64)

    def groups(self, columns: Columns) -> NDArray | None:
        """Index of the class or of the stratum of each row."""
        if self.classes is not None:
            return class_index(self.classes, columns["label"])
        if self.edges is not None:
            low, width, strata, cut_group = self.edges
            value = importance(columns, self.by)
            group = np.clip((value - low) / width, 0, strata - 1)
            group = np.where(np.isnan(value), strata, group)
            group = group.astype(np.min_scalar_type(cut_group))
            if self.cut is not None:
                group[self.cut.keep(hardness(columns, self.by))] = cut_group
            return group
        return None
