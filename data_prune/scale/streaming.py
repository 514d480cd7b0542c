"""Parquet in, Parquet out: the same selection for tables larger than memory or machine.

The Parquet is read twice: first the few columns that a selection looks at, at most some 30 bytes
a row, which are kept on disk (or in Ray's object store); at the end everything, to write the rows
that stay. Between the two, small mergeable summaries (counts, class sizes, the ten highest
scores) of those columns find the threshold. A pass forgets its rows, so that the memory does not
depend on their number. What the summaries are made of is exactly what the table in memory uses.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import IO, Any, Protocol

from specgd_common.optional import needed

from ..score.parquet import META_KEY, batch_arrays, batch_columns
from ..score.table import diverged
from ..select.plan import Columns
from ..select.planner import Options, make_plan
from ..select.topk import find_threshold

NEEDED = ("key", "label", "score", "mean_prob")
BATCH = 1 << 18


class Engine(Protocol):
    """Run over the record batches of all files."""

    def fold(self, f: Callable[[Columns], Any], merge: Callable[[Any, Any], Any]) -> Any:
        """Return ``f`` of every batch of the selection's columns, merged in any order."""

    def write(self, kept: Callable[[Any], Any], destination: Path) -> int:
        """Write ``kept(batch)`` of every whole batch; return the number of rows written."""


