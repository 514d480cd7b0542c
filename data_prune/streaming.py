"""Parquet in, Parquet out: the same selection for tables larger than memory or machine.

Every pass reads record batches, keeps small mergeable summaries (counts, class sizes, the ten
highest scores) and forgets the rows, so that the memory does not depend on their number. What
the summaries are made of is exactly what the table in memory uses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_prune import selection
from data_prune.keys import example_ids
from data_prune.parquet import META_KEY
from data_prune.plan import Columns, check_column, ranking_column

__all__ = ["select_parquet"]

NEEDED = ("key", "label", "score", "mean_prob")
BATCH = 1 << 18


class Engine(Protocol):
    """Something that runs over the record batches of all files, as often as it is asked to."""

    def fold(
        self, f: Callable[[Any], Any], merge: Callable[[Any, Any], Any], columns: list[str]
    ) -> Any:
        """``f`` of every batch of these columns, the results merged in any order."""

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

    One pass gathers what the method needs, two or three count and collect around the threshold
    (see ``topk``), the last one writes.

    Args:
        source: a Parquet file, or a folder of them, with the columns key, label, score and
            mean_prob (and the one that ``by`` names); other columns are carried along.
        destination: must not exist. With the local engine a file becomes a file and a folder a
            folder with the same names; Ray writes a folder, its rows in any order.
        prune_ratio: fraction REMOVED, in [0, 1).
        engine: "local" streams on this machine; "ray" runs the same passes on Ray Data, over
            files that every worker can read (see ``ray_data``).
        ignore_nonfinite: accept tables whose recording met NaN or infinite logits.
        **options: method, by, c_d, C, beta_sum, anchor, seed, per_class, cutoff, strata as for
            ``ScoreTable.select``.

    Returns:
        The settings of the selection, also written to ``<destination>.json``.

    Raises:
        FileNotFoundError: if there is no Parquet file at ``source``.
        FileExistsError: if ``destination`` exists.
        ValueError: for a missing column, or as ``ScoreTable.select``.

    Example:
        >>> import tempfile
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
    source, destination = Path(source), Path(destination)
    files = parquet_files(source)
    if destination.exists():
        raise FileExistsError(f"{destination} exists and is not overwritten")
    _check_metadata(files, ignore_nonfinite)
    by = ranking_column(options.get("method", "beta"), options.get("by"))
    names = needed_columns(files[0], by)
    if engine == "local":
        settings, written = _run(_Local(files, source), names, destination, prune_ratio, options)
    elif engine == "ray":
        from data_prune.ray_data import ray_engine

        with ray_engine(files, BATCH) as on_ray:
            settings, written = _run(on_ray, names, destination, prune_ratio, options)
    else:
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")
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
    options: dict[str, Any],
) -> tuple[dict[str, Any], int]:
    """Plan, search and write on any engine; the settings, and the number of rows written."""

    def fold(f: Callable[[Columns], Any], merge: Callable[[Any, Any], Any]) -> Any:
        return engine.fold(lambda batch: f(columns(batch)), merge, names)

    plan = selection.make_plan(fold, prune_ratio, **options)
    search = selection.search(lambda f, merge: fold(lambda c: f(plan.chunk(c)), merge), plan)

    def kept(batch: Any) -> Any:
        import pyarrow as pa

        return batch.filter(pa.array(search.keep(plan.chunk(columns(batch.select(names))))))

    return plan.settings, engine.write(kept, destination)


def parquet_files(source: Path) -> list[Path]:
    """The file itself, or the Parquet files of a folder by name."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no Parquet file at {source}")
    return files


def needed_columns(file: Path, by: str) -> list[str]:
    """Names of the columns a selection reads, after checking that the file has them."""
    import pyarrow.parquet as pq

    names = pq.read_schema(file).names
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {names}")
    check_column(by, names)
    return [*NEEDED, *({by} - set(NEEDED))]


def columns(batch: Any) -> Columns:
    """NumPy columns of a record batch or table, with the 64-bit id of each key."""
    out = {n: np.asarray(batch.column(n)) for n in batch.schema.names if n != "key"}
    out["id"] = example_ids(np.asarray(batch.column("key")))
    return out


def _check_metadata(files: list[Path], ignore_nonfinite: bool) -> None:
    import pyarrow.parquet as pq

    bad = rows = 0
    for file in files:
        metadata = pq.read_metadata(file)
        rows += metadata.num_rows
        stored = json.loads((metadata.metadata or {}).get(META_KEY, b"{}"))
        bad += stored.get("meta", {}).get("nonfinite", 0)
    if rows == 0:
        raise ValueError(f"a score table needs at least one example, {files[0]} has none")
    if bad and not ignore_nonfinite:
        raise ValueError(
            f"{bad} observations had NaN or infinite logits: the scoring run has diverged. Score "
            "again, or pass ignore_nonfinite=True to count them as not seen"
        )


class _Local:
    """One batch of rows after the other, on this machine."""

    def __init__(self, files: list[Path], source: Path) -> None:
        self.files, self.source = files, source

    def _batches(self, file: Path, columns: list[str] | None = None) -> Iterator[Any]:
        import pyarrow.parquet as pq

        # Without memory mapping and pre-buffering only one batch of rows is in memory at a time.
        with pq.ParquetFile(file, memory_map=False, pre_buffer=False) as reader:
            yield from reader.iter_batches(BATCH, columns=columns)

    def fold(
        self, f: Callable[[Any], Any], merge: Callable[[Any, Any], Any], columns: list[str]
    ) -> Any:
        batches = (batch for file in self.files for batch in self._batches(file, columns))
        return reduce(merge, map(f, batches))

    def write(self, kept: Callable[[Any], Any], destination: Path) -> int:
        import pyarrow.parquet as pq

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
