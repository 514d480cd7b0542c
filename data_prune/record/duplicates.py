"""Duplicate indices in an epoch -> one value for each example, the mean of all sightings.

Duplicates come from padded ranks, repeated augmentation and draws with replacement. The first
sighting of an example fills its row; later ones wait here until the epoch closes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Positions of examples that had been seen before, and their values by name.
Repeats = Sequence[tuple[NDArray, Mapping[str, NDArray]]]


def hold_back(
    repeats: list[tuple[NDArray, dict[str, NDArray]]],
    index: NDArray,
    values: dict[str, NDArray],
    first: NDArray[np.bool_],
) -> tuple[NDArray, dict[str, NDArray]]:
    """Keep later sightings for the end of the epoch; return the first ones.

    Args:
        repeats: All later sightings of the epoch; these are added.
        index: (B,) examples of a batch.
        values: Their values by name; "tdds" compares first sightings alone and is not kept.
        first: (B,) which of them are first sightings.
    """
    again = {name: v[~first] for name, v in values.items() if name != "tdds"}
    repeats.append((index[~first], again))
    return index[first], {name: v[first] for name, v in values.items()}


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


def merge_duplicates(rows: Mapping[str, NDArray], repeats: Repeats) -> None:
    """Turn rows of first sightings into means over all sightings, in place.

    Args:
        rows: (N,) by name; "tdds" stays, for the first sighting in an epoch is compared with the
            last epoch.
        repeats: All later sightings, at least one.

    Example:
        >>> row = np.array([0.5, 0.1])
        >>> merge_duplicates({"prob": row}, [(np.array([0]), {"prob": np.array([1.0])})])
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