def select_parquet(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    prune_ratio: float,
    *,
    engine: str = "local",
    ignore_nonfinite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Keep the rows of a score table in Parquet that ``ScoreTable.select`` would keep.

    Two passes over the files: one takes out the columns that the method looks at, one writes.
    What is searched in between (see ``topk``) are those columns alone.

    Args:
        source: A Parquet file, or a folder of them, with the columns key, label, score and
            mean_prob (and the one that ``by`` names); other columns are carried along.
        destination: Must not exist. With the local engine a file becomes a file and a folder a
            folder with the same names; Ray writes a folder, its rows in any order. Beside it
            the local engine needs room for the columns while it runs.
        prune_ratio: Fraction REMOVED, in [0, 1).
        engine: "local" streams on this machine; "ray" runs the same passes on Ray Data, over
            files that every worker can read (see ``ray_data``).
        ignore_nonfinite: Accept tables whose recording met NaN or infinite logits.
        **options: method, by, c_d, C, beta_sum, anchor, anchor_statistic, seed, per_class,
            cutoff, strata as for ``ScoreTable.select``.

    Returns:
        The settings of the selection, also written to ``<destination>.json``.

    Raises:
        FileNotFoundError: If there is no Parquet file at ``source``.
        FileExistsError: If ``destination`` exists.
        ValueError: For a missing column, or as ``ScoreTable.select``.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from data_prune import ScoreTable
        >>> rng = np.random.default_rng(0)
        >>> table = ScoreTable(np.arange(100), rng.integers(3, size=100), rng.uniform(size=100),
        ...     rng.uniform(size=100), np.full(100, 30))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table.to_parquet(f"{folder}/scores.parquet")
        ...     settings = select_parquet(f"{folder}/scores.parquet", f"{folder}/kept.parquet", 0.9)
        ...     kept = ScoreTable.from_parquet(f"{folder}/kept.parquet")
        >>> kept.key.tolist() == table.select(0.9).tolist()
        True
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")
    needed("ray" if engine == "ray" else "pyarrow", "ray" if engine == "ray" else "data")
    source, destination = Path(source), Path(destination)
    files = parquet_files(source)
    if destination.exists():
        raise FileExistsError(f"{destination} exists and is not overwritten")
    _check_metadata(files, ignore_nonfinite)
    how = Options(**options, columns=column_names(files[0]))
    names = [*NEEDED, *({str(how.by)} - set(NEEDED))]
    if engine == "local":
        with local_engine(files, source, destination, names) as here:
            settings, written = _run(here, names, destination, prune_ratio, how)
    else:
        from .ray_data import ray_engine

        with ray_engine(files, names, BATCH) as on_ray:
            settings, written = _run(on_ray, names, destination, prune_ratio, how)
    if written != settings["kept"]:
        raise RuntimeError(
            f"{written} rows were written, {settings['kept']} selected: the table has changed "
            "meanwhile, or holds one key several times"
        )
    settings = {**settings, "source": str(source), "engine": engine}
    Path(f"{destination}.json").write_text(json.dumps(settings, indent=2))
    return settings


def _run(
    engine: Engine,
    names: list[str],
    destination: Path,
    prune_ratio: float,
    options: Options,
) -> tuple[dict[str, Any], int]:
    """Plan, search and write on any engine; the settings, and the number of rows written."""
    plan = make_plan(engine.fold, prune_ratio, options)
    search = find_threshold(
        lambda f, merge: engine.fold(lambda c: f(plan.chunk(c)), merge), plan.quotas, plan.total
    )

    def kept(batch: Any) -> Any:
        pa = needed("pyarrow", "data")
        return batch.filter(pa.array(search.keep(plan.chunk(batch_columns(batch.select(names))))))

    return plan.settings, engine.write(kept, destination)


def parquet_files(source: Path) -> list[Path]:
    """Return the file itself, or the Parquet files of a folder by name."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no Parquet file at {source}")
    return files


def column_names(file: Path) -> list[str]:
    """Return the names of the columns of a file, which must have those of every table."""
    pq = needed("pyarrow.parquet", "data")
    names = pq.read_schema(file).names
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {names}")
    return names


def _check_metadata(files: list[Path], ignore_nonfinite: bool) -> None:
    pq = needed("pyarrow.parquet", "data")
    bad = rows = 0
    for file in files:
        metadata = pq.read_metadata(file)
        rows += metadata.num_rows
        stored = json.loads((metadata.metadata or {}).get(META_KEY, b"{}"))
        bad += stored.get("meta", {}).get("nonfinite", 0)
    if rows == 0:
        raise ValueError(f"a score table needs at least one example, {files[0]} has none")
    if bad and not ignore_nonfinite:
        raise diverged({"nonfinite": bad})


@contextmanager
def local_engine(
    files: list[Path], source: Path, destination: Path, names: list[str]
) -> Iterator[_Local]:
    """Give an engine on this machine; its nameless scratch file lies beside the destination."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=destination.parent) as scratch:
        yield _Local(files, source, names, scratch)


class _Local:
    """Read one batch of rows after the other, on this machine."""

    def __init__(self, files: list[Path], source: Path, names: list[str], scratch: IO) -> None:
        self.files, self.source, self.names, self.scratch = files, source, names, scratch
        self._taken_out = False

    def _batches(self, file: Path, names: list[str] | None = None) -> Iterator[Any]:
        pq = needed("pyarrow.parquet", "data")
        # Without memory mapping and pre-buffering only one batch of rows is in memory at a time.
        with pq.ParquetFile(file, memory_map=False, pre_buffer=False) as reader:
            yield from reader.iter_batches(BATCH, columns=names)

    def _take_out(self) -> None:
        """Copy the columns of all files into the scratch file, keys as ids of eight bytes."""
        pa = needed("pyarrow", "data")
        writer = None
        for batch in (b for file in self.files for b in self._batches(file, self.names)):
            narrow = pa.record_batch(batch_columns(batch))
            writer = writer or pa.ipc.new_stream(self.scratch, narrow.schema)
            writer.write_batch(narrow)
        assert writer is not None  # a table without rows was refused
        writer.close()
        self._taken_out = True

    def fold(self, f: Callable[[Columns], Any], merge: Callable[[Any, Any], Any]) -> Any:
        pa = needed("pyarrow", "data")
        if not self._taken_out:
            self._take_out()
        self.scratch.seek(0)
        return reduce(merge, (f(batch_arrays(batch)) for batch in pa.ipc.open_stream(self.scratch)))

    def write(self, kept: Callable[[Any], Any], destination: Path) -> int:
        pq = needed("pyarrow.parquet", "data")
        rows = 0
        for file in self.files:
            folder = self.source.is_dir()
            target = destination / file.relative_to(self.source) if folder else destination
            target.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(target, pq.read_schema(file), compression="zstd") as writer:
                for batch in self._batches(file):
                    part = kept(batch)
                    rows += len(part)
                    writer.write_batch(part)
        return rows
