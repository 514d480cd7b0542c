"""Columns of a score table -> one Parquet file with a digest, and back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specgd_common.optional import needed

from ..select.noise import example_ids

COLUMNS = ("key", "label", "score", "mean_prob", "observed")
META_KEY = b"data_prune"
# Rows hashed at once: their copies stay in the caches.
CHUNK = 1 << 16

Arrays = dict[str, NDArray]  # name -> (N,)


class Digest:
    """Hash rows that arrive in pieces: each column is hashed by itself, then all together."""

    def __init__(self) -> None:
        self.columns = {"label": "<i4", "score": "<f8", "mean_prob": "<f8"}
        self.hashes = {name: hashlib.blake2b(digest_size=16) for name in ("key", *self.columns)}

    def add(self, arrays: Arrays) -> None:
        """Append rows."""
        for start in range(0, len(arrays["key"]), CHUNK):
            part = slice(start, start + CHUNK)
            self.hashes["key"].update(example_ids(arrays["key"][part]).tobytes())
            for name, dtype in self.columns.items():
                column = np.ascontiguousarray(arrays[name][part], dtype=dtype)
                self.hashes[name].update(column.tobytes())

    def hex(self) -> str:
        """Return the digest of all rows so far."""
        joined = b"".join(h.digest() for h in self.hashes.values())
        return hashlib.blake2b(joined, digest_size=16).hexdigest()


def write_columns(
    parts: Iterable[tuple[Arrays, Arrays, dict[str, Any]]], path: str | os.PathLike
) -> None:
    """Write (columns, peers, meta) of each part below the last one, one at a time.

    The file appears under its name when it is complete: a killed run leaves no half table.
    """
    pa, pq = needed("pyarrow", "data"), needed("pyarrow.parquet", "data")
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    writer, digest, meta, names = None, Digest(), {}, []
    for columns, peers, about in parts:
        batch = pa.table({name: pa.array(values) for name, values in {**columns, **peers}.items()})
        if writer is None:
            writer = pq.ParquetWriter(temporary, batch.schema, compression="zstd")
            meta, names = about, list(peers)
        writer.write_table(batch)
        digest.add(columns)
    assert writer is not None
    stored = {"meta": meta, "digest": digest.hex(), "peers": names}
    writer.add_key_value_metadata({META_KEY.decode(): json.dumps(stored)})
    writer.close()
    os.replace(temporary, path)


def read_columns(path: str | os.PathLike) -> tuple[Arrays, Arrays, dict[str, Any]]:
    """Return (columns, peers, meta) of a file, whole.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If a column is missing, or the content has not the digest it was written with.
    """
    pq = needed("pyarrow.parquet", "data")
    table = pq.read_table(Path(path))
    metadata = pq.read_metadata(Path(path)).metadata or {}
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {table.column_names}")
    stored = json.loads(metadata.get(META_KEY, b"{}"))
    extra = stored.get("peers", [name for name in table.column_names if name not in COLUMNS])
    columns, peers = ({n: table[n].to_numpy() for n in names} for names in (COLUMNS, extra))
    if "digest" in stored:
        digest = Digest()
        digest.add(columns)
        if stored["digest"] != digest.hex():
            raise ValueError(f"{path} was changed after it was written: its digest does not match")
    return columns, peers, stored.get("meta", {})


def batch_arrays(batch: Any) -> Arrays:
    """Return the columns of a record batch or table as arrays."""
    return {name: np.asarray(batch.column(name)) for name in batch.schema.names}


def batch_columns(batch: Any) -> Arrays:
    """Return what a selection reads: the same with the 64-bit id of each key in the key's place."""
    columns = batch_arrays(batch)
    columns["id"] = example_ids(columns.pop("key"))
    return columns
