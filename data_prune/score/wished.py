"""What a user wishes of a table, in arrays, keys or names of columns -> columns for the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..select.planner import keep_count
from ..select.survey import FORCED, GROUP, WEIGHT, Columns
from ..select.wishes import check_weights, forced_rows, group_ids
from .columns import code_labels
from .keys import plain_keys, rows_of, unique_keys

if TYPE_CHECKING:
    from .table import ScoreTable


def wished_columns(
    table: ScoreTable, wishes: dict[str, Any], prune_ratio: float
) -> tuple[Columns, list[str] | None]:
    """Return the columns that say what a user wants, and the names of their classes.

    Args:
        table: Whose rows the columns are of.
        wishes: See ``ScoreTable.select``.
        prune_ratio: The fraction removed.
    """
    more: Columns = {}
    names = None
    if wishes.keys() & {"keep", "drop", "within"}:
        keep, drop = (
            rows_of(table.key, unique_keys(wishes.get(name, ())), name) for name in ("keep", "drop")
        )
        within = None
        if "within" in wishes:
            within = positions(len(table), wishes["within"], keep_count(len(table), prune_ratio))
        more[FORCED] = forced_rows(
            len(table), keep, drop, within, lambda i: repr(table.key[i : i + 1].tolist()[0])
        )
    if "groups" in wishes:
        more[GROUP] = group_ids(values_of(table, "groups", wishes["groups"]))
    if "classes" in wishes:
        label, names = code_labels(values_of(table, "classes", wishes["classes"]))
        if label.dtype.kind not in "iu":
            raise TypeError(f"classes must be integers or names, got dtype {label.dtype}")
        if isinstance(wishes["classes"], str) and wishes["classes"] == "label":
            names = table.meta.get("label_names")
        more["label"] = label
    if "weights" in wishes:
        more[WEIGHT] = check_weights(values_of(table, "weights", wishes["weights"]))
    return more, names


def values_of(table: ScoreTable, name: str, given: Any) -> NDArray:
    """Return one value for each example, given as such or by the name of a column."""
    if isinstance(given, str):
        held = {**table.arrays(), **table.peers}
        if given not in held:
            raise ValueError(f"{name} must be in the table, which has {list(held)}, got {given!r}")
        return held[given]
    values = plain_keys(given)
    if values.shape != (len(table),):
        raise ValueError(
            f"{name} must have one value for each of {len(table)} examples, got shape "
            f"{values.shape}"
        )
    return values


def positions(count: int, within: Any, kept: int) -> NDArray[np.int64]:
    """Return the positions to choose among, checked, ascending.

    Args:
        count: N.
        within: The positions.
        kept: Number that must be among them.
    """
    rows = np.unique(np.asarray(within, dtype=np.int64))
    if len(rows) < kept or rows[0] < 0 or rows[-1] >= count:
        raise ValueError(
            f"within must hold at least {kept} positions in [0, {count}), got {len(rows)}"
        )
    return rows
