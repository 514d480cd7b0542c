"""Rows that stay or go together (patients, videos) -> one row for each group, and its plan.

A group competes as one example whose score and probability are the means of its members'. What is
summed over the rows merges over chunks, so that memory holds the groups and never the rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .planner import Options, check_forced, class_quotas, keep_count, plan_rows
from .survey import FORCED, GROUP, WEIGHT, Columns
from .topk import Fold

# Pairs of group and label that may lie unsorted: 12 MB.
ENOUGH = 1 << 19


def plan_groups(fold: Fold, prune_ratio: float, options: Options) -> Plan:
    """Plan a selection of whole groups, by the groups in the columns; see ``plan_rows``.

    Args:
        fold: Applies a function to every chunk of columns and merges the results.
        prune_ratio: The fraction removed, in [0, 1).
        options: How to select.
    """
    if options.method == "ccs":
        raise ValueError("groups do not combine with method 'ccs', whose groups are strata")
    names = [name for name in ("score", "mean_prob", options.by, WEIGHT) if name]
    rows = fold(lambda c: Members.of(c, names), lambda a, b: a.merge(b)).added_up()
    columns, size, forced = rows.columns(names), rows.sums["size"].astype(np.int64), rows.forced()
    total = int(size.sum())
    kept = keep_count(total, prune_ratio)
    draft = plan_rows(
        lambda f, merge: f(columns),
        prune_ratio,
        dataclasses.replace(options, forced=False, columns=[*columns]),
        kept=max(1, round(len(size) * (1.0 - prune_ratio))),
    )
    chosen = fill(draft, columns, size, forced, kept)
    settings = {**draft.settings, "examples": total, "kept": int(size[chosen].sum())}
    settings |= {"groups": len(size), "kept_groups": int(chosen.sum())}
    return Plan(
        draft.method,
        draft.by,
        draft.seed,
        total,
        quotas=np.array([settings["kept"]], dtype=np.int64),
        settings=settings,
        together=np.sort(columns["id"][chosen]),
    )


@dataclasses.dataclass(frozen=True)
class Members:
    """Sums over the rows of each group; a group may stand in several rows until ``added_up``.

    Attributes:
        ids: (rows,) identities.
        sums: name -> (rows,): size, sums and counts of the columns, rows to keep and to drop.
        pairs: (3, pairs) group, label and number of rows, for the label that most of them have.
        done: Number of pairs when they were added up last.
    """

    ids: NDArray[np.uint64]
    sums: dict[str, NDArray]
    pairs: NDArray[np.uint64]
    done: int = 0

    @classmethod
    def of(cls, columns: Columns, names: list[str]) -> Members:
        """Sum one chunk."""
        ids, group = np.unique(columns[GROUP], return_inverse=True)
        sums: dict[str, NDArray] = {"size": np.bincount(group, minlength=len(ids)) * 1.0}
        for name in names:
            if name in columns:
                value = columns[name].astype(np.float64)
                known = ~np.isnan(value)
                sums[name] = np.bincount(group[known], value[known], len(ids))
                sums[f"{name}:count"] = np.bincount(group[known], minlength=len(ids)) * 1.0
        if FORCED in columns:
            for name, sign in (("keep", 1), ("drop", -1)):
                sums[name] = np.bincount(group[columns[FORCED] == sign], minlength=len(ids)) * 1.0
        label = columns["label"].astype(np.int64).view(np.uint64)
        once = np.ones(len(label), dtype=np.uint64)
        return cls(ids, sums, add_up(np.stack([columns[GROUP], label, once])))

    def merge(self, other: Members) -> Members:
        """Return both, added up whenever they have doubled: the work stays near linear."""
        both = Members(
            np.concatenate([self.ids, other.ids]),
            {name: np.concatenate([self.sums[name], other.sums[name]]) for name in self.sums},
            np.concatenate([self.pairs, other.pairs], axis=1),
            self.done,
        )
        return both.added_up() if both.pairs.shape[1] > 2 * max(self.done, ENOUGH) else both

    def added_up(self) -> Members:
        """Return the same with one row for each group, ascending."""
        ids, group = np.unique(self.ids, return_inverse=True)
        sums = {name: np.bincount(group, values, len(ids)) for name, values in self.sums.items()}
        pairs = add_up(self.pairs)
        return Members(ids, sums, pairs, pairs.shape[1])

    def columns(self, names: list[str]) -> Columns:
        """Return one row for each group: means, and the label that most members have."""
        with np.errstate(invalid="ignore"):
            means = {n: self.sums[n] / self.sums[f"{n}:count"] for n in names if n in self.sums}
        group, label, count = self.pairs
        order = np.lexsort((label, -count.astype(np.int64), group))
        first = order[np.unique(group[order], return_index=True)[1]]
        return {"id": self.ids, "label": label[first].view(np.int64), **means}

    def forced(self) -> NDArray[np.int8]:
        """Return 1 for groups with a row to keep, -1 for those with a row to drop, else 0.

        Raises:
            ValueError: If a group has both.
        """
        if "keep" not in self.sums:
            return np.zeros(len(self.ids), dtype=np.int8)
        keep, drop = self.sums["keep"] > 0, self.sums["drop"] > 0
        if (keep & drop).any():
            raise ValueError(
                f"{int((keep & drop).sum())} groups have examples in keep and in drop: a group "
                "stays or goes as a whole"
            )
        return keep.astype(np.int8) - drop.astype(np.int8)


def add_up(pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each pair once, with the sum of its counts.

    Example:
        >>> add_up(np.array([[1, 0, 1], [7, 7, 7], [1, 2, 3]], dtype=np.uint64)).tolist()
        [[0, 1], [7, 7], [2, 4]]
    """
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    new = np.ones(pairs.shape[1], dtype=bool)
    new[1:] = (pairs[:2, 1:] != pairs[:2, :-1]).any(axis=0)
    first = np.flatnonzero(new)
    return np.concatenate([pairs[:2, first], np.add.reduceat(pairs[2], first)[None]])


