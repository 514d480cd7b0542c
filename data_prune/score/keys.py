"""Keys of examples: their kinds, where they lie in a table, and plain lists of them in files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import replacing

from ..select.noise import example_ids

SUFFIXES = (".txt", ".csv", ".npy")
# Keys compared at once: their copies stay in the caches, also where there are 10**8 of them.
ROWS = 1 << 18
# Lines joined at once, so that the text of a long list is never in memory whole.
LINES = 1 << 16


def plain_keys(keys: Any) -> NDArray:
    """Return keys as an array of integers or strings, whatever integers were in a list.

    Example:
        >>> plain_keys([np.int32(3), 5]).dtype.name, plain_keys(["a"]).tolist()
        ('int64', ['a'])
    """
    array = np.asarray(keys)
    if array.dtype.kind in "Uf" and array.ndim == 1 and not hasattr(keys, "dtype"):
        # As text one long key would make all of them long, as numbers 2**63 would be a float.
        array = np.array(list(keys), dtype=object)
    whole = (int, np.integer)
    if (
        array.dtype.kind == "O"
        and array.size
        and all(
            isinstance(key, whole) and not isinstance(key, (bool, np.bool_)) for key in array.flat
        )
    ):
        largest = max(map(int, array.flat))
        return array.astype(np.uint64 if largest >= 2**63 else np.int64)
    return array


def unique_keys(keys: Any) -> NDArray:
    """Return keys without repeats.

    Example:
        >>> unique_keys(["b", "a", "b"]).tolist()
        ['b', 'a']
    """
    array = plain_keys(keys)
    if array.dtype.kind == "O":
        return np.array(list(dict.fromkeys(array.tolist())), dtype=object)
    return np.unique(array) if array.ndim == 1 else array


def are_positions(keys: NDArray) -> bool:
    """Say whether keys are just the numbers of the rows."""
    if keys.dtype.kind != "i":
        return False
    starts = range(0, len(keys), ROWS)
    parts = ((keys[start : start + ROWS], start) for start in starts)
    return all(bool((part == np.arange(start, start + len(part))).all()) for part, start in parts)


def rows_of(keys: NDArray, wanted: Any, what: str = "keys") -> NDArray[np.int64]:
    """Return in which row of a table each wanted key is.

    Args:
        keys: (N,) keys of the table, all different.
        wanted: (M,) keys; digits stand for integers where the table has integers.
        what: What the message calls them.

    Raises:
        TypeError: If they are of another kind than the table's.
        ValueError: If one of them comes twice, or the table does not have it.

    Example:
        >>> rows_of(np.array(["a", "b", "c"]), ["c", "a"]).tolist()
        [2, 0]
    """
    found = keys_like(wanted, keys.dtype.kind in "iu", what)
    if len(found) == 0:
        return np.empty(0, dtype=np.int64)
    ids = example_ids(found)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise ValueError(f"{what} must differ, got {_shown(found[order[twice[0]]])} again")
    rows = np.full(len(found), -1, dtype=np.int64)
    for start in range(0, len(keys), ROWS):
        mine = example_ids(keys[start : start + ROWS])
        place = np.minimum(np.searchsorted(ordered, mine), len(ordered) - 1)
        hits = np.flatnonzero(ordered[place] == mine)
        rows[order[place[hits]]] = hits + start
    lost = np.flatnonzero(rows < 0)
    if len(lost):
        raise ValueError(
            f"{what} must be in the table of {len(keys)} examples, got "
            f"{_shown(found[lost[0]])}" + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
        )
    return rows


def keys_like(wanted: Any, integers: bool, what: str = "keys") -> NDArray:
    """Return wanted keys of the kind that a table has, integers or strings.

    Raises:
        TypeError: If they are of the other kind.
        ValueError: If they are no list.
    """
    found = plain_keys(wanted)
    if found.ndim != 1:
        raise ValueError(f"{what} must be a list of keys, got shape {found.shape}")
    if len(found) == 0:
        return found
    if integers and found.dtype.kind in "UO":
        try:
            return plain_keys(np.array([int(key) for key in found.flat], dtype=object))
        except (TypeError, ValueError):
            raise TypeError(
                f"{what} must be integers as the table's are, got {_shown(found[0])}"
            ) from None
    if (found.dtype.kind in "iu") != integers:
        kind = "integers" if integers else "strings"
        raise TypeError(f"{what} must be {kind} as the table's are, got {_shown(found[0])}")
    return found


def _shown(key: Any) -> str:
    return repr(key.item() if isinstance(key, np.generic) else key)


def write_keys(path: str | os.PathLike, keys: Any) -> None:
    """Write a plain list of keys that any program reads.

    Args:
        path: Ends in .txt (one key a line), .csv (a column "key") or .npy.
        keys: (M,) integers or strings, such as ``table.key[kept]``, or what was dropped:
            ``np.delete(table.key, kept)``.

    Raises:
        ValueError: For another suffix, or a key that the format cannot hold.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_keys(f"{folder}/kept.txt", ["cat/1", "dog/7"])
        ...     read_keys(f"{folder}/kept.txt").tolist()
        ['cat/1', 'dog/7']
    """
    target = with_suffix(path)
    with replacing(target) as file:
        writer = KeyWriter(file, target.suffix)
        writer.add(plain_keys(keys))
        writer.close()


class KeyWriter:
    """Write a list of keys piece by piece; a .npy file takes them all together at the end.

    Args:
        file: Open for writing bytes.
        suffix: One of ``SUFFIXES``.
    """

    def __init__(self, file: IO[bytes], suffix: str) -> None:
        self.file, self.suffix = file, suffix.lower()
        self.parts: list[NDArray] = []
        if self.suffix == ".csv":
            file.write(_csv_lines([["key"]]))

    def add(self, keys: NDArray) -> None:
        """Append keys."""
        if self.suffix == ".npy":
            self.parts.append(keys)
            return
        for start in range(0, len(keys), LINES):
            lines = list(map(str, keys[start : start + LINES].tolist()))
            if self.suffix == ".csv":
                self.file.write(_csv_lines([line] for line in lines))
                continue
            odd = next((line for line in lines if line.splitlines() != [line]), None)
            if odd is not None:
                raise ValueError(f"a key must be one line of a .txt file, got {odd!r}: use .csv")
            self.file.write(("\n".join(lines) + "\n").encode())

    def close(self) -> None:
        """Write what is left."""
        if self.suffix == ".npy":
            whole = np.concatenate(self.parts) if self.parts else np.empty(0, dtype=np.int64)
            text = whole.dtype.kind == "O"
            np.save(self.file, np.array(whole.tolist(), str) if text else whole, False)


def write_csv(file: IO[bytes], header: list[str], columns: Sequence[NDArray]) -> None:
    """Write columns of one length as text, a header first."""
    file.write(_csv_lines([header]))
    for start in range(0, len(columns[0]), LINES):
        rows = zip(*(column[start : start + LINES].tolist() for column in columns), strict=True)
        file.write(_csv_lines(rows))


def _csv_lines(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_keys(path: str | os.PathLike) -> NDArray:
    """Return the keys of a list that ``write_keys`` or another program wrote.

    Args:
        path: Ends in .txt, .csv (the column "key", or the only one) or .npy. Digits in a text
            are taken as integers by whoever compares them with integer keys.

    Raises:
        ValueError: For another suffix, or a file that holds something else.
    """
    source = with_suffix(path)
    if source.suffix.lower() == ".npy":
        try:
            return plain_keys(np.load(source, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{source} must hold one array of integers or strings") from error
    try:
        text = source.read_bytes().decode("utf-8-sig")  # some programs begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} must be text in UTF-8: {error}") from error
    if source.suffix.lower() == ".txt":
        return np.array([line for line in text.splitlines() if line], dtype=object)
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    header = rows[0] if rows else []
    if "key" not in header and len(header) != 1:
        raise ValueError(f"{source} must have a column 'key', got the columns {header}")
    at, first = (header.index("key"), 1) if "key" in header else (0, 0)
    return np.array([row[at] for row in rows[first:]], dtype=object)


def is_list(path: str | os.PathLike) -> bool:
    """Say whether a file of this name holds a plain list of keys."""
    return Path(path).suffix.lower() in SUFFIXES


def with_suffix(path: str | os.PathLike) -> Path:
    """Return the path of a plain list, refused if its name does not say of which kind."""
    target = Path(path)
    if not is_list(target):
        raise ValueError(f"a list of keys must end in {', '.join(SUFFIXES)}, got {str(target)!r}")
    return target
