"""Files of a score table and a mark for every row -> the rows that stay, or lists of keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from numpy.typing import NDArray

from specgd_common.optional import needed

from ..score.arrow import arrays_of, without_views
from ..score.columns import Digest
from ..score.keys import KeyWriter
from ..score.parquet import (
    Stored,
    add_stored,
    checked_batches,
    columns_in,
    open_parquet,
    stored_in,
)
from ..select.survey import Columns
from .narrow import Narrow

BATCH = 1 << 18


def write_kept(
    file: Path, target: Path | IO, narrow: Narrow, keep: Callable[[Columns], NDArray]
) -> int:
    """Write the rows of one file that stay, with a digest of their own; return their number."""
    pa, pq = needed("pyarrow", "data"), needed("pyarrow.parquet", "data")
    rows, digest = 0, Digest()
    with open_parquet(file) as reader:
        stored, counted = stored_in(reader, file), columns_in(reader, file)
        schema = without_views(reader.schema_arrow.empty_table()).schema
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in map(without_views, reader.iter_batches(BATCH)):
                part = batch.filter(pa.array(keep(narrow.of(batch, file))))
                digest.add(arrays_of(part, counted, file, narrow.labels))
                writer.write_batch(part)
                rows += len(part)
            if stored.digest is not None:
                add_stored(writer, Stored(stored.meta, stored.peers, digest.hex()))
    return rows


def write_lists(
    files: list[Path],
    narrow: Narrow,
    keep: Callable[[Columns], NDArray],
    lists: list[tuple[IO[bytes], Path] | None],
) -> int:
    """Write the keys of the rows that stay and of those that go; return how many stay.

    Args:
        files: Of the table.
        narrow: What is read of them.
        keep: Marks the rows that stay.
        lists: File and name for the keys that stay, and for those that go; None for no list.
    """
    writers = [None if at is None else KeyWriter(at[0], at[1].suffix) for at in lists]
    kept = 0
    for file in files:
        for arrays, batch in checked_batches(file, BATCH, narrow.labels, narrow.more):
            stays = keep(narrow.of(batch, file, arrays))
            kept += int(stays.sum())
            for writer, rows in zip(writers, (stays, ~stays), strict=True):
                if writer is not None:
                    writer.add(arrays["key"][rows])
    for writer in writers:
        if writer is not None:
            writer.close()
    return kept
