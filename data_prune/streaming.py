"""Parquet in, Parquet out: the same selection for tables larger than memory or machine.

Every pass reads record batches, keeps small mergeable summaries (counts, class sizes, the ten
highest scores) and forgets the rows, so that the memory does not depend on their number. What
the summaries are made of is exactly what the table in memory uses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prune import selection
from data_prune.keys import example_ids
from data_prune.table import META_KEY

__all__ = ["select_parquet"]

NEEDED = ("key", "label", "score", "mean_prob")
BATCH = 1 << 18
Read = Callable[[Callable[[Any], Any]], Iterator[Any]]


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

    Args:
        source: a Parquet file, or a folder of them, with the columns key, label, score and
            mean_prob (and the one that ``by`` names); other columns are carried along.
        destination: must not exist. With the local engine a file becomes a file and a folder a
            folder with the same names; Ray writes a folder.
        prune_ratio: fraction REMOVED, in [0, 1).
        engine: "local" streams on this machine; "ray" runs the same passes as Ray tasks, one for
            each row group, over files that every worker can read.
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
    if engine == "local":
        read = _local(files)
    elif engine == "ray":
        read = _ray(files)
    else:
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")

    def columns_of(f: Callable[[selection.Columns], Any]) -> Iterator[Any]:
        return read(lambda batch: f(columns(batch)))

    plan = selection.make_plan(columns_of, prune_ratio, **options)
    search = selection.search(lambda f: columns_of(lambda c: f(plan.chunk(c))), plan)

    def kept(batch: Any) -> Any:
        import pyarrow as pa

        return batch.filter(pa.array(search.keep(plan.chunk(columns(batch)))))

    if engine == "local":
        written = _write_local(files, source, destination, kept)
    else:
        written = _write_ray(files, destination, kept)
    if written != plan.settings["kept"]:
        raise RuntimeError(
            f"{written} rows were written, {plan.settings['kept']} selected: the table has changed "
            "meanwhile, or holds one key several times"
        )
    settings = {**plan.settings, "source": str(source), "engine": engine}
    Path(f"{destination}.json").write_text(json.dumps(settings, indent=2))
    return settings


def parquet_files(source: Path) -> list[Path]:
    """The file itself, or the Parquet files of a folder by name."""
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].exists():
        raise FileNotFoundError(f"no Parquet file at {source}")
    return files


def columns(batch: Any) -> selection.Columns:
    """NumPy columns of a record batch or table, with the 64-bit id of each key."""
    names = batch.schema.names
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {names}")
    used = [name for name in names if name not in ("key", "observed")]
    out = {name: np.asarray(batch.column(name)) for name in used}
    out["id"] = example_ids(np.asarray(batch.column("key")))
    return out


def _check_metadata(files: list[Path], ignore_nonfinite: bool) -> None:
    import pyarrow.parquet as pq

    bad = 0
    for file in files:
        stored = json.loads((pq.read_metadata(file).metadata or {}).get(META_KEY, b"{}"))
        bad += stored.get("meta", {}).get("nonfinite", 0)
    if bad and not ignore_nonfinite:
        raise ValueError(
            f"{bad} observations had NaN or infinite logits: the scoring run has diverged. Score "
            "again, or pass ignore_nonfinite=True to count them as not seen"
        )


def _batches(file: Path, group: int | None = None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Without memory mapping and pre-buffering only one batch of rows is in memory at a time.
    with pq.ParquetFile(file, memory_map=False, pre_buffer=False) as reader:
        yield from reader.iter_batches(BATCH, row_groups=None if group is None else [group])


def _local(files: list[Path]) -> Read:
    def read(f: Callable[[Any], Any]) -> Iterator[Any]:
        for file in files:
            for batch in _batches(file):
                yield f(batch)

    return read


def _write_local(
    files: list[Path], source: Path, destination: Path, kept: Callable[[Any], Any]
) -> int:
    import pyarrow.parquet as pq

    rows = 0
    for file in files:
        target = destination / file.relative_to(source) if source.is_dir() else destination
        target.parent.mkdir(parents=True, exist_ok=True)
        schema = pq.read_schema(file)
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in _batches(file):
                part = kept(batch)
                rows += len(part)
                writer.write_batch(part)
    return rows


def _ray_map(files: list[Path], f: Callable[[Path, int, int], Any]) -> Iterator[Any]:
    """``f(file, row group, number)`` as one Ray task for each row group of all files."""
    import pyarrow.parquet as pq

    try:
        import ray
    except ImportError as error:
        raise ImportError("engine='ray' needs Ray: pip install 'torch-specgd[ray]'") from error
    if not ray.is_initialized():
        ray.init()
    groups = [(file, g) for file in files for g in range(pq.read_metadata(file).num_row_groups)]
    task, shared = ray.remote(lambda work, *unit: work(*unit)), ray.put(f)
    waiting: list[Any] = []
    # A few tasks ahead of every processor: results never pile up, workers never wait.
    ahead = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    for number, (file, group) in enumerate(groups):
        waiting.append(task.remote(shared, file, group, number))
        if len(waiting) >= ahead:
            finished, waiting = ray.wait(waiting)
            yield from ray.get(finished)
    yield from ray.get(waiting)


def _ray(files: list[Path]) -> Read:
    """Passes as Ray tasks: workers summarize their row groups, only summaries travel."""

    def read(f: Callable[[Any], Any]) -> Iterator[Any]:
        def summarize(file: Path, group: int, number: int) -> list[Any]:
            return [f(batch) for batch in _batches(file, group)]

        for summaries in _ray_map(files, summarize):
            yield from summaries

    return read


def _write_ray(files: list[Path], destination: Path, kept: Callable[[Any], Any]) -> int:
    destination.mkdir(parents=True)

    def write(file: Path, group: int, number: int) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = pa.Table.from_batches([kept(batch) for batch in _batches(file, group)])
        pq.write_table(parts, destination / f"part-{number:05d}.parquet", compression="zstd")
        return int(parts.num_rows)

    return sum(_ray_map(files, write))
