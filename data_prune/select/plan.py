"""A selection before it is carried out: the method and the few numbers it takes from the table.

A row's priority depends on nothing but the row, the seed and these numbers, so that a table in
memory, a folder of Parquet files and a cluster rank the same examples the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .beta import log_beta_density
from .noise import gumbel
from .strata import Strata
from .survey import FORCED, GROUP, WEIGHT, Columns, class_index, importance, inside, prob_bins
from .topk import Chunk, find_threshold, sortable

METHODS = ("plausible", "beta", "weighted", "top", "easy", "ccs", "random")
# Above every priority that a row can have by its columns.
FIRST = np.uint64(2**64 - 1)
# Rows whose priorities are computed at once: their temporaries stay in the caches.
ROWS = 1 << 16
# Rows whose priorities are counted at once: more than the cells of a table of counts.
COUNTED_ROWS = 1 << 20


def parts(count: int, size: int = ROWS) -> Iterator[slice]:
    """Yield ranges that cover ``count`` rows.

    Example:
        >>> list(parts(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


@dataclass(frozen=True)
class Plan:
    """A selection: what ranks a row, and how many rows of each group stay.

    Attributes:
        method: One of ``METHODS``.
        by: Column that ranks the examples.
        seed: Of the draw.
        total: Number of rows to choose among.
        quotas: (groups,) examples to keep of each group.
        alpha: First parameter of the Beta distribution.
        beta: Second parameter of the Beta distribution.
        settings: Everything a report needs to say how the selection was made.
        classes: (groups,) label of each group where groups are classes.
        strata: The groups where they are strata.
        floors: (groups,) lowest bin of the mean probability that a group believes; the rows
            below it come after all others, the more probable first.
        least: (groups,) smallest quota of each class.
        together: Identities of the groups that stay, ascending, where rows stay by their group.
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
    strata: Strata | None = None
    floors: NDArray[np.int16] | None = None
    least: NDArray[np.int64] | int = 0
    together: NDArray[np.uint64] | None = None

    def chunk(self, columns: Columns) -> Chunk:
        """Return priority, id and group of each row."""
        if self.together is not None:
            return inside(columns[GROUP], self.together).astype(np.uint64), columns["id"], None
        group, believed = self.place(columns)
        ids, value = columns["id"], importance(columns, self.by)
        noise, tier = gumbel(self.seed, ids), (~np.isnan(value)).astype(np.uint64)
        weighed = None
        if WEIGHT in columns:
            with np.errstate(divide="ignore"):
                noise = noise + np.log(columns[WEIGHT])  # -inf, so last, where it is 0
            weighed = columns[WEIGHT] > 0
        priority = noise
        if self.method in ("top", "easy"):
            value = -value if self.method == "easy" else value
            priority = np.where(np.isnan(value), noise, value)
        elif self.method != "random" and self.strata is None:
            tier = (value > 0).astype(np.uint64)  # rows without weight come last
            with np.errstate(divide="ignore", invalid="ignore"):
                weight = np.where(value > 0, np.log(value), 0.0)
            if self.method != "weighted":
                density = log_beta_density(columns["mean_prob"], self.alpha, self.beta)
                weight = np.where(np.isnan(density), 0.0, density) + weight
            priority = weight + noise
        tier = tier if weighed is None else np.where(weighed, tier, np.uint64(0))
        if self.floors is not None:
            p = columns["mean_prob"]
            # Rows never seen come last, in any order.
            priority = np.where(believed, priority, np.where(np.isnan(p), noise - 1e3, p))
            tier = np.where(believed, tier + np.uint64(2), np.uint64(0))
        order = sortable(priority, tier)
        if FORCED in columns:
            order[columns[FORCED] > 0], order[columns[FORCED] < 0] = FIRST, 0
        return order, ids, group

    def place(self, columns: Columns) -> tuple[NDArray | None, NDArray[np.bool_]]:
        """Return the group of each row (None: all are one), and whether its label is believed.

        A row that was never seen is not.
        """
        group = None
        if self.classes is not None:
            group = class_index(self.classes, columns["label"])
        elif self.strata is not None:
            group = self.strata.of(columns, self.by)
        if self.floors is None:
            return group, ~np.isnan(columns["mean_prob"])
        floor = self.floors[0] if group is None else self.floors[group]
        return group, prob_bins(columns["mean_prob"]) >= floor

    def draw(self, columns: Columns) -> NDArray[np.int64]:
        """Carry the plan out on rows in memory, with 8 to 12 bytes a row besides the result.

        Args:
            columns: (total,) each.

        Returns:
            (k,) positions, ascending.
        """
        ids = columns["id"]
        ranges, counted_ranges = [*parts(len(ids))], [*parts(len(ids), COUNTED_ROWS)]
        priority, group = np.empty(len(ids), dtype=np.uint64), None
        for part in ranges:
            priority[part], _, of_part = self.chunk({n: v[part] for n, v in columns.items()})
            if of_part is not None:
                group = np.empty(len(ids), dtype=of_part.dtype) if group is None else group
                group[part] = of_part
        counted: list[Chunk] = [
            (priority[part], ids[part], None if group is None else group[part])
            for part in counted_ranges
        ]
        found = find_threshold(
            lambda f, merge: reduce(merge, map(f, counted)), self.quotas, self.total
        )
        kept, filled = np.empty(int(self.quotas.sum()), dtype=np.int64), 0
        for part in ranges:
            of_part = None if group is None else group[part]
            rows = np.flatnonzero(found.keep((priority[part], ids[part], of_part)))
            np.add(rows, part.start, out=kept[filled : filled + len(rows)])
            filled += len(rows)
        return kept[:filled]