def fill(
    plan: Plan, columns: Columns, size: NDArray[np.int64], forced: NDArray[np.int8], kept: int
) -> NDArray[np.bool_]:
    """Return which groups stay: by priority, each class up to its number of examples.

    A group is taken if that brings its class nearer to its quota, and all examples nearer to their
    number, than without it.

    Args:
        plan: Of the groups.
        columns: (groups,) each.
        size: (groups,) examples of each.
        forced: (groups,) 1 to keep, -1 to drop.
        kept: Number of examples to keep.
    """
    priority, ids, _ = plan.chunk(columns)
    index, believed = plan.place(columns)
    group = np.zeros(len(ids), dtype=np.int64) if index is None else index.astype(np.int64)
    count = len(plan.quotas)

    def examples(some: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(group[some], size[some], count).astype(np.int64)

    must, there = examples(forced > 0), examples(forced >= 0)
    first = examples((believed & (forced == 0)) | (forced > 0))
    check_forced(must, there, kept)
    everyone = examples(np.ones(len(ids), dtype=bool))
    quotas = class_quotas(everyone, kept, [first, there], plan.least, must)
    chosen, left = forced > 0, quotas - must
    order = np.lexsort((ids, np.iinfo(np.uint64).max - priority))
    for by_class in (True, False):  # what the classes leave over goes to any of them
        for i in order[(forced == 0)[order] & ~chosen[order]]:
            total = int(left.sum())
            room = min(total, int(left[group[i]])) if by_class else total
            if 0 < size[i] <= 2 * room:
                chosen[i] = True
                left[group[i]] -= size[i]
    if not chosen.any():  # every group is more than twice what is to be kept
        free = np.flatnonzero(forced == 0)
        chosen[free[np.lexsort((ids[free], size[free]))[0]]] = True
    return chosen
