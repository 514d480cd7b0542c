"""Columns of a score table -> one Parquet file with a digest, and back, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specgd_common.files import replacing
from specgd_common.optional import needed

from ..select.noise import example_ids
from .arrow import arrays_of, is_text, names_in, number_columns, to_array
from .columns import COLUMNS, Arrays, Digest, check_columns, check_unique, seal

META_KEY = b"data_prune"
# First bytes -> what such a file is and what helps.
KNOWN = {
    b"version https://git-lfs": "a git-lfs pointer: fetch the file with git lfs pull",
    b"<": "a web page: download the file itself again",
    b"PK": "a zip archive (or a .pt checkpoint): unpack it first",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"\x93NUMPY": "a NumPy array: put it into a ScoreTable and use to_parquet",
    b"PARE": "an encrypted Parquet file: decrypt it first",
    b"{": "a JSON file: the scores are in another one",
}


class Stored(NamedTuple):
    """What a file says of itself: how it was recorded, its peers, the digest of its rows."""

    meta: dict[str, Any]
    peers: list[str]
    digest: str | None


def write_columns(
    parts: Iterable[tuple[Arrays, Arrays, dict[str, Any]]], path: str | os.PathLike
) -> None:
    """Write (columns, peers, meta) of each part below the last one, one at a time.

    The file appears under its name when it is complete: a killed run leaves no half table.
    """
    pa, pq = needed("pyarrow", "data"), needed("pyarrow.parquet", "data")
    writer, digest = None, Digest()
    about: tuple[dict[str, Any], list[str]] = ({}, [])
    with replacing(path) as file:
        for columns, peers, meta in parts:
            both = {**columns, **peers}
            batch = pa.table({name: pa.array(values) for name, values in both.items()})
            if writer is None:
                writer = pq.ParquetWriter(file, batch.schema, compression="zstd")
                about = (meta, list(peers))
            writer.write_table(batch)
            digest.add(both)
        if writer is None:
            raise ValueError("a score table needs at least one example")
        add_stored(writer, Stored(*about, digest.hex()))
        writer.close()


def add_stored(writer: Any, stored: Stored) -> None:
    """Write what a file says of itself, sealed, into its metadata."""
    content = stored._asdict()
    content["seal"] = seal(content)
    writer.add_key_value_metadata({META_KEY.decode(): json.dumps(content)})


def read_columns(path: str | os.PathLike) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Return (columns, peers, meta) of a file, whole.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If there is no such file, or it may not be read.
        TypeError: If a column holds another kind of values.
        ValueError: If the file is no Parquet file, lacks a column, has values outside their
            ranges, or was changed after it was written.
    """
    file = Path(path)
    with open_parquet(file) as reader:
        stored, names = stored_in(reader, file), columns_in(reader, file)
        digest, rows = Digest(), reader.read(columns=names)
        found = names_in(rows.column("label"))
        arrays = arrays_of(rows, names, file, found)
    check_columns(arrays, f"{file}: ")
    check_unique(arrays["key"], f"{file}: ")
    digest.add(arrays)
    check_digest(stored, digest, file)
    peers = {name: arrays.pop(name) for name in names if name not in COLUMNS}
    return arrays, peers, stored.meta if found is None else {**stored.meta, "label_names": found}


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file; whatever goes wrong with its bytes is one line that names it.

    Without memory mapping and pre-buffering only one batch of rows is in memory at a time.
    """
    pa, pq = needed("pyarrow", "data"), needed("pyarrow.parquet", "data")
    with path.open("rb") as file:  # refuses what is not there or may not be read
        head = file.read(64)
    broken = (pa.ArrowException, OSError, UnicodeError, OverflowError, MemoryError)
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as reader:
            yield reader
    except broken as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the file's content
        said = [*str(error).strip().splitlines(), "no data"][0].rstrip(".")
        damaged = f"{said}. Copy it again, or write it again with ScoreTable.to_parquet"
        raise ValueError(
            f"{path} cannot be read as Parquet: {_what_it_is(head) or damaged}"
        ) from error


def _what_it_is(head: bytes) -> str | None:
    """Say what a file is that does not begin like Parquet; None if it does or nobody knows."""
    if head.startswith(b"PAR1"):
        return None
    if not head:
        return "it is empty: write it again with ScoreTable.to_parquet"
    for signature, what in KNOWN.items():
        if head.lstrip().startswith(signature):
            return f"it is {what}"
    text = head.decode("utf-8", "replace")[:-1]  # the last character may be cut
    printable = all((c.isprintable() and c != "\ufffd") or c in "\r\n\t" for c in text)
    what = "a text file" if printable else "something else"
    return f"it is {what}: write scores with ScoreTable.to_parquet"


def stored_in(reader: Any, path: Path) -> Stored:
    """Return what a file says of itself, after checking that nobody has changed it."""
    text = (reader.metadata.metadata or {}).get(META_KEY)
    if text is None:  # another program wrote it: every further column of numbers may rank
        return Stored({}, number_columns(reader.schema_arrow), None)
    try:
        content = json.loads(text)
        given = content.pop("seal")
        stored = Stored(content["meta"], content["peers"], content["digest"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        given, stored = None, Stored({}, [], None)
    if given is None or given != seal(content):
        raise ValueError(
            f"{path} was changed after it was written, or an earlier version wrote it: its "
            "metadata does not match. Copy it again, or write it again with ScoreTable.to_parquet"
        )
    return stored


def columns_in(reader: Any, path: Path) -> list[str]:
    """Return the names of the columns that count, which the file must have."""
    names, peers = reader.schema_arrow.names, stored_in(reader, path).peers
    missing = [name for name in (*COLUMNS, *peers) if names.count(name) != 1]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}, or has them twice; it has {names}")
    return [*COLUMNS, *peers]


def check_digest(stored: Stored, digest: Digest, path: Path) -> None:
    """Refuse a file whose rows are not those that were written."""
    if stored.digest is not None and stored.digest != digest.hex():
        raise ValueError(
            f"{path} was changed after it was written: its digest does not match. Copy it again, "
            "or write it again with ScoreTable.to_parquet"
        )


def label_names(files: Iterable[Path], column: str = "label") -> list[str] | None:
    """Return in order the names that stand in a column of all files; None for integers.

    Raises:
        TypeError: If some files have names and others have integers.
    """
    found: set[str] = set()
    kinds: dict[bool, Path] = {}
    for file in files:
        with open_parquet(file) as reader:
            if column not in reader.schema_arrow.names:
                continue  # refused with all else that is missing
            text = is_text(reader.schema_arrow.field(column).type)
            kinds[text] = file
            for batch in reader.iter_batches(1 << 18, columns=[column]) if text else ():
                found |= set(names_in(batch.column(column)) or ())
    if len(kinds) == 2:
        raise TypeError(
            f"column {column!r} must hold names in all files or in none, got names in "
            f"{kinds[True]} and integers in {kinds[False]}"
        )
    return sorted(found) if True in kinds else None


def checked_batches(
    path: Path, rows: int, labels: list[str] | None = None, more: Iterable[str] = ()
) -> Iterator[tuple[Arrays, Any]]:
    """Yield a file's columns batch by batch, held to the checks of a whole table.

    Args:
        path: The file.
        rows: Of a batch.
        labels: What ``label_names`` says of all files.
        more: Further columns that are read.

    Yields:
        The columns of a score table as arrays, and the record batch with all that was read.
    """
    with open_parquet(path) as reader:
        stored, names, digest = stored_in(reader, path), columns_in(reader, path), Digest()
        check_has(reader, more, path)
        for batch in reader.iter_batches(rows, columns=[*dict.fromkeys([*names, *more])]):
            arrays = arrays_of(batch, names, path, labels)
            check_columns(arrays, f"{path}: ")
            digest.add(arrays)
            yield arrays, batch
        check_digest(stored, digest, path)


def check_has(reader: Any, names: Iterable[str], path: Path) -> None:
    """Refuse a file without columns that a user has named."""
    there = reader.schema_arrow.names
    for name in names:
        if there.count(name) != 1:
            raise ValueError(f"{path} has no column {name!r}; it has {there}")


def read_column(path: str | os.PathLike, name: str) -> NDArray:
    """Return one column of a Parquet file as an array.

    Raises:
        ValueError: If there is none of this name, or it has nulls.
    """
    with open_parquet(Path(path)) as reader:
        check_has(reader, [name], Path(path))
        return whole_column(reader.read(columns=[name]).column(name), name, path)


def whole_column(column: Any, name: str, where: Any) -> NDArray:
    """Return a column as an array, refused where a value is missing."""
    if column.null_count:
        raise ValueError(
            f"{where}: column {name!r} must have a value in every row, got {column.null_count} "
            "nulls"
        )
    return to_array(column)


def with_ids(arrays: Arrays, names: Iterable[str]) -> Arrays:
    """Return the named columns with the 64-bit id of each key in the key's place."""
    columns = {name: arrays[name] for name in names if name != "key"}
    return {**columns, "id": example_ids(arrays["key"])}


def batch_arrays(batch: Any) -> Arrays:
    """Return the columns of a record batch or table of our own as arrays."""
    return {name: np.asarray(batch.column(name)) for name in batch.schema.names}
