"""Examples that come more than once in an epoch -> one value each, the mean of all sightings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Positions of examples that had been seen before, and their values by name.
Repeats = Sequence[tuple[NDArray, Mapping[str, NDArray]]]


def sightings(prob: NDArray, repeats: Repeats) -> NDArray[np.int32]:
    """Count how often each example was seen.

    Args:
        prob: (N,) the epoch's row of first sightings, NaN where not seen.
        repeats: All later sightings.

    Example:
        >>> sightings(np.array([0.5, np.nan]), [(np.array([0, 0]), {})]).tolist()
        [3, 0]
    """
    count = (~np.isnan(prob)).astype(np.int32)
    for index, _ in repeats:
        np.add.at(count, index, 1)
    return count


def merge_repeats(rows: Mapping[str, NDArray], repeats: Repeats) -> None:
    """Turn rows of first sightings into means over all sightings, in place.

    Args:
        rows: (N,) by name; "tdds" stays, for the first sighting in an epoch is compared with the
            last epoch.
        repeats: All later sightings, at least one.

    Example:
        >>> row = np.array([0.5, 0.1])
        >>> merge_repeats({"prob": row}, [(np.array([0]), {"prob": np.array([1.0])})])
        >>> row.tolist()
        [0.75, 0.1]
    """
    index = np.concatenate([index for index, _ in repeats])
    unique, where = np.unique(index, return_inverse=True)
    extra = np.bincount(where)
    for name, row in rows.items():
        if name == "tdds":
            continue
        total = np.bincount(where, np.concatenate([values[name] for _, values in repeats]))
        row[unique] = (row[unique].astype(np.float64) + total) / (1 + extra)
