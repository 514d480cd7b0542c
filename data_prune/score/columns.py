"""Columns of a score table -> the same, held to one set of checks, and their digest.

Every door leads through here: a table in memory, its file, a stream, Ray, the command line.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..select.noise import example_ids

COLUMNS = ("key", "label", "score", "mean_prob", "observed")
# Rows hashed at once: their copies stay in the caches.
ROWS = 1 << 16

Arrays = dict[str, NDArray]  # name -> (N,)


def check_columns(columns: Arrays, where: str = "") -> None:
    """Refuse columns of unequal length, of wrong kinds, or with values outside their ranges.

    Args:
        columns: The five of every table and the peers.
        where: What the message begins with, such as a file's name.

    Raises:
        TypeError: If a column holds another kind of values.
        ValueError: If lengths differ or a value is outside its range.
    """
    for name, values in columns.items():
        if not isinstance(values, np.ndarray):
            raise TypeError(f"{where}column {name!r} must be an array, got {type(values).__name__}")
    shapes = {name: values.shape for name, values in columns.items()}
    if len(set(shapes.values())) != 1 or len(shapes["key"]) != 1:
        raise ValueError(f"{where}columns must be one-dimensional and of one length, got {shapes}")
    for name, values in columns.items():
        if name == "key":
            _check_keys(values, where)
        elif name in ("label", "observed"):
            low = -1 if name == "label" else 0
            what = "integers or names" if name == "label" else "integers"
            _check_kind(name, values, "iu", what, where)
            _check_range(name, values, low, 2**31 - 1, where)
        else:
            _check_kind(name, values, "fiu", "numbers", where)
            known = values[~np.isnan(values)]
            if not np.isfinite(known).all():
                raise ValueError(f"{where}column {name!r} must be finite or NaN, got infinity")
            if name == "mean_prob":
                hint = ": has it been swapped with a score or with positions?"
                _check_range(name, known, 0.0, 1.0 + 1e-6, where, hint)


def code_labels(
    values: NDArray, names: list[str] | None = None
) -> tuple[NDArray, list[str] | None]:
    """Return labels as integers, -1 where there is none, and the names that they stand for.

    Args:
        values: (N,) integers, whole numbers with NaN, or names; None and NaN are no label.
        names: In ascending order; None takes those that occur.

    Returns:
        The integers, and the names, None where labels were integers. What is neither is
        returned as it is, for ``check_columns`` to refuse.

    Example:
        >>> code, names = code_labels(np.array(["dog", None, "cat"], dtype=object))
        >>> code.tolist(), names
        ([1, -1, 0], ['cat', 'dog'])
    """
    if values.dtype.kind == "b":
        return values.astype(np.int8), None
    if values.dtype.kind == "f":
        known = np.where(np.isnan(values), -1.0, values)
        whole = np.isfinite(known).all() and (known == np.rint(known)).all()
        return (known.astype(np.int64) if whole else values), None
    if values.dtype.kind not in "UO":
        return values, None
    there = np.array(
        [not (v is None or (isinstance(v, float) and v != v)) for v in values.flat], dtype=bool
    )
    some = values[there]
    if all(isinstance(v, str) for v in some.flat) and (names is not None or len(some)):
        found = sorted(set(some.tolist())) if names is None else names
        place = {name: code for code, name in enumerate(found)}
        codes = np.full(len(values), -1, dtype=np.int32)
        codes[there] = [place[v] for v in some.tolist()]
        return codes, found
    if all(isinstance(v, (int, np.integer)) for v in some.flat):
        codes = np.full(len(values), -1, dtype=np.int64)
        codes[there] = some.astype(np.int64)
        return codes, None
    return values, None


def _check_kind(name: str, values: NDArray, kinds: str, what: str, where: str) -> None:
    if values.dtype.kind not in kinds:
        raise TypeError(f"{where}column {name!r} must hold {what}, got dtype {values.dtype}")


def _check_range(
    name: str, values: NDArray, low: float, high: float, where: str, hint: str = ""
) -> None:
    if len(values) and not low <= values.min() <= values.max() <= high:
        raise ValueError(
            f"{where}{name} must be in [{low}, {high:.0f}], got {values.min()} to "
            f"{values.max()}{hint}"
        )


def _check_keys(keys: NDArray, where: str) -> None:
    if keys.dtype.kind not in "iuUO" or (
        keys.dtype.kind == "O" and not all(isinstance(key, str) for key in keys.flat)
    ):
        found = keys.dtype if keys.dtype.kind != "O" else "other objects"
        raise TypeError(f"{where}column 'key' must hold integers or strings, got {found}")


def check_unique(keys: NDArray, where: str = "") -> None:
    """Refuse keys of which two are the same: their examples would share one draw."""
    if keys.dtype.kind == "O":
        differ = len(set(keys.tolist())) == len(keys)
    else:
        ascending = len(keys) < 2 or bool((keys[1:] > keys[:-1]).all())
        differ = ascending or len(np.unique(keys)) == len(keys)
    if not differ:
        values, counts = np.unique(keys.astype(str), return_counts=True)
        twice = values[counts > 1][0]
        raise ValueError(f"{where}keys must differ, got {str(twice)!r} {counts.max()} times")


class Digest:
    """Hash rows that arrive in pieces: each column is hashed by itself, then all together."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    def add(self, columns: Arrays) -> None:
        """Append rows."""
        for start in range(0, len(columns["key"]), ROWS):
            part = slice(start, start + ROWS)
            for name, values in columns.items():
                if name == "key":
                    data = example_ids(values[part])
                else:
                    kind = "<i8" if name in ("label", "observed") else "<f8"
                    data = np.ascontiguousarray(values[part], dtype=kind)
                column = self._hashes.setdefault(name, hashlib.blake2b(digest_size=16))
                column.update(data.tobytes())

    def hex(self) -> str:
        """Return the digest of all rows so far."""
        by_name = {name: column.hexdigest() for name, column in self._hashes.items()}
        return seal(by_name)


def seal(content: Any) -> str:
    """Return a hash of what JSON can hold."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
