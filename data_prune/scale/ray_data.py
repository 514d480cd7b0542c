"""The passes of ``streaming`` on Ray Data: workers summarize and filter blocks of rows.

The Parquet is read twice. The first time, one task for each file, its columns are checked and
those of the selection become blocks of Ray's object store (some 30 bytes a row over all machines;
Ray spills to disk what does not fit); the passes that find the threshold go over these blocks.
Such a pass sends home one summary for each block (at most 8 MB of counts), and the driver merges
them as they arrive and holds no other.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from specgd_common.optional import needed

from ..score.arrow import without_views
from ..score.parquet import batch_arrays, checked_batches
from ..select.survey import Columns
from .narrow import Narrow


@contextmanager
def ray_engine(files: list[Path], narrow: Narrow, batch: int) -> Iterator[RayEngine]:
    """Give an engine on the Ray that is running, or on one that lives as long as the block.

    The latter uses the cores of this machine and neither a dashboard nor Ray's usage statistics.

    Args:
        files: Parquet files, by names that all workers can open.
        narrow: What a selection looks at.
        batch: Rows that are looked at together.

    Raises:
        ImportError: If Ray is not installed.
    """
    ray = needed("ray", "ray")
    needed("ray.data", "ray")
    mine = not ray.is_initialized()
    if mine:
        before = os.environ.get("RAY_USAGE_STATS_ENABLED")
        os.environ["RAY_USAGE_STATS_ENABLED"] = before or "0"
        try:
            ray.init(include_dashboard=False)
        finally:
            if before is None:
                del os.environ["RAY_USAGE_STATS_ENABLED"]
    try:
        yield RayEngine([str(file.resolve()) for file in files], narrow, batch)
    except Exception as error:
        raise _cause(error) from error
    finally:
        if mine:
            ray.shutdown()


def _cause(error: BaseException) -> BaseException:
    """Return the refusal of bad data that Ray has wrapped in its own errors, if there is one."""
    found: BaseException | None = error
    while found is not None:
        if type(found) in (ValueError, TypeError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return error


class RayEngine:
    """See ``streaming.Engine``."""

    def __init__(self, files: list[str], narrow: Narrow, batch: int) -> None:
        self.files, self.narrow, self.batch = files, narrow, batch
        self._narrow: Any = None

    def _blocks(self) -> Any:
        """Return the selection's columns, read once and held in the object store."""
        if self._narrow is None:
            import ray.data

            narrow, batch = self.narrow, self.batch

            def take_out(files: Any) -> Iterator[Any]:
                import pyarrow as pa

                for file in files["file"].to_pylist():
                    path = Path(file)
                    for arrays, rows in checked_batches(path, batch, narrow.labels, narrow.more):
                        yield pa.table(narrow.of(rows, path, arrays))

            files = ray.data.from_items(
                [{"file": file} for file in self.files], override_num_blocks=len(self.files)
            )
            taken = files.map_batches(take_out, batch_size=None, batch_format="pyarrow")
            self._narrow = taken.materialize()
        return self._narrow

    def fold(self, f: Callable[[Any], Any], merge: Callable[[Any, Any], Any]) -> Any:
        """Return ``f`` of every batch of the columns, merged for each block where it lies."""
        batch = self.batch

        def summarize(block: Any) -> Any:
            import pyarrow as pa

            parts = (block.slice(i, batch) for i in range(0, block.num_rows, batch))
            merged = (
                reduce(merge, (f(batch_arrays(part)) for part in parts)) if block.num_rows else None
            )
            summary = [pickle.dumps(merged)] if block.num_rows else []
            return pa.table({"summary": pa.array(summary, pa.large_binary())})

        summaries = self._blocks().map_batches(summarize, batch_size=None, batch_format="pyarrow")
        return reduce(merge, (pickle.loads(row["summary"]) for row in summaries.iter_rows()))

    def write(self, keep: Callable[[Columns], NDArray], destination: Path) -> int:
        """Write the kept rows of all blocks into a folder; return their number."""
        import pyarrow.parquet as pq
        import ray.data

        narrow = self.narrow

        def kept(block: Any) -> Any:
            import pyarrow as pa

            block = without_views(block)
            return block.filter(pa.array(keep(narrow.of(block, destination))))

        # Names of folders such as "epoch=3" must not become columns.
        rows = ray.data.read_parquet(self.files, partitioning=None)
        rows = rows.map_batches(kept, batch_size=self.batch, batch_format="pyarrow")
        rows.write_parquet(str(destination.resolve()), compression="zstd")
        return sum(pq.read_metadata(file).num_rows for file in destination.rglob("*.parquet"))
