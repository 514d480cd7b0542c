"""Lists, groups, classes and weights of a user -> columns beside those of the table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .noise import example_ids


def forced_rows(
    count: int,
    keep: NDArray[np.int64],
    drop: NDArray[np.int64],
    within: NDArray[np.int64] | None,
    shown: Callable[[int], str],
) -> NDArray[np.int8]:
    """Return 1 for rows to keep, -1 for rows to drop, else 0.

    Args:
        count: N.
        keep: Rows that stay.
        drop: Rows that go.
        within: The only rows that may stay; None for all.
        shown: Row -> what a message calls it.

    Raises:
        ValueError: If a row is to stay and to go.
    """
    forced = np.zeros(count, dtype=np.int8)
    if within is not None:
        forced[:] = -1
        forced[within] = 0
    forced[drop] = -1
    both = keep[forced[keep] < 0]
    if len(both):
        raise ValueError(f"keep names {shown(int(both[0]))}, which drop or within leaves out")
    forced[keep] = 1
    return forced


def group_ids(values: NDArray) -> NDArray[np.uint64]:
    """Return the identity of each row's group.

    Raises:
        TypeError: If the values are neither integers nor strings.
    """
    if values.dtype.kind == "b":
        values = values.astype(np.int64)
    try:
        return example_ids(values)
    except TypeError:
        odd = next((v for v in values.flat if not isinstance(v, (str, int, np.integer))), None)
        what = f"dtype {values.dtype}" if values.dtype.kind != "O" else repr(odd)
        raise TypeError(f"groups must be integers or strings, got {what}") from None


def check_weights(values: NDArray) -> NDArray[np.float64]:
    """Return weights of the draw as float64, refused where one is negative or not finite."""
    if values.dtype.kind not in "fiub":
        raise TypeError(f"weights must be numbers, got dtype {values.dtype}")
    weights = values.astype(np.float64)
    if len(weights) and not (np.isfinite(weights).all() and weights.min() >= 0):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ValueError(f"weights must be finite and at least 0, got {wrong:g}")
    return weights
